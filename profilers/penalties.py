"""Penalties: how a cost enters a loss or a reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from hwnas.profilers.profiler import Profiler
from hwnas.space import Sample

Nonlinear = Literal["linear", "positive", "negative", "absolute"]
Aggregate = Literal["add", "mul"]
PenaltyForms = Mapping[str, Any] | Sequence[Any]
Penalty = TypeVar("Penalty", bound="ProfilerPenalty")


class ProfilerPenalty:
    """Joins a loss with the relative excess of a cost over a baseline.

    With ``n = nonlinear(cost / baseline - 1)``, which has no unit, the joint value is ``loss + scale * n`` for
    ``aggregate="add"`` and ``loss * (1 + n) ** scale`` for ``"mul"``.

    Parameters
    ----------
    profiler : Profiler
        Gives the cost.
    baseline : float
        The cost without penalty, in the unit of the profiler.
    scale : float, default 1
        Weight of the penalty.
    nonlinear : {"linear", "positive", "negative", "absolute"}, default "linear"
        `positive` punishes only what is above the baseline, `negative` rewards only what is below.
    aggregate : {"add", "mul"}, default "add"
        How the loss and the penalty are joined.

    Raises
    ------
    ValueError
        When an argument is out of its range.
    """

    def __init__(
        self,
        profiler: Profiler,
        baseline: float,
        scale: float = 1.0,
        *,
        nonlinear: Nonlinear = "linear",
        aggregate: Aggregate = "add",
    ) -> None:
        if not (math.isfinite(baseline) and baseline > 0):
            raise ValueError(f"penalty: baseline is {baseline}; expected a positive number in {profiler.unit}")
        if nonlinear not in ("linear", "positive", "negative", "absolute"):
            raise ValueError(f"penalty: nonlinear is {nonlinear!r}; expected linear, positive, negative or absolute")
        if aggregate not in ("add", "mul"):
            raise ValueError(f"penalty: aggregate is {aggregate!r}; expected add or mul")
        self.profiler = profiler
        self.baseline = baseline
        self.scale = scale
        self.nonlinear = nonlinear
        self.aggregate = aggregate

    @property
    def parts(self) -> tuple[ProfilerPenalty, ...]:
        """Return the penalties of which it consists: itself, unless there are several."""
        return (self,)

    def excess(self, cost: Tensor) -> Tensor:
        """Return the penalised relative excess of a cost; no unit."""
        relative = cost / self.baseline - 1
        if self.nonlinear == "positive":
            return torch.relu(relative)
        if self.nonlinear == "negative":
            return -torch.relu(-relative)
        return relative.abs() if self.nonlinear == "absolute" else relative

    def join(self, value: Tensor, cost: Tensor) -> Tensor:
        """Return the loss or reward with the penalty of a cost.

        Parameters
        ----------
        value : Tensor, shape ()
            Loss or reward.
        cost : Tensor, shape ()
            In the unit of the profiler.

        Returns
        -------
        Tensor, shape ()
            Differentiable with respect to both.
        """
        excess = self.excess(cost)
        if self.aggregate == "add":
            return value + self.scale * excess
        return value * (1 + excess) ** self.scale


class ExpectationProfilerPenalty(ProfilerPenalty):
    """A penalty on the expected cost of a distribution over architectures, for differentiable strategies."""

    def __call__(self, loss: Tensor, probabilities: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the joint loss, and the expected cost in the unit of the profiler.

        Parameters
        ----------
        loss : Tensor, shape ()
            The loss of the model.
        probabilities : mapping of str to Tensor, shape (number of values,)
            The distributions. The gradient of the penalty reaches every one of them.
        """
        cost = self.profiler.expectation(probabilities)
        return self.join(loss, cost), cost


class SampleProfilerPenalty(ProfilerPenalty):
    """A penalty on the cost of one architecture, for strategies that learn from rewards."""

    def __call__(self, value: float, sample: Sample) -> tuple[float, float]:
        """Return the joint value, and the cost in the unit of the profiler.

        Parameters
        ----------
        value : float
            Reward, with a negative `scale`, or loss.
        sample : dict
            The architecture.
        """
        cost = self.profiler.profile(sample)
        joint = self.join(torch.tensor(value, dtype=torch.float64), torch.tensor(cost, dtype=torch.float64))
        return float(joint), cost


class _Joint(ProfilerPenalty):
    """Several penalties, one after the other."""

    def __init__(self, penalties: Sequence[ProfilerPenalty]) -> None:
        super().__init__(penalties[0].profiler, penalties[0].baseline)
        self._parts = tuple(penalties)

    @property
    def parts(self) -> tuple[ProfilerPenalty, ...]:
        """Return the penalties."""
        return self._parts

    def _apply(self, value: Any, about: Any) -> tuple[Any, Any]:
        """Return a value with all penalties, and the cost of the first."""
        costs = []
        for penalty in self._parts:
            value, cost = penalty(value, about)  # type: ignore[operator]  # of one of the kinds that can be called
            costs.append(cost)
        return value, costs[0]


class JointExpectationPenalty(_Joint, ExpectationProfilerPenalty):
    """Several penalties on expected costs, one after the other.

    Parameters
    ----------
    penalties : sequence of ExpectationProfilerPenalty
        At least one. The first one's cost is the one that is returned.
    """

    def __call__(self, loss: Tensor, probabilities: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss with all penalties, and the expected cost of the first."""
        return self._apply(loss, probabilities)


class JointSamplePenalty(_Joint, SampleProfilerPenalty):
    """Several penalties on the costs of one architecture, one after the other.

    Parameters
    ----------
    penalties : sequence of SampleProfilerPenalty
        At least one. The first one's cost is the one that is returned.
    """

    def __call__(self, value: float, sample: Sample) -> tuple[float, float]:
        """Return the value with all penalties, and the cost of the first."""
        return self._apply(value, sample)


def as_expectation_penalty(
    penalty: ExpectationProfilerPenalty | PenaltyForms | None, where: str
) -> ExpectationProfilerPenalty | None:
    """Make a penalty on expectations of whatever stands for one.

    Parameters
    ----------
    penalty : ExpectationProfilerPenalty, mapping, sequence of these, or None
        A mapping has the arguments of the class: `profiler`, `baseline`, and options.
    where : str
        Who takes it, for messages.

    Raises
    ------
    TypeError
        When it is a penalty of another kind.
    """
    found = _made(
        penalty,
        ExpectationProfilerPenalty,
        where,
        "architectures are distributions here, which needs an ExpectationProfilerPenalty",
    )
    return found[0] if len(found) == 1 else JointExpectationPenalty(found) if found else None


def as_sample_penalty(penalty: SampleProfilerPenalty | PenaltyForms | None, where: str) -> SampleProfilerPenalty | None:
    """Make a penalty on samples of whatever stands for one; see `as_expectation_penalty`."""
    found = _made(
        penalty,
        SampleProfilerPenalty,
        where,
        "rewards belong to single members here, which needs a SampleProfilerPenalty",
    )
    return found[0] if len(found) == 1 else JointSamplePenalty(found) if found else None


def _made(penalty: Any, kind: type[Penalty], where: str, reason: str) -> list[Penalty]:
    if penalty is None:
        return []
    if isinstance(penalty, Mapping):
        return [kind(**penalty)]
    if isinstance(penalty, kind):
        return [penalty]
    if isinstance(penalty, Sequence):
        return [one for each in penalty for one in _made(each, kind, where, reason)]
    raise TypeError(f"{where}: the penalty is a {type(penalty).__name__}; {reason}")
