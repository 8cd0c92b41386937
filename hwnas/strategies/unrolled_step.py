"""The architecture step of second-order DARTS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import SGD

from hwnas.errors import UnsupportedError
from hwnas.evaluators.seeding import kept_random_states
from hwnas.strategies.architecture_step import ArchitectureStep, Batches, Derivative, check_loss, training_loss
from hwnas.strategies.gradients import added

RADIUS = 0.01
"""How far weights are moved, in the Euclidean norm, to find a finite difference."""


class UnrolledStep(ArchitectureStep):
    """One step of the architecture that looks one step of the weights ahead.

    The loss on the validation batch is taken at the weights that the step of the weights on the coming training batch
    would give, and is differentiated through that step. Its second derivatives are a finite difference of gradients
    of the training loss, so a step takes three more passes than that of `ArchitectureStep`, forward and backward.

    Afterwards weights, their gradients, running statistics and random states are as before, bit for bit. All passes
    draw the same random numbers, and see the same draw of a relaxation that draws.

    Not foreseen is what a trainer does to gradients between their computation and the step, such as clipping.

    References
    ----------
    Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019, section 2.3.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise also where the step of the weights is not one that can be foreseen.

        Raises
        ------
        UnsupportedError
            When the optimiser of the weights is not one SGD, or steps are accumulated, distributed or in reduced
            precision.
        """
        super().on_fit_start(trainer, pl_module)
        name = f"{type(self.strategy).__name__}(unrolled=True)"
        optimizers = [type(optimizer).__name__ for optimizer in trainer.optimizers]
        if [type(optimizer) for optimizer in trainer.optimizers] != [SGD]:
            raise UnsupportedError(
                f"{name}: the weights are trained by {', '.join(optimizers) or 'no optimiser'}; the virtual step is "
                "that of one torch.optim.SGD. Use it, or unrolled=False"
            )
        for what, got, expected in (
            ("accumulate_grad_batches", trainer.accumulate_grad_batches, (1,)),
            ("precision", trainer.precision, ("32-true", "64-true")),
            ("the number of processes", trainer.world_size, (1,)),
        ):
            if got not in expected:
                raise UnsupportedError(
                    f"{name}: {what} is {got}; expected {' or '.join(map(str, expected))}. Change that, or use "
                    "unrolled=False"
                )

    def differentiate(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batches: Batches, scale: float, where: str
    ) -> Derivative | None:
        """Differentiate the objective with respect to the architecture, through a virtual step of the weights."""
        (optimizer,) = trainer.optimizers
        assert isinstance(optimizer, SGD)

        def train_loss() -> Tensor | None:
            with kept_random_states():
                loss = training_loss(trainer, pl_module, batches.training, batches.number)
            if loss is not None:
                check_loss(loss, f"{where}: the loss on the training batch")
            return loss

        def architecture_gradients() -> tuple[Tensor | None, ...]:
            with self.architecture_only(pl_module):
                loss = train_loss()
                assert loss is not None  # it was there before
                return torch.autograd.grad(loss, self.parameters, allow_unused=True)

        loss = train_loss()
        if loss is None:
            return None
        weights = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        before = [weight.detach().clone() for weight in weights]
        try:
            factors = virtual_step(optimizer, dict(zip(weights, gradients, strict=True)))
            with self.architecture_too(), kept_random_states():
                joint = self.objective(trainer, pl_module, batches, where)
                if joint is None:
                    return None
                found = torch.autograd.grad(joint[0], [*self.parameters, *weights], allow_unused=True)
            direct, slopes = found[: len(self.parameters)], found[len(self.parameters) :]
            # The weights after the step depend on the architecture through their gradients.
            pull = {
                weight: factors[weight] * slope
                for weight, slope in zip(weights, slopes, strict=True)
                if slope is not None and weight in factors
            }
            norm = float(torch.stack([each.norm().double() for each in pull.values()]).norm()) if pull else 0.0
            if norm == 0:
                return Derivative(joint[0].detach(), joint[1], direct)
            reach = RADIUS / norm
            _restore(weights, before, pull, reach)
            above = architecture_gradients()
            _restore(weights, before, pull, -reach)
            below = architecture_gradients()
        finally:
            _restore(weights, before)
        curved = [None if a is None or b is None else (a - b) / (2 * reach) for a, b in zip(above, below, strict=True)]
        return Derivative(joint[0].detach(), joint[1], tuple(map(added, direct, curved)))


def virtual_step(optimizer: SGD, gradients: Mapping[nn.Parameter, Tensor | None]) -> dict[nn.Parameter, float]:
    """Change weights as the next step of an optimiser would, and leave the optimiser as it is.

    Parameters
    ----------
    optimizer : torch.optim.SGD
        With momentum, weight decay and the like.
    gradients : mapping of Parameter to Tensor or None
        None for weights that have no part in the step.

    Returns
    -------
    dict of Parameter to float
        The derivative of each changed weight with respect to its gradient.
    """
    factors = {}
    for group in optimizer.param_groups:
        sign = -1.0 if group["maximize"] else 1.0
        momentum, kept = group["momentum"], 1 - group["dampening"]
        for weight in group["params"]:
            gradient = gradients.get(weight)
            if gradient is None:
                continue
            step = sign * gradient + group["weight_decay"] * weight.detach()
            factor = sign
            velocity = optimizer.state.get(weight, {}).get("momentum_buffer")
            if momentum:
                # The first velocity is the gradient as it is, without dampening.
                fresh = step if velocity is None else momentum * velocity + kept * step
                share = 1.0 if velocity is None else kept
                step = step + momentum * fresh if group["nesterov"] else fresh
                factor = sign * (1 + momentum * share if group["nesterov"] else share)
            rate = float(group["lr"])
            with torch.no_grad():
                weight.sub_(step, alpha=rate)
            factors[weight] = -rate * factor
    return factors


def _restore(
    weights: Sequence[nn.Parameter],
    values: Sequence[Tensor],
    direction: Mapping[nn.Parameter, Tensor] | None = None,
    reach: float = 0.0,
) -> None:
    """Set weights to values, or to what lies so far from them in a direction."""
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)
            if direction is not None and weight in direction:
                weight.add_(direction[weight], alpha=reach)
