"""Filters: which samples a strategy may look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

from hwnas.errors import BudgetError
from hwnas.profilers.profiler import Profiler
from hwnas.space import Sample

FilterLike = Callable[[Sample], bool] | Mapping[str, Any] | Sequence[Callable[[Sample], bool] | Mapping[str, Any]]


_ROUNDING = 1 + 1e-9


class ProfilerFilter:
    """Accepts samples by their cost. Subclasses implement `accepts`.

    Parameters
    ----------
    profiler : Profiler
        Gives the cost.
    """

    def __init__(self, profiler: Profiler) -> None:
        self.profiler = profiler

    def accepts(self, cost: float) -> bool:
        """Tell whether a cost, in the unit of the profiler, is acceptable."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it accepts (accepts)")

    def __call__(self, sample: Sample) -> bool:
        """Tell whether a sample is acceptable."""
        return self.accepts(self.profiler.profile(sample))


class RangeProfilerFilter(ProfilerFilter):
    """Accepts samples whose cost lies within a range, both ends included.

    Strategies do not have to reject: they draw inside the range with `CostModel.sample_within`.

    Costs that are predicted have an error. With a confidence level the cost has to meet each end with at least that
    probability, under a normal distribution with the standard deviation that the profiler gives: the predicted cost
    keeps ``quantile(confidence) * stderr`` away from the end. Where the error is relative to the cost, as that of a
    calibrated `OnnxRuntimeLatencyProfiler`, that shifts the ends by constant factors, ``max / (1 + z * relative)`` and
    ``min / (1 - z * relative)``, so draws still need no rejection. Where it differs between members its least value
    does, and the few draws that have a larger one are rejected. Costs that are counted have no error.

    Parameters
    ----------
    profiler : Profiler
        Gives the cost.
    min, max : float, optional
        The range, in the unit of the profiler. At least one end is given.
    confidence : float, optional
        Least probability of each end, 0.5 <= confidence < 1. Without it predictions count as they are, which is a
        confidence of 0.5.

    Attributes
    ----------
    low, high : float or None
        The range that the predicted cost of every accepted member lies in.

    Raises
    ------
    ValueError
        When no end is given, the range is empty, the confidence is out of its range, or the profiler does not know its
        error.
    BudgetError
        When no member of the space lies within the range; it names the nearest reachable cost and what blocks it.
    """

    def __init__(
        self,
        profiler: Profiler,
        min: float | None = None,
        max: float | None = None,
        confidence: float | None = None,
    ) -> None:
        super().__init__(profiler)
        if min is None and max is None:
            raise ValueError("RangeProfilerFilter: give `min`, `max`, or both")
        for name, value in (("min", min), ("max", max)):
            if value is not None and math.isnan(value):
                raise ValueError(f"RangeProfilerFilter: {name} is {value}; expected a number in {profiler.unit}")
        if min is not None and max is not None and min > max:
            raise ValueError(f"RangeProfilerFilter: min ({min}) is greater than max ({max})")
        self.min = min
        self.max = max
        self.confidence = confidence
        self._quantile = quantile_of_confidence(confidence)
        self._least = profiler.least_relative_stderr if self._quantile else 0.0
        self.low, self.high = self._shifted()
        profiler.cost_model.sample_within(self.low, self.high)  # raises when nothing is feasible

    def __call__(self, sample: Sample) -> bool:
        """Tell whether a sample is acceptable, by its own error where there is a confidence level."""
        return self.accept_many([sample])[0]

    def accept_many(self, samples: Sequence[Sample]) -> list[bool]:
        """Tell which samples are acceptable, by their own errors where there is a confidence level."""
        costs = [self.profiler.profile(sample) for sample in samples]
        accepted = [self.accepts(cost) for cost in costs]
        asked = [i for i, accepts in enumerate(accepted) if accepts] if self._quantile else []
        errors: list[float] = self.profiler.stderrs([samples[i] for i in asked]).tolist() if asked else []
        for i, stderr in zip(asked, errors, strict=True):
            if stderr > self._least * abs(costs[i]) * _ROUNDING:  # otherwise that is what the ends are shifted by
                margin = self._quantile * stderr
                accepted[i] = _within(costs[i] - margin, costs[i] + margin, self.min, self.max)
        return accepted

    def accepts(self, cost: float) -> bool:
        """Tell whether a cost that is predicted with the least error lies within the range."""
        return _within(cost, cost, self.low, self.high)

    def _shifted(self) -> tuple[float | None, float | None]:
        if not self._quantile:
            return self.min, self.max
        relative = self._quantile * self._least
        if math.isnan(relative):
            raise ValueError(
                f"RangeProfilerFilter: a confidence of {self.confidence} needs the error of {self.profiler.name}, "
                "which its profiler does not know. Calibrate it on whole members, or leave the confidence out"
            )
        if self.min is not None and self.min > 0 and relative >= 1:
            raise BudgetError(
                f"no cost is at least {self.min:g} {self.profiler.unit} with a confidence of {self.confidence}: the "
                f"error is {self._least:.3g} of the cost. Lower the confidence",
            )
        # A limit of the other sign than that of costs is met by all of them or by none, whatever their error.
        low = self.min if self.min is None or self.min <= 0 else self.min / (1 - relative)
        high = self.max if self.max is None or self.max <= 0 else self.max / (1 + relative)
        if low is not None and high is not None and low > high:
            raise BudgetError(
                f"no cost lies within {self!r}: with that confidence it would have to be predicted as at least {low:g} "
                f"and at most {high:g}. Widen the range or lower the confidence"
            )
        return low, high

    def __repr__(self) -> str:
        """Show the range, its cost and the confidence."""
        given = (("min", self.min), ("max", self.max), ("confidence", self.confidence))
        ends = [f"{name}={value:g}" for name, value in given if value is not None]
        return f"RangeProfilerFilter({self.profiler.name}, {', '.join(ends)})"


