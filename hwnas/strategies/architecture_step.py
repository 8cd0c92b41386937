"""The callback that trains architecture parameters between the steps of the weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from hwnas.errors import TrainingError
from hwnas.evaluators import captured_logs
from hwnas.profilers.penalties import ExpectationProfilerPenalty
from hwnas.strategies.batches import CyclingBatches, single_loader
from hwnas.strategies.cost_labels import cost_labels
from hwnas.strategies.kept_statistics import kept_statistics
from hwnas.strategies.oneshot import OneShotCallback, OneShotStrategy

MAX_LOGGED = 64
"""Labels with more values are not logged."""


class ArchitectureStep(OneShotCallback):
    """One step of the architecture on a validation batch before each step of the weights.

    The relaxation draws anew before both. While the trainer validates, the relaxation is in evaluation mode.

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
    log_every : int
        Architecture steps from one record to the next.
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
        log_every: int,
    ) -> None:
        super().__init__(strategy)
        self.warmup_epochs = warmup_epochs
        self.penalty = penalty
        self.log_every = log_every
        self.parameters = list(self.relaxation.parameters())
        # Outside the architecture step nothing may compute their gradient.
        self.relaxation.requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay)
        loader = single_loader(strategy.evaluator.val_dataloaders, "val_dataloaders")
        self.batches = CyclingBatches(loader, seed=strategy.seed)
        self.steps = 0
        self._cost_labels = (
            [] if penalty is None else cost_labels(penalty.profiler.cost_model, self.relaxation.dimensions, "penalty")
        )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Follow the model to its device."""
        super().on_fit_start(trainer, pl_module)
        self.relaxation.train()
        # Loading puts the moments where the parameters are.
        self.optimizer.load_state_dict(self.optimizer.state_dict())
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= self.warmup_epochs:
            warnings.warn(
                f"warmup_epochs is {self.warmup_epochs} and max_epochs {trainer.max_epochs}: the "
                "architecture is never trained",
                stacklevel=2,
            )

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
            self._train_architecture(trainer, pl_module, batch_idx)
        self.relaxation.resample({})

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave nothing to chance."""
        self.relaxation.eval()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the search."""
        self.relaxation.train()

    def _train_architecture(self, trainer: L.Trainer, pl_module: L.LightningModule, batch_idx: int) -> None:
        self.relaxation.resample({})
        validation = on_device(next(self.batches), trainer, pl_module)
        where = f"architecture step {self.steps} (epoch {trainer.current_epoch}, batch {batch_idx})"
        with self._architecture_only(pl_module):
            with captured_logs(pl_module), trainer.precision_plugin.train_step_context():
                loss = _loss(pl_module, validation, batch_idx)
            if loss is None:  # what a training step returns to skip a batch
                return
            cost = None
            if self.penalty is not None:
                loss, cost = self.penalty(loss, self._cost_probabilities())
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"{where}: the loss on the validation batch is {loss.item()}. Lower the learning rates, "
                    "clip gradients with gradient_clip_val, and look for infinite or missing values in the "
                    "data"
                )
            if not loss.requires_grad:
                raise TrainingError(
                    f"{where}: the loss does not depend on the architecture. training_step has to compute it "
                    "from self.model, with gradients enabled"
                )
            # Half precision scales its losses; the scale of the weight step serves here as well.
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            scale = 1.0 if scaler is None else float(scaler.get_scale())
            gradients = torch.autograd.grad(loss * scale, self.parameters, allow_unused=True)
        self._apply(gradients, scale, where, may_overflow=scaler is not None)
        if self.steps % self.log_every == 0 and trainer.loggers:
            self._log(trainer, loss.detach(), cost)
        self.steps += 1

    def update(self) -> None:
        """Update the architecture by the gradients of its parameters."""
        self.optimizer.step()

    def record(self) -> dict[str, float]:
        """Return what is logged besides the loss, the cost and the probabilities."""
        return {}

    def _apply(self, gradients: tuple[Tensor | None, ...], scale: float, where: str, *, may_overflow: bool) -> None:
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
    def _architecture_only(self, pl_module: L.LightningModule) -> Iterator[None]:
        """Compute gradients of the architecture alone, and leave running statistics as they are."""
        weights = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        for parameter in weights:
            parameter.requires_grad_(False)
        self.relaxation.requires_grad_(True)
        try:
            with kept_statistics(pl_module):
                yield
        finally:
            self.relaxation.requires_grad_(False)
            for parameter in weights:
                parameter.requires_grad_(True)

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
        entropies = []
        for label, dimension in self.relaxation.dimensions.items():
            if dimension.count_values() <= MAX_LOGGED:
                probabilities = self._probabilities(label)
                entropies.append(float(torch.special.entr(probabilities).sum()))
                for value, probability in zip(dimension.grid_values(), probabilities.tolist(), strict=True):
                    record[f"arch/{label}/{value}"] = probability
        if entropies:
            record["arch/entropy"] = sum(entropies) / len(entropies)
        for logger in trainer.loggers:
            logger.log_metrics(record, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the architecture, its optimiser, and the place in the validation data."""
        return {
            **super().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.batches.load_state_dict(state_dict["batches"])
        self.steps = state_dict["steps"]


def on_device(batch: Any, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
    """Treat a batch as the trainer treats its own."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module.on_before_batch_transfer(batch, 0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _loss(pl_module: L.LightningModule, batch: Any, batch_idx: int) -> Tensor | None:
    """Run the training step of a module from outside the trainer."""
    takes_index = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)
    output = pl_module.training_step(batch, batch_idx) if takes_index else pl_module.training_step(batch)
    return output["loss"] if isinstance(output, Mapping) else output
