"""What all strategies with shared weights have in common."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import numpy as np
from torch import nn

from hwnas.errors import TrainingError
from hwnas.evaluators import Evaluator, Lightning
from hwnas.evaluators.seeding import isolated_seed
from hwnas.kernels import native
from hwnas.nn import ModelSpace, module_mutables
from hwnas.space import Mutable, Sample
from hwnas.strategies.base import Strategy, integer_seed
from hwnas.strategies.batches import single_loader
from hwnas.strategies.ranks import allow_unused_parameters, check_agreement, check_launcher, take_buffers_of_first
from hwnas.strategies.search_monitor import SearchMonitor
from hwnas.strategies.search_reading import WatchedCost
from hwnas.supernet import (
    DEFAULT_HOOKS,
    MutationHook,
    Relaxation,
    check_searchable,
    lay_out_channels_last,
    make_supernet,
    order_does_not_matter,
)

_T = TypeVar("_T")

MAX_DRAWS = 100
"""Draws that may violate the constraints of a space, one after the other."""


class OneShotStrategy(Strategy):
    """Trains one super-net and finds the best member in it: a relaxation and a Lightning callback.

    The module of the evaluator runs as it is, on the super-net instead of a model, with all that its trainer
    does: clipping, accumulation, precision, schedules, loggers. The callback adds what the search does before
    each training batch. The parameters of the relaxation are not part of the model, so the optimiser of the
    evaluator does not see them.

    Subclasses implement `make_relaxation`, `callback` and `ranked_samples`.

    Parameters
    ----------
    mutation_hooks : sequence of callable
        Tried before all other hooks; see `hwnas.supernet.BaseSuperNetModule.mutate`.
    seed : int or numpy.random.Generator
        Of everything random in the strategy. The evaluator has a seed of its own.
    """

    def __init__(self, mutation_hooks: Sequence[MutationHook] = (), *, seed: int | np.random.Generator = 0) -> None:
        self.mutation_hooks = tuple(mutation_hooks)
        self.seed = integer_seed(seed)
        self._supernet: ModelSpace | None = None
        self._relaxation: Relaxation | None = None
        self._evaluator: Lightning | None = None
        self._trainer: L.Trainer | None = None
        self._ckpt_path: str | None = None

    # -- what a strategy is made of --------------------------------------------------------------------------

    def default_mutation_hooks(self) -> list[MutationHook]:
        """Return the hooks that come last."""
        return list(DEFAULT_HOOKS)

    @abstractmethod
    def make_relaxation(self, space: ModelSpace) -> Relaxation:
        """Return how decisions are relaxed.

        Parameters
        ----------
        space : ModelSpace
            Before it becomes a super-net.
        """

    @abstractmethod
    def callback(self) -> L.Callback:
        """Return a new callback that does the search while the super-net is trained."""

    # -- what can be seen of a search ------------------------------------------------------------------------

    @property
    def architecture(self) -> nn.Module:
        """What is trained to choose the architecture; without parameters where nothing is. See `supernet`."""
        return self.relaxation

    def draws(self, n: int) -> list[Sample]:
        """Return members as the search draws them at present, the same at every call.

        Parameters
        ----------
        n : int
            How many.

        Returns
        -------
        list of dict
            Empty where the relaxation has a distribution for each label.
        """
        return []

    def present_sample(self) -> Sample:
        """Return what the search prefers at present; no member is scored for that."""
        return next(iter(self.ranked_samples()))

    def watched_costs(self) -> dict[str, WatchedCost]:
        """Return the costs that the search looks at, by the names under which their expectations are logged."""
        return {}

    # -- the super-net ---------------------------------------------------------------------------------------

    @property
    def supernet(self) -> ModelSpace:
        """The super-net.

        Raises
        ------
        RuntimeError
            When there is none yet.
        """
        return self._made(self._supernet)

    @property
    def relaxation(self) -> Relaxation:
        """The relaxation that the super-net asks; see `supernet`."""
        return self._made(self._relaxation)

    @property
    def evaluator(self) -> Lightning:
        """The evaluator of the run; see `supernet`."""
        return self._made(self._evaluator)

    def _made(self, thing: _T | None) -> _T:
        if thing is None:
            raise RuntimeError(f"{type(self).__name__} has not searched yet; call run(space, evaluator) first")
        return thing

    def mutate_model(self, space: ModelSpace) -> ModelSpace:
        """Turn a space into a super-net, in place.

        Hooks are tried in this order: `mutation_hooks`, those of the space
        (``extra_oneshot_hooks(strategy)``, where it has that method), `default_mutation_hooks`.

        Parameters
        ----------
        space : ModelSpace
            To be changed.

        Returns
        -------
        ModelSpace
            `space`.

        Raises
        ------
        TypeError
            When it is no model space or has been changed already.
        ValueError
            When it has no choices.
        """
        check_searchable(space)
        relaxation = self.make_relaxation(space)
        extra = getattr(space, "extra_oneshot_hooks", None)
        hooks = [*self.mutation_hooks, *(extra(self) if extra else ()), *self.default_mutation_hooks()]
        # Weights of layers with a choice in their size are made here, the largest ones that any member needs.
        with isolated_seed(self.seed):
            make_supernet(space, relaxation, hooks)
        self._supernet, self._relaxation = space, relaxation
        return space

    def check_evaluator(self, evaluator: Evaluator) -> None:
        """Raise unless super-nets can be trained with this evaluator.

        Raises
        ------
        TypeError
            When it is not a `hwnas.evaluators.Lightning`.
        ValueError
            When it lacks a loader, uses one loader for both purposes, or holds choices itself; when its trainer forks
            or spawns processes.
        """
        name = type(self).__name__
        if not isinstance(evaluator, Lightning):
            raise TypeError(
                f"{name}: the evaluator is a {type(evaluator).__name__}; a super-net is trained step by "
                "step, which needs hwnas.evaluators.Lightning or a class derived from it, such as "
                "Classification"
            )
        for loader in ("train_dataloaders", "val_dataloaders"):
            if getattr(evaluator, loader) is None:
                raise ValueError(f"{name}: the evaluator has no {loader}. The search needs both loaders; give it one")
        if evaluator.train_dataloaders is evaluator.val_dataloaders:
            raise ValueError(
                f"{name}: train_dataloaders and val_dataloaders are one object. Architectures have to be "
                "chosen on data on which the weights are not trained; split the data"
            )
        single_loader(evaluator.val_dataloaders, f"{name}: val_dataloaders")
        check_launcher(evaluator)
        held = _mutables_in(evaluator)
        if held:
            raise ValueError(
                f"{name}: the evaluator holds choices ({', '.join(held)}). Only the model space is searched; "
                "give the evaluator plain values"
            )

    # -- the search ------------------------------------------------------------------------------------------

    def run(
        self,
        space: ModelSpace,
        evaluator: Evaluator,
        *,
        callbacks: Sequence[L.Callback] = (),
        ckpt_path: str | Path | None = None,
    ) -> None:
        """Turn the space into a super-net and train it.

        Parameters
        ----------
        space : ModelSpace
            Changed in place. The super-net of an earlier call is trained on.
        evaluator : Lightning
            With loaders for training and for validation.
        callbacks : sequence of lightning.Callback
            Further callbacks; a `ModelCheckpoint` makes the search resumable. A `SearchMonitor` among them takes the
            place of the usual one.
        ckpt_path : path-like, optional
            A checkpoint of the same search to go on from; the one of `load_state_dict` unless given.
        """
        self.check_evaluator(evaluator)
        assert isinstance(evaluator, Lightning)
        if space is not self._supernet:
            self.mutate_model(space)
        self._evaluator = evaluator
        resumed = self._ckpt_path if ckpt_path is None else ckpt_path
        if not any(isinstance(callback, SearchMonitor) for callback in callbacks):
            callbacks = [SearchMonitor(), *callbacks]
        for callback in callbacks:
            if isinstance(callback, SearchMonitor):
                callback.watch(self)
        evaluator.fit(space, callbacks=[self.callback(), *callbacks], ckpt_path=resumed)

    def best_sample(self) -> Sample:
        """Return the best feasible sample."""
        return next(iter(self.ranked_samples()))

    def freeze(self, sample: Sample) -> nn.Module:
        """Return a member of the super-net as a plain model."""
        model: nn.Module = self.supernet.freeze(sample)
        return model

    # -- going on later --------------------------------------------------------------------------------------

    def attach_trainer(self, trainer: L.Trainer) -> None:
        """Remember the trainer, so that `state_dict` finds its checkpoints, even while it runs."""
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"ckpt_path": ...}``, the last checkpoint; empty when no checkpoint has been written."""
        found = self._ckpt_path
        for checkpoint in self._trainer.checkpoint_callbacks if self._trainer is not None else ():
            paths = (getattr(checkpoint, name, "") for name in ("last_model_path", "best_model_path"))
            found = next(filter(None, paths), found)
        return {} if found is None else {"ckpt_path": str(found)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next `run` go on from the checkpoint."""
        self._ckpt_path = state.get("ckpt_path")


class OneShotCallback(L.Callback):
    """Ties a strategy to a trainer: device, and the part of a checkpoint that belongs to the search.

    Parameters
    ----------
    strategy : OneShotStrategy
        After `OneShotStrategy.mutate_model`.
    """

    def __init__(self, strategy: OneShotStrategy) -> None:
        self.strategy = strategy
        self.relaxation = strategy.relaxation
        structure = strategy.supernet.structure()
        self._constrained = structure if structure.constraints() else None

    @property
    def state_key(self) -> str:
        """The name under which checkpoints hold the state."""
        return f"hwnas.{type(self.strategy).__name__}"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember the trainer."""
        self.strategy.attach_trainer(trainer)
        allow_unused_parameters(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Follow the model to its device, and lay the weights out as is fastest there."""
        self.relaxation.to(pl_module.device)
        supernet = self.strategy.supernet
        if native.ENABLED and pl_module.device.type == "cpu" and order_does_not_matter(supernet):
            lay_out_channels_last(supernet)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise where several processes do not begin with the same."""
        check_agreement(trainer, "the state of the search", self.state_dict())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise where several processes do not end with the same, and give all of them the same buffers."""
        check_agreement(trainer, "the state of the search", self.state_dict())
        take_buffers_of_first(trainer, pl_module)

    def resample(self, trainer: L.Trainer, memo: Sample) -> None:
        """Let the relaxation decide anew, the same in all processes.

        What it draws meets the constraints of the space: it draws again until that is so, and after `MAX_DRAWS` in vain
        it is given a random member of the space.
        """
        decided = self.relaxation.resample(memo)
        if decided and self._constrained is not None:
            draws = 1
            while self._constrained.verdict({**memo, **decided}) is not True:
                if draws < MAX_DRAWS:
                    decided = self.relaxation.resample(memo)
                else:
                    rng = np.random.default_rng((self.strategy.seed, trainer.global_step))
                    decided = self.strategy.supernet.random(memo=dict(memo), random_state=rng)
                    self.relaxation.resample(decided)
                draws += 1
        check_agreement(trainer, "what is drawn", {**memo, **decided})

    def warn_if_only_warmup(self, trainer: L.Trainer, warmup_epochs: int, what: str) -> None:
        """Say so when training ends before the warm-up does."""
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= warmup_epochs:
            warnings.warn(
                f"warmup_epochs is {warmup_epochs} and max_epochs {trainer.max_epochs}: {what} is never trained",
                stacklevel=3,
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Come back to the CPU, as the model does."""
        self.relaxation.cpu()

    def state_dict(self) -> dict[str, Any]:
        """Return the relaxation as plain tensors, and the labels to which it belongs."""
        return {
            "labels": [str(label) for label in self.relaxation.dimensions],
            "relaxation": dict(self.relaxation.state_dict()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state.

        Raises
        ------
        TrainingError
            When it belongs to another space.
        """
        here = [str(label) for label in self.relaxation.dimensions]
        if state_dict["labels"] != here:
            raise TrainingError(
                f"the checkpoint is of a search over the labels {state_dict['labels']}, this space has "
                f"{here}. Construct the space with the code that the checkpoint was made with"
            )
        self.relaxation.load_state_dict(state_dict["relaxation"])

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint without a state of this strategy.

        Raises
        ------
        TrainingError
            Rather than going on with an untrained architecture.
        """
        found = sorted(map(str, checkpoint.get("callbacks", {})))
        if self.state_key not in found:
            raise TrainingError(
                f"the checkpoint has no state of {self.state_key}; it has states of {found}. Go on with the "
                "strategy that wrote it"
            )


def _mutables_in(evaluator: Lightning) -> list[str]:
    module = evaluator.module
    values = {**vars(evaluator), **evaluator.trainer_kwargs, **evaluator.fit_kwargs, **vars(module)}
    held = [name for name, value in values.items() if isinstance(value, Mutable)]
    # `model` may be what an earlier fit has left there.
    children = ((name, child) for name, child in module.named_children() if name != "model")
    held += [
        name for name, child in children if isinstance(child, Mutable) or any(True for _ in module_mutables(child))
    ]
    return held
