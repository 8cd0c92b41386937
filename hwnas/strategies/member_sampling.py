"""Which members train the weights of a super-net in each step: one at random, a fair round, or a sandwich."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hwnas.cost import CostModel, JointRanges, Range
from hwnas.errors import BudgetError
from hwnas.profilers.filters import profiler_of, ranges_in
from hwnas.profilers.profiler import Profiler
from hwnas.space import Sample
from hwnas.space.sampling import fresh
from hwnas.strategies.cost_labels import cost_labels
from hwnas.strategies.feasible import FeasibleSampler

SamplingName = Literal["uniform", "fair", "sandwich"]

MAX_VALUES = 1_024
"""Values of one label that a fair round may have; a choice of many subsets has more."""

_DRAWS = 64
_DRAWS_IN_VAIN = 640
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class StepMembers:
    """The members that train the weights, step by step.

    Parameters
    ----------
    count : int
        Members of each step.
    of : callable
        Takes the number of a step, on which alone its members depend, and returns a new list of samples.
    """

    count: int
    of: Callable[[int], list[Sample]]


class MemberSampling(ABC):
    """Says which members train the weights."""

    @abstractmethod
    def plan(self, sampler: FeasibleSampler, seed: int) -> StepMembers:
        """Return the members of all steps.

        Parameters
        ----------
        sampler : FeasibleSampler
            Of a space or super-net; gives random feasible members, and says what is feasible.
        seed : int
            Of what is random besides.

        Raises
        ------
        ValueError
            When the space or the filter does not allow this way of sampling.
        """


@dataclass(frozen=True)
class UniformSampling(MemberSampling):
    """One random feasible member in each step, drawn by the weights of the labels.

    References
    ----------
    Guo et al.: Single Path One-Shot Neural Architecture Search with Uniform Sampling, ECCV 2020.
    """

    def plan(self, sampler: FeasibleSampler, seed: int) -> StepMembers:
        """Return one member for each step."""
        return StepMembers(1, lambda step: [sampler.sample(step)])


@dataclass(frozen=True)
class FairSampling(MemberSampling):
    """Rounds in which each value of each label is used equally often (strict fairness).

    A step trains as many members as the label with most values has, or `members`, on one batch and with one update.
    Every label goes through random orders of its values, independently of all other labels: of n values, each is used
    once by members 1 to n, once by members n + 1 to 2n, and so on. So where all labels have n values, each is used
    exactly once in each step; a label with fewer values keeps equal counts over its own rounds, across the borders of
    steps. All labels count, those of value choices too; of a choice of several inputs each combination is a value.

    A label that stands inside a candidate has no effect on members without that candidate. Its orders are independent
    of the label around it, so its values are then used equally often on average, not exactly.

    Parameters
    ----------
    members : int, optional
        Members of a step.

    References
    ----------
    Chu, Zhang, Xu: FairNAS: Rethinking Evaluation Fairness of Weight Sharing Neural Architecture Search, ICCV 2021.
    """

    members: int | None = None

    def __post_init__(self) -> None:
        """Check the number of members."""
        if self.members is not None and self.members < 1:
            raise ValueError(f"FairSampling: members is {self.members}; expected at least 1, or None")

    def plan(self, sampler: FeasibleSampler, seed: int) -> StepMembers:
        """Return a round for each step.

        Raises
        ------
        ValueError
            When there is a filter, a constraint, or a label whose weights differ: some values then have to be used
            more often than others. Also when a label has too many values.
        """
        if sampler.filter is not None:
            raise ValueError(
                f"fair sampling uses all values equally often, which the filter {sampler.filter!r} rules out. Train "
                "without filter and budget, and give the filter to SubnetSearch on the trained super-net, or use "
                "sampling='uniform'"
            )
        constraints = sampler.space.structure().constraints()
        if constraints:
            raise ValueError(
                "fair sampling uses all values equally often and of each label independently, which the constraint "
                f"{constraints[0]!r} rules out. Use sampling='uniform'"
            )
        values = {label: _fair_values(sampler, label) for label in sampler.dimensions}
        count = max(map(len, values.values())) if self.members is None else self.members
        orders = {label: _Orders(len(values[label]), (seed, 1, i)) for i, label in enumerate(values)}

        def round_of(step: int) -> list[Sample]:
            numbers = range(step * count, (step + 1) * count)
            return [fresh({label: values[label][orders[label][number]] for label in values}) for number in numbers]

        return StepMembers(count, round_of)


def _fair_values(sampler: FeasibleSampler, label: str) -> list[Any]:
    """Return the values of a label after checking that all are to be used equally often."""
    dimension = sampler.dimensions[label]
    if dimension.count_values() > MAX_VALUES:
        raise ValueError(
            f"fair sampling goes through all values of each label, but {label!r} has {dimension.count_values()} "
            f"(at most {MAX_VALUES}). Use sampling='uniform'"
        )
    values = list(dimension.grid_values())
    probabilities = [dimension.probability(value) for value in values]
    if max(probabilities) - min(probabilities) > 1e-6:
        raise ValueError(
            f"fair sampling uses all values equally often, but those of {label!r} have the weights "
            f"{[round(probability, 4) for probability in probabilities]}. Drop the weights, or use sampling='uniform'"
        )
    return values


class _Orders:
    """Random orders of the numbers below n, one after the other; a place in them depends on the seed only."""

    def __init__(self, n: int, seed: tuple[int, ...]) -> None:
        self._n = n
        self._seed = seed
        self._last = -1, np.empty(0, dtype=np.intp)

    def __getitem__(self, number: int) -> int:
        index, position = divmod(number, self._n)
        if self._last[0] != index:
            self._last = index, np.random.default_rng((*self._seed, index)).permutation(self._n)
        return int(self._last[1][position])


@dataclass(frozen=True)
class SandwichSampling(MemberSampling):
    """The largest feasible member, the smallest and random ones in each step, on one batch and with one update.

    What lies between the two in size then works too, without training for each size. Teaching the others with the
    outputs of the largest one (in-place distillation) is not part of it: that needs outputs which are logits, and
    modules are free in what they compute.

    Parameters
    ----------
    random : int
        Random members of a step.
    profiler : Profiler, optional
        By whose cost members are large or small; the (first) profiler of the filter unless given.

    Notes
    -----
    Largest and smallest is meant among the feasible members. Where a `RangeProfilerFilter` of the same profiler cuts
    the extremes off, members are drawn that come as close to its end as a thousandth of the range of all costs. With
    another filter or several ranges they are the most extreme ones found by drawing beyond the most extreme one so far.

    References
    ----------
    Yu, Huang: Universally Slimmable Networks and Improved Training Techniques, ICCV 2019.
    Yu et al.: BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models, ECCV 2020.
    """

    random: int = 2
    profiler: Profiler | None = None

    def __post_init__(self) -> None:
        """Check the number of random members."""
        if self.random < 0:
            raise ValueError(f"SandwichSampling: random is {self.random}; expected at least 0")

    def plan(self, sampler: FeasibleSampler, seed: int) -> StepMembers:
        """Return the largest member, the smallest, and random ones for each step.

        Raises
        ------
        ValueError
            When there is no profiler, or it belongs to another space.
        BudgetError
            When no member is feasible.
        """
        profiler = profiler_of(sampler.filter) if self.profiler is None else self.profiler
        if profiler is None:
            raise ValueError(
                "sandwich sampling has no profiler that says which members are large. Give a filter with a profiler, "
                "or sampling=SandwichSampling(profiler=...), for example with a NumParamsProfiler"
            )
        cost_labels(profiler.cost_model, sampler.dimensions, "sandwich sampling")
        largest, smallest = (_extreme(sampler, profiler, seed, largest=which) for which in (True, False))

        def sandwich(step: int) -> list[Sample]:
            drawn = [sampler.sample(step * self.random + i) for i in range(self.random)]
            return [fresh(largest), fresh(smallest), *drawn]

        return StepMembers(2 + self.random, sandwich)


def _extreme(sampler: FeasibleSampler, profiler: Profiler, seed: int, *, largest: bool) -> Sample:
    """Return the feasible member with the largest or the smallest cost."""
    model = profiler.cost_model
    known = {label: values for label, values in model.domain.values.items() if label in sampler.dimensions}
    best = (model.maximum() if largest else model.minimum()).sample
    best = sampler.space.default(memo={label: best[label] for label in known})
    possible = all(sampler.dimensions[label].probability(best[label]) > 0 for label in known)
    if possible and sampler.accepts(best):
        return best
    return _drawn_extreme(sampler, model, np.random.default_rng((seed, 2)), largest=largest)


def _drawn_extreme(
    sampler: FeasibleSampler,
    model: CostModel,
    rng: np.random.Generator,
    *,
    largest: bool,
) -> Sample:
    """Draw members beyond the most extreme one so far, until there are none or hardly any is feasible."""
    farthest = max if largest else min
    best = farthest(map(sampler.sample, range(_DRAWS)), key=model.evaluate)
    ranges = [part for part in ranges_in(sampler.filter) if part.profiler.cost_model is model]
    others = [
        Range(part.profiler.cost_model, part.low, part.high)
        for part in ranges_in(sampler.filter)
        if part.profiler.cost_model is not model
    ]
    low = max((part.low for part in ranges if part.low is not None), default=None)
    high = min((part.high for part in ranges if part.high is not None), default=None)
    dimensions = sampler.dimensions
    weights = {  # keep values of weight 0 out
        label: [float(dimensions[label].probability(value) > 0) for value in values]
        for each in (Range(model), *others)
        for label, values in each.model.domain.values.items()
        if label in dimensions
    }
    enough = _TOLERANCE * (model.maximum().cost - model.minimum().cost)
    in_vain = 0
    while in_vain < _DRAWS_IN_VAIN:
        beyond = float(np.nextafter(model.evaluate(best), np.inf if largest else -np.inf))
        low, high = (beyond, high) if largest else (low, beyond)
        if low is not None and high is not None and high - low <= enough:
            break
        try:
            drawn = JointRanges([Range(model, low, high), *others]).sample(_DRAWS, rng, weights)
        except BudgetError:  # there is none
            break
        complete = [
            {label: each[label] if label in weights else dim.random_value(rng) for label, dim in dimensions.items()}
            for each in drawn
        ]
        accepted = list(itertools.compress(complete, sampler.accept_many(complete)))
        in_vain = 0 if accepted else in_vain + _DRAWS
        best = farthest([best, *accepted], key=model.evaluate)
    return best


def as_sampling(sampling: SamplingName | MemberSampling) -> MemberSampling:
    """Return the way of sampling that a name stands for.

    Raises
    ------
    ValueError
        When the name is another.
    """
    if isinstance(sampling, MemberSampling):
        return sampling
    named: dict[str, type[MemberSampling]] = {
        "uniform": UniformSampling,
        "fair": FairSampling,
        "sandwich": SandwichSampling,
    }
    if sampling not in named:
        raise ValueError(f"sampling is {sampling!r}; expected {', '.join(map(repr, named))} or a MemberSampling")
    return named[sampling]()