def quantile_of_confidence(confidence: float | None) -> float:
    """Return the quantile of the standard normal distribution of a confidence level; 0 where there is none.

    Raises
    ------
    ValueError
        When it is below 0.5, or not below 1.
    """
    if confidence is None:
        return 0.0
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence is {confidence}; expected at least 0.5 and less than 1, such as 0.9")
    return NormalDist().inv_cdf(confidence)


def _within(lowest: float, highest: float, low: float | None, high: float | None) -> bool:
    return (low is None or lowest >= low) and (high is None or highest <= high)


class AllOf:
    """Accepts what several filters all accept.

    Strategies draw inside all the ranges among them, and reject by the other filters; see
    `hwnas.strategies.feasible.FeasibleSampler`.

    Parameters
    ----------
    filters : sequence of callable
        Each is true for samples that are acceptable.
    """

    def __init__(self, filters: Sequence[Callable[[Sample], bool]]) -> None:
        self.filters = tuple(part for filter in filters for part in parts_of(filter))

    def __call__(self, sample: Sample) -> bool:
        """Tell whether a sample is acceptable."""
        return all(accepts(sample) for accepts in self.filters)

    def __repr__(self) -> str:
        """Show the filters."""
        return f"AllOf({', '.join(map(repr, self.filters))})"


def accept_many(filter: Callable[[Sample], bool] | None, samples: Sequence[Sample]) -> list[bool]:
    """Tell which samples a filter accepts; its ranges are asked for all of them at once."""
    accepted = [True] * len(samples)
    for part in parts_of(filter):
        left = [i for i, still in enumerate(accepted) if still]
        asked = [samples[i] for i in left]
        answers = part.accept_many(asked) if isinstance(part, RangeProfilerFilter) else map(part, asked)
        for i, answer in zip(left, answers, strict=True):
            accepted[i] = bool(answer)
    return accepted


def parts_of(filter: Callable[[Sample], bool] | None) -> tuple[Callable[[Sample], bool], ...]:
    """Return the filters that all have to accept; none where there is no filter."""
    if isinstance(filter, AllOf):
        return filter.filters
    return () if filter is None else (filter,)


def ranges_in(filter: Callable[[Sample], bool] | None) -> tuple[RangeProfilerFilter, ...]:
    """Return the ranges of which a filter consists, besides whatever else it does."""
    return tuple(part for part in parts_of(filter) if isinstance(part, RangeProfilerFilter))


def profiler_of(filter: Callable[[Sample], bool] | None) -> Profiler | None:
    """Return the profiler of a filter, the first of several; None where it has none."""
    return next((part.profiler for part in parts_of(filter) if isinstance(part, ProfilerFilter)), None)


def as_filter(filter: FilterLike | None) -> Callable[[Sample], bool] | None:
    """Make a filter of whatever stands for one.

    Parameters
    ----------
    filter : callable, mapping, sequence of these, or None
        A mapping has the arguments of `RangeProfilerFilter`: ``{"profiler": …, "min": …, "max": …, "confidence": …}``.
        What is in a sequence has to accept all together.

    Returns
    -------
    callable or None
        None where there is nothing to accept.

    Raises
    ------
    ValueError
        When a mapping has no profiler or keys that are not known.
    """
    if isinstance(filter, Mapping):
        unknown = set(filter) - {"profiler", "min", "max", "confidence"}
        if unknown or "profiler" not in filter:
            raise ValueError(
                "a filter is a dictionary with `profiler`, `min` or `max`, and perhaps `confidence`; got the keys "
                f"{sorted(map(str, filter))}"
            )
        return RangeProfilerFilter(**filter)
    if isinstance(filter, Sequence):
        parts = [part for each in filter for part in parts_of(as_filter(each))]
        return None if not parts else parts[0] if len(parts) == 1 else AllOf(parts)
    return filter
