"""Dual ascent: how a differentiable search comes to keep a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hwnas.space.node import Dimension
from hwnas.strategies.budget import Budget
from hwnas.strategies.cost_labels import cost_labels

DAMPING = 3.0
"""What a relative excess of 1 adds to a multiplier, relative to its size, for as long as it lasts."""

SHARPNESS = 5.0
"""The power of the probabilities to which a cost is charged."""


class DualAscent:
    """The multipliers of a budget: what exceeding a limit costs in the loss of the architecture.

    What is returned in the end is what the distribution prefers, and that can cost far more or less than the average
    while the distribution is still broad. So the cost is charged to a sharper one, whose probabilities are proportional
    to the power `sharpness` of the probabilities of each label. Held at the limit by the average itself, a search under
    a tight budget ends at members that cost half of it; `docs/digits_nb.md` has figures.

    With the relative excess ``g = E[cost] / limit - 1`` of each limit, in which no unit is left, and the step
    ``s = (1 + multiplier) * g``, the loss of the architecture is ::

        loss + sum of max(0, multiplier + DAMPING * s) * g

    whose first factor counts as a constant. After each step ``multiplier = max(0, multiplier + learning_rate * s)``. It
    comes to rest only where the expected cost is the limit, or at 0 with the cost below. With a sharpness of 1 it is
    the price of the limit there, the loss that a relative increase of the limit would save. `DAMPING` changes nothing
    about that, but without it the two circle around that point. Steps in proportion to the multiplier find it also
    where losses are large.

    Also what the sharper distribution prefers may cost more than the limit, so the budget of what a strategy returns is
    not left to this.

    Parameters
    ----------
    budget : Budget
        With all its profilers. Its bounds count, which its confidence lowers.
    dimensions : mapping of str to Dimension
        Those of the space.
    learning_rate : float
        Of the multipliers.
    sharpness : float
        At least 1, which leaves the distribution as it is.

    Attributes
    ----------
    labels : list of str
        Those on which the costs depend.
    multipliers : list of float
        One for each limit, in the order of the budget.

    Raises
    ------
    ValueError
        When a cost is that of another space.

    References
    ----------
    Stooke, Achiam, Abbeel: Responsive Safety in Reinforcement Learning by PID Lagrangian Methods, ICML 2020.
    """

    def __init__(
        self,
        budget: Budget,
        dimensions: Mapping[str, Dimension],
        *,
        learning_rate: float,
        sharpness: float = SHARPNESS,
    ) -> None:
        if not sharpness >= 1:
            raise ValueError(f"DualAscent: sharpness is {sharpness}; expected at least 1")
        self.limits = [(name, budget.profilers[name], bound) for name, bound in budget.bounds.items()]
        self.learning_rate = learning_rate
        self.sharpness = sharpness
        labels = [cost_labels(p.cost_model, dimensions, f"budget {name}") for name, p, _ in self.limits]
        self.labels = list(dict.fromkeys(label for some in labels for label in some))
        self.multipliers = [0.0] * len(self.limits)
        self._expected: Sequence[float] = ()

    def __call__(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return what is added to the loss.

        Parameters
        ----------
        probabilities : mapping of str to Tensor, shape (number of values,)
            The distributions of the labels.

        Returns
        -------
        Tensor, shape ()
            Differentiable with respect to the distributions.
        """
        sharper = {label: self._sharpened(p) for label, p in probabilities.items()}
        costs = [profiler.expectation(sharper) for _, profiler, _ in self.limits]
        self._expected = [float(cost.detach()) for cost in costs]
        terms = [
            max(0.0, multiplier + DAMPING * step) * (cost / limit - 1)
            for multiplier, step, cost, (_, _, limit) in zip(
                self.multipliers, self._steps(), costs, self.limits, strict=True
            )
        ]
        return torch.stack(terms).sum()

    def ascend(self) -> None:
        """Update the multipliers by the expected costs of the last call."""
        self.multipliers = [
            max(0.0, multiplier + self.learning_rate * step)
            for multiplier, step in zip(self.multipliers, self._steps(), strict=True)
        ]

    def record(self) -> dict[str, float]:
        """Return for each limit its multiplier, and the expected cost in its unit; nothing before the first call."""
        found: dict[str, float] = {}
        for (name, _, _), multiplier, expected in zip(self.limits, self.multipliers, self._expected, strict=False):
            found |= {f"budget/{name}/multiplier": multiplier, f"budget/{name}/charged": expected}
        return found

    def _sharpened(self, probabilities: Tensor) -> Tensor:
        # A probability of exactly 0 has no logarithm.
        return torch.softmax(self.sharpness * probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log(), 0)

    def _steps(self) -> list[float]:
        return [
            (1 + multiplier) * (expected / limit - 1)
            for multiplier, expected, (_, _, limit) in zip(self.multipliers, self._expected, self.limits, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the multipliers by name."""
        return {name: multiplier for (name, _, _), multiplier in zip(self.limits, self.multipliers, strict=True)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.multipliers = [float(state[name]) for name, _, _ in self.limits]
