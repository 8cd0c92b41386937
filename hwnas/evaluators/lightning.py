"""Training with PyTorch Lightning: a module that takes any model, and all that a fit needs besides."""

from __future__ import annotations

import copy
import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from torch import nn

from hwnas.errors import TrainingError
from hwnas.evaluators.evaluator import Evaluator
from hwnas.evaluators.loaders import for_rank
from hwnas.evaluators.seeding import SeedEachStep, isolated_seed

DEFAULT_METRIC = "default"


class LightningModule(L.LightningModule):
    """A Lightning module whose model is given later, once for each candidate.

    Write `training_step`, `validation_step` and `configure_optimizers` against `self.model`, and log the
    metric that a search should look at as ``default`` in `validation_step`. `configure_optimizers` runs anew
    for every fit.
    """

    model: nn.Module

    def set_model(self, model: nn.Module) -> None:
        """Make `model` the one that the steps train and score. It is kept by reference, not copied."""
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.model(*args, **kwargs)


class Lightning(Evaluator):
    """Everything that a fit needs except the model; a new `lightning.Trainer` is built for each fit.

    Quiet unless asked: no logger, no checkpoints (but a checkpoint callback switches them on), no progress
    bar, no model summary, no sanity check. Any of these can be given in `trainer_kwargs`.

    One evaluator may fit many models. Among the callbacks in `trainer_kwargs` `EarlyStopping` and those that write
    checkpoints begin anew with each fit; other callbacks are told of all fits one after the other. A logger gets the
    records of all of them.

    Where the trainer has several processes (``strategy="ddp"``), each reads its part of every `SeededLoader`; together
    they read what one process would read with a batch so many times as large.

    Parameters
    ----------
    module : LightningModule
        How to train and to score.
    train_dataloaders, val_dataloaders
        What `lightning.Trainer.fit` takes under these names. Use `hwnas.evaluators.seeded_loader` for an
        order of batches that a resumed run repeats.
    fit_kwargs : dict, optional
        Further arguments of `lightning.Trainer.fit`.
    seed : int
        For everything random in a fit (dropout, for example). Every step is seeded by itself, so a run
        resumed from a checkpoint draws what the uninterrupted run draws. The caller's random state is left as
        it was.
    **trainer_kwargs
        Arguments of `lightning.Trainer`: ``max_epochs``, ``accelerator``, ``gradient_clip_val``, ...

    Raises
    ------
    TypeError
        If `module` has no ``set_model``.
    """

    def __init__(
        self,
        module: LightningModule,
        *,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        fit_kwargs: dict[str, Any] | None = None,
        seed: int = 0,
        **trainer_kwargs: Any,
    ) -> None:
        if not isinstance(module, LightningModule):
            raise TypeError(
                f"Lightning: module is a {type(module).__name__}, expected a "
                "hwnas.evaluators.LightningModule, whose model can be set. Derive your Lightning module "
                "from it and use self.model in the steps."
            )
        self.module = module
        self.train_dataloaders = train_dataloaders
        self.val_dataloaders = val_dataloaders
        self.fit_kwargs = dict(fit_kwargs or {})
        self.seed = seed
        self.trainer_kwargs = trainer_kwargs
        self._beginnings: list[tuple[L.Callback, dict[str, Any]]] = []

    def replace(self, **changes: Any) -> Lightning:
        """Return a shallow copy with some things changed; the original stays as it is.

        Parameters
        ----------
        **changes
            ``module``, ``train_dataloaders``, ``val_dataloaders``, ``fit_kwargs``, ``seed``; any other name
            is an argument of `lightning.Trainer` and is added to those already given.
        """
        other = copy.copy(self)
        other.trainer_kwargs = dict(self.trainer_kwargs)
        own = {"module", "train_dataloaders", "val_dataloaders", "fit_kwargs", "seed"}
        for name, value in changes.items():
            if name in own:
                setattr(other, name, value)
            else:
                other.trainer_kwargs[name] = value
        return other

    def trainer(self, callbacks: Sequence[L.Callback] = ()) -> L.Trainer:
        """Build a fresh trainer.

        Parameters
        ----------
        callbacks : sequence of lightning.Callback
            Added to those in `trainer_kwargs`.
        """
        everything = [*self._given_callbacks(), *callbacks]
        arguments: dict[str, Any] = {
            "logger": False,
            "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in everything),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **self.trainer_kwargs,
            "callbacks": [SeedEachStep(self.seed), *everything],
        }
        with quiet_lightning():
            return L.Trainer(**arguments)

    def _given_callbacks(self) -> list[L.Callback]:
        given = self.trainer_kwargs.get("callbacks") or []
        return [given] if isinstance(given, L.Callback) else list(given)

    def _begin(self, callback: L.Callback) -> None:
        """Give a callback the state back that it had before its first fit."""
        for known, beginning in self._beginnings:
            if known is callback:
                vars(callback).clear()
                vars(callback).update(copy.deepcopy(beginning))
                return
        self._beginnings.append((callback, copy.deepcopy(vars(callback))))

    def fit(
        self, model: nn.Module, callbacks: Sequence[L.Callback] = (), ckpt_path: str | Path | None = None
    ) -> L.Trainer:
        """Train `model` in place.

        Parameters
        ----------
        model : nn.Module
            Given to ``module.set_model``.
        callbacks : sequence of lightning.Callback
            For this fit only.
        ckpt_path : path-like, optional
            A checkpoint to go on from. It is read with ``weights_only=True``.

        Returns
        -------
        lightning.Trainer
            The trainer of this fit; ``callback_metrics`` has what was logged last.
        """
        self.module.set_model(model)
        for callback in self._given_callbacks():
            if isinstance(callback, EarlyStopping | Checkpoint):
                self._begin(callback)
        trainer = self.trainer(callbacks)
        arguments: dict[str, Any] = {"weights_only": True, **self.fit_kwargs}
        if ckpt_path is not None:
            # The trainer would do so after it has loaded the weights, and round them.
            trainer.precision_plugin.convert_module(self.module)
        # A run that goes on writes its checkpoints beside those it had written before.
        expected = () if ckpt_path is None else ("Checkpoint directory .* is not empty",)
        with quiet_lightning(*expected), isolated_seed(self.seed), keyboard_interrupt_passes(trainer):
            trainer.fit(
                self.module,
                train_dataloaders=self._shared_out(self.train_dataloaders, trainer),
                val_dataloaders=self._shared_out(self.val_dataloaders, trainer),
                ckpt_path=ckpt_path,
                **arguments,
            )
        return trainer

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Score `model` on the validation data without training.

        Returns
        -------
        dict of str to float
            Every metric that `validation_step` logged.
        """
        self.module.set_model(model)
        trainer = self.trainer()
        with quiet_lightning(), isolated_seed(self.seed):
            trainer.validate(
                self.module,
                dataloaders=self._shared_out(self.val_dataloaders, trainer),
                datamodule=self.fit_kwargs.get("datamodule"),
                verbose=False,
            )
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    def _shared_out(self, loaders: Any, trainer: L.Trainer) -> Any:
        """Return loaders for one fit: each process gets its part of the data."""
        shares = self.trainer_kwargs.get("use_distributed_sampler", True)
        return for_rank(loaders, trainer.global_rank, trainer.world_size if shares else 1)

    @property
    def trains(self) -> bool:
        """Whether `evaluate` trains: not with ``max_epochs=0`` or ``max_steps=0``."""
        return 0 not in (self.trainer_kwargs.get("max_epochs"), self.trainer_kwargs.get("max_steps"))

    def evaluate(self, model: nn.Module) -> float:
        """Train `model` in place, then return the metric ``default`` of the last validation.

        With ``max_epochs=0`` or ``max_steps=0`` the model is scored as it is.

        Raises
        ------
        TrainingError
            If nothing was logged under that name.
        """
        logged = self.fit(model).callback_metrics if self.trains else self.validate(model)
        if DEFAULT_METRIC not in logged:
            raise TrainingError(
                f"{type(self).__name__}: no metric named {DEFAULT_METRIC!r}; logged: "
                f"{sorted(logged) or 'nothing'}. Log it in validation_step, self.log({DEFAULT_METRIC!r}, "
                "value), and give val_dataloaders."
            )
        return float(logged[DEFAULT_METRIC])


@contextmanager
def captured_logs(module: L.LightningModule) -> Iterator[dict[str, Any]]:
    """Collect what a module logs instead of passing it to a trainer.

    For calling `training_step` or `validation_step` from outside a trainer, or within another module's step.
    ``log`` and ``log_dict`` both end here. A name logged twice keeps its last value.

    Parameters
    ----------
    module : lightning.LightningModule
        Its own ``log`` is back when the block ends.

    Yields
    ------
    dict of str to Any
        Filled as the module logs.
    """
    logged: dict[str, Any] = {}

    def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        logged[name] = value

    # An instance attribute hides the method; log_dict goes through it too.
    before = module.__dict__.get("log")
    module.__dict__["log"] = log
    try:
        yield logged
    finally:
        if before is None:
            del module.__dict__["log"]
        else:
            module.__dict__["log"] = before


@contextmanager
def keyboard_interrupt_passes(trainer: L.Trainer) -> Iterator[None]:
    """Let Ctrl+C come out of a trainer as `KeyboardInterrupt`, with the handler of the signal as it was.

    Lightning turns it into ``sys.exit(1)`` and ignores the signal from then on.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if trainer.interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def quiet_lightning(*expected: str) -> Iterator[None]:
    """Hold back Lightning's remarks on devices, workers and products while the block runs.

    Its warnings that something is wrong still pass.

    Parameters
    ----------
    *expected : str
        Regular expressions for the beginnings of further warnings that are of no use here.
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            # All but one: that a resumed run does not see the batches that the uninterrupted run sees.
            warnings.filterwarnings("ignore", message="(?!You're resuming)", category=PossibleUserWarning)
            # Lightning asks PyTorch for a tree's leaf in a way that PyTorch calls deprecated.
            for message in (".*LeafSpec", *expected):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
