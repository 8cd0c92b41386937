"""The callback that trains architecture parameters between the steps of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from hwnas.errors import TrainingError
from hwnas.evaluators import captured_logs
from hwnas.profilers.penalties import ExpectationProfilerPenalty
from hwnas.strategies.batches import CyclingBatches, single_loader
from hwnas.strategies.best_member import best_member
from hwnas.strategies.cost_labels import cost_labels
from hwnas.strategies.dual_ascent import DualAscent
from hwnas.strategies.gradients import Gradients
from hwnas.strategies.oneshot import OneShotCallback, OneShotStrategy
from hwnas.strategies.ranks import mean_gradients
from hwnas.strategies.search_reading import distribution_record, label_probabilities
from hwnas.supernet import kept_statistics


class Batches(NamedTuple):
    """The data of one architecture step.

    Parameters
    ----------
    training
        The batch of the step of the weights that follows.
    validation
        The batch on which the architecture is trained.
    number : int
        That of the training batch in its epoch.
    """

    training: Any
    validation: Any
    number: int


class Derivative(NamedTuple):
    """An objective and its gradient.

    Parameters
    ----------
    loss : Tensor, shape ()
        On the validation batch, with the penalty.
    cost : Tensor, shape (), or None
        The expected cost; None without a penalty.
    gradients : tuple of Tensor or None
        One for each architecture parameter.
    """

    loss: Tensor
    cost: Tensor | None
    gradients: tuple[Tensor | None, ...]


class ArchitectureStep(OneShotCallback):
    """One step of the architecture on a validation batch before each step of the weights.

    The relaxation draws anew before both. While the trainer validates, the super-net is its best member; see
    `hwnas.strategies.best_member`.

    Parameters
    ----------
    strategy : OneShotStrategy
        With a super-net, a differentiable relaxation and an evaluator.
    learning_rate, betas, weight_decay
        Of Adam.
    warmup_epochs : int
        Epochs at the beginning without architecture steps.
    penalty : ExpectationProfilerPenalty, optional
        Joined with the loss.
    dual : DualAscent, optional
        Adds the price of a budget to the loss. Its multipliers follow each step.
    log_every : int
        Architecture steps from one record to the next.
    max_recalibration_batches : int, optional
        Training batches for the statistics of the best member, in a validation; None for all, 0 for no recalibration.
    """

    def __init__(
        self,
        strategy: OneShotStrategy,
        *,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        warmup_epochs: int,
        penalty: ExpectationProfilerPenalty | None,
        dual: DualAscent | None,
        log_every: int,
        max_recalibration_batches: int | None,
    ) -> None:
        super().__init__(strategy)
        self.warmup_epochs = warmup_epochs
        self.penalty = penalty
        self.dual = dual
        self.log_every = log_every
        self.max_recalibration_batches = max_recalibration_batches
        self.parameters = list(self.relaxation.parameters())
        # Outside the architecture step nothing may compute their gradient.
        self.relaxation.requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay)
        loader = single_loader(strategy.evaluator.val_dataloaders, "val_dataloaders")
        self.batches = CyclingBatches(loader, seed=strategy.seed)
        self.steps = 0
        self._validation = ExitStack()
        self._training_statistics: dict[str, Tensor] = {}
        known: dict[str, None] = {}
        for part in () if penalty is None else penalty.parts:
            known |= dict.fromkeys(cost_labels(part.profiler.cost_model, self.relaxation.dimensions, "penalty"))
        self._cost_labels = list(known)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember the trainer, and which part of the validation data is that of this process."""
        super().setup(trainer, pl_module, stage)
        self.batches.share(trainer.global_rank, trainer.world_size)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Follow the model to its device."""
        super().on_fit_start(trainer, pl_module)
        self.relaxation.train()
        # Loading puts the moments where the parameters are.
        self.optimizer.load_state_dict(self.optimizer.state_dict())
        self.warn_if_only_warmup(trainer, self.warmup_epochs, "the architecture")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make the architecture step, and draw for the step of the weights.

        Raises
        ------
        TrainingError
            When the loss or a gradient is not finite, or the loss does not depend on the architecture.
        """
        in_warmup = trainer.current_epoch < self.warmup_epochs
        if not in_warmup and batch_idx % trainer.accumulate_grad_batches == 0:
            self._train_architecture(trainer, pl_module, batch, batch_idx)
        self.resample(trainer, {})

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the super-net its best member."""

        def run(batch: Any) -> None:
            training_loss(trainer, pl_module, on_device(batch, trainer, pl_module), 0)

        limit = self.max_recalibration_batches
        self._training_statistics = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
        self._validation.callback(self._training_statistics.clear)
        self._validation.enter_context(best_member(self.strategy, run, max_batches=limit))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the search."""
        self._validation.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the super-net as the search has made it, also where a validation was cut short."""
        self._validation.close()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the statistics of the search, also in the middle of a validation."""
        state = checkpoint["state_dict"]
        state.update((name, before) for name, before in self._training_statistics.items() if name in state)

    def _train_architecture(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self.resample(trainer, {})
        batches = Batches(batch, on_device(next(self.batches), trainer, pl_module), batch_idx)
        where = f"architecture step {self.steps} (epoch {trainer.current_epoch}, batch {batch_idx})"
        # Half precision scales its losses; the scale of the weight step serves here as well.
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        with kept_statistics(pl_module):
            found = self.differentiate(trainer, pl_module, batches, scale, where)
        # A process that skips its batch takes part all the same, or the others would wait.
        own = [None] * len(self.parameters) if found is None else found.gradients
        gradients = mean_gradients(trainer, self.parameters, own)
        if found is None and all(gradient is None for gradient in gradients):
            return
        self._apply(gradients, scale, where, may_overflow=scaler is not None)
        if found is not None and self.steps % self.log_every == 0 and trainer.loggers:
            self._log(trainer, found.loss, found.cost)
        if self.dual is not None:
            self.dual.ascend()
        self.steps += 1

    def differentiate(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batches: Batches, scale: float, where: str
    ) -> Derivative | None:
        """Differentiate the objective with respect to the architecture, at the present weights.

        Parameters
        ----------
        trainer, pl_module
            Of the search.
        batches : Batches
            The data.
        scale : float
            Factor of the loss that is differentiated.
        where : str
            The step, for messages.

        Returns
        -------
        Derivative or None
            None where the training step skips the batch.

        Raises
        ------
        TrainingError
            When the loss is not finite or does not depend on the architecture.
        """
        with self.architecture_only(pl_module):
            joint = self.objective(trainer, pl_module, batches, where)
            if joint is None:
                return None
            loss, cost = joint
            gradients = torch.autograd.grad(loss * scale, self.parameters, allow_unused=True)
        return Derivative(loss.detach(), cost, gradients)

    def objective(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batches: Batches, where: str
    ) -> tuple[Tensor, Tensor | None] | None:
        """Return the loss on the validation batch, joined with the penalty, and the expected cost.

        Returns
        -------
        tuple of Tensor, shape (), or None
            Without a penalty the cost is None. None in all where the training step skips the batch.

        Raises
        ------
        TrainingError
            See `differentiate`.
        """
        loss = training_loss(trainer, pl_module, batches.validation, batches.number)
        if loss is None:
            return None
        cost = None
        if self.penalty is not None:
            loss, cost = self.penalty(loss, self._cost_probabilities())
        if self.dual is not None:
            loss = loss + self.dual({label: self._probabilities(label) for label in self.dual.labels})
        check_loss(loss, f"{where}: the loss on the validation batch")
        return loss, cost

    def update(self) -> None:
        """Update the architecture by the gradients of its parameters."""
        self.optimizer.step()

    def record(self) -> dict[str, float]:
        """Return what is logged besides the loss, the cost and the probabilities."""
        return {} if self.dual is None else self.dual.record()

    def _apply(self, gradients: Gradients, scale: float, where: str, *, may_overflow: bool) -> None:
        finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None)
        if finite:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = None if gradient is None else gradient / scale
            self.update()
            self.optimizer.zero_grad()
        elif not may_overflow:
            raise TrainingError(
                f"{where}: a gradient of the architecture is not finite although the loss is. Look for "
                "operations without a gradient at 0, such as a square root"
            )

    @contextmanager
    def architecture_only(self, pl_module: L.LightningModule) -> Iterator[None]:
        """Compute gradients of the architecture and of nothing else."""
        weights = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        for parameter in weights:
            parameter.requires_grad_(False)
        try:
            with self.architecture_too():
                yield
        finally:
            for parameter in weights:
                parameter.requires_grad_(True)

    @contextmanager
    def architecture_too(self) -> Iterator[None]:
        """Compute gradients of the architecture besides those of the weights."""
        self.relaxation.requires_grad_(True)
        try:
            yield
        finally:
            self.relaxation.requires_grad_(False)

    def _cost_probabilities(self) -> dict[str, Tensor]:
        return {label: self._probabilities(label) for label in self._cost_labels}

    def _probabilities(self, label: str) -> Tensor:
        probabilities = self.relaxation.probabilities(label)
        assert probabilities is not None
        return probabilities

    def _log(self, trainer: L.Trainer, loss: Tensor, cost: Tensor | None) -> None:
        record = {"arch/loss": float(loss), **self.record()}
        if cost is not None:
            record["arch/expected_cost"] = float(cost.detach())
        probabilities = label_probabilities(self.relaxation)
        record |= distribution_record(self.relaxation.dimensions, probabilities)
        for logger in trainer.loggers:
            logger.log_metrics(record, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the architecture, its optimiser, the multipliers, and the place in the validation data."""
        return {
            **super().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "multipliers": {} if self.dual is None else self.dual.state_dict(),
            "batches": self.batches.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if self.dual is not None:
            self.dual.load_state_dict(state_dict["multipliers"])
        self.batches.load_state_dict(state_dict["batches"])
        self.steps = state_dict["steps"]


def on_device(batch: Any, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
    """Treat a batch as the trainer treats its own."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module.on_before_batch_transfer(batch, 0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def training_loss(trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> Tensor | None:
    """Run the training step of a module from outside the trainer, which sees nothing of what is logged.

    Returns
    -------
    Tensor, shape (), or None
        None is what a training step returns to skip a batch.
    """
    takes_index = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)
    with captured_logs(pl_module), trainer.precision_plugin.train_step_context():
        output = pl_module.training_step(batch, batch_idx) if takes_index else pl_module.training_step(batch)
    return output["loss"] if isinstance(output, Mapping) else output


def check_loss(loss: Tensor, what: str) -> None:
    """Raise unless a loss can be differentiated.

    Raises
    ------
    TrainingError
        When it is not finite, or has no gradient.
    """
    if not torch.isfinite(loss):
        raise TrainingError(
            f"{what} is {loss.item()}. Lower the learning rates, clip gradients with gradient_clip_val, and look for "
            "infinite or missing values in the data"
        )
    if not loss.requires_grad:
        raise TrainingError(
            f"{what} does not depend on the architecture. training_step has to compute it from self.model, with "
            "gradients enabled"
        )
