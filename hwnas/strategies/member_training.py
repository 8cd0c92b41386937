"""The callback that decides which members a super-net is trained on."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hwnas.errors import UnsupportedError
from hwnas.space import Sample
from hwnas.space.sampling import fresh
from hwnas.strategies.architecture_step import training_loss
from hwnas.strategies.gradients import added
from hwnas.strategies.member_sampling import StepMembers
from hwnas.strategies.oneshot import OneShotCallback, OneShotStrategy
from hwnas.strategies.ranks import check_agreement, mean_gradients


class MemberTraining(OneShotCallback):
    """Train the weights of new members on each batch.

    Of several members the first is run by the trainer. The others run one after the other once its gradient has been
    computed, so that one graph is in memory at a time, and their gradients are added before the trainer clips them and
    makes the step. What counts is the average over the members. The module logs the first member only.

    Parameters
    ----------
    strategy : OneShotStrategy
        With a super-net whose relaxation takes whole samples.
    members : StepMembers
        What is trained on each batch.
    validated : dict
        The member that each validation scores.
    """

    def __init__(self, strategy: OneShotStrategy, members: StepMembers, validated: Sample) -> None:
        super().__init__(strategy)
        self.members = members
        self.validated = validated
        self.drawn = 0
        self._present: list[Sample] = []
        self._batch: tuple[Any, int] | None = None
        self._own = _OwnGradients()

    @property
    def _several(self) -> bool:
        return self.members.count > 1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember the trainer.

        Raises
        ------
        UnsupportedError
            When several members are trained on a batch and the trainer shards the model, or the module optimises by
            itself.
        """
        super().setup(trainer, pl_module, stage)
        if self._several and not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise UnsupportedError(
                f"several members are trained on each batch, which {type(trainer.strategy).__name__} of the trainer "
                "does not allow. Use one device, strategy='ddp', or sampling='uniform'"
            )
        if self._several and not pl_module.automatic_optimization:
            raise UnsupportedError(
                f"several members are trained on each batch, but {type(pl_module).__name__} sets "
                "automatic_optimization = False. Return the loss and leave the step to the trainer, or use "
                "sampling='uniform'"
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw the members, and let the trainer run the first."""
        self._present = self.members.of(self.drawn)
        self._batch = batch, batch_idx
        self.drawn += 1
        check_agreement(trainer, "the members of the step", self._present)
        self.relaxation.resample(self._present[0])

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Let the first member count as one of several."""
        if self._several and loss.requires_grad:
            loss.register_hook(self._share)

    def _share(self, gradient: Tensor) -> Tensor:
        return gradient / self.members.count

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the gradients of the other members."""
        if not self._several:
            return
        wrapper = trainer.strategy.model
        for sample in self._present[1:]:
            self.relaxation.resample(sample)
            loss = self._loss(trainer, pl_module)
            if loss is not None and isinstance(wrapper, DistributedDataParallel):
                self._own.add(loss, pl_module)
            elif loss is not None:
                trainer.precision_plugin.backward(loss, pl_module, None)
        if isinstance(wrapper, DistributedDataParallel) and wrapper.require_backward_grad_sync:
            self._own.hand_over(trainer, pl_module)
        self.relaxation.resample(self._present[0])  # an optimiser may compute the loss of the batch once more

    def _loss(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Tensor | None:
        """Return the share of a member in the loss, with the factors that the trainer gives it too."""
        assert self._batch is not None
        loss = training_loss(trainer, pl_module, *self._batch)
        if loss is None:  # it skips the batch
            return None
        loss = loss / trainer.accumulate_grad_batches
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of half precision
        return self._share(loss if scaler is None else scaler.scale(loss))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let go of the batch."""
        self._batch = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the same member every time."""
        self.relaxation.resample(fresh(self.validated))

    def state_dict(self) -> dict[str, Any]:
        """Return for how many batches members have been drawn; they depend on nothing else."""
        return {**super().state_dict(), "drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        super().load_state_dict(state_dict)
        self.drawn = state_dict["drawn"]


class _OwnGradients:
    """Gradients of one process that `DistributedDataParallel` does not see, until they are averaged over all.

    It averages what its own forward pass has used, which is the first member. It must not notice a backward pass of
    another one: its record of what was used would be wrong in the next step.
    """

    def __init__(self) -> None:
        self._sums: list[Tensor | None] = []

    def add(self, loss: Tensor, pl_module: L.LightningModule) -> None:
        """Add the gradients of a loss."""
        more = torch.autograd.grad(loss, _trained(pl_module), allow_unused=True)
        before = self._sums or [None] * len(more)
        self._sums = [added(one, other) for one, other in zip(before, more, strict=True)]

    def hand_over(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the average over all processes to the gradients of the parameters."""
        parameters = _trained(pl_module)
        mean = mean_gradients(trainer, parameters, self._sums or [None] * len(parameters))
        for parameter, more in zip(parameters, mean, strict=True):
            parameter.grad = added(parameter.grad, more)
        self._sums = []


def _trained(pl_module: L.LightningModule) -> list[Tensor]:
    return [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
