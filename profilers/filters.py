"""Filters: which samples a strategy may look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hwnas.profilers.profiler import Profiler
from hwnas.space import Sample


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

    Parameters
    ----------
    profiler : Profiler
        Gives the cost.
    min, max : float, optional
        The range, in the unit of the profiler. At least one end is given.

    Raises
    ------
    ValueError
        When no end is given, or the range is empty.
    BudgetError
        When no member of the space lies within the range; it names the nearest reachable cost and what blocks it.
    """

    def __init__(self, profiler: Profiler, min: float | None = None, max: float | None = None) -> None:
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
        profiler.cost_model.sample_within(min, max)  # raises when nothing is feasible

    def accepts(self, cost: float) -> bool:
        """Tell whether a cost lies within the range."""
        return (self.min is None or cost >= self.min) and (self.max is None or cost <= self.max)

    def __repr__(self) -> str:
        """Show the range and its cost."""
        ends = [f"{name}={value:g}" for name, value in (("min", self.min), ("max", self.max)) if value is not None]
        return f"RangeProfilerFilter({self.profiler.name}, {', '.join(ends)})"


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
        self.filters = tuple(filters)

    def __call__(self, sample: Sample) -> bool:
        """Tell whether a sample is acceptable."""
        return all(accepts(sample) for accepts in self.filters)

    def __repr__(self) -> str:
        """Show the filters."""
        return f"AllOf({', '.join(map(repr, self.filters))})"


def parts_of(filter: Callable[[Sample], bool] | None) -> tuple[Callable[[Sample], bool], ...]:
    """Return the filters that all have to accept; none where there is no filter."""
    if isinstance(filter, AllOf):
        return filter.filters
    return () if filter is None else (filter,)


def ranges_in(filter: Callable[[Sample], bool] | None) -> tuple[RangeProfilerFilter, ...]:
    """Return the ranges of which a filter consists, besides whatever else it does."""
    return tuple(part for part in parts_of(filter) if isinstance(part, RangeProfilerFilter))


def as_filter(filter: ProfilerFilter | Mapping[str, Any]) -> ProfilerFilter:
    """Make a filter of the dictionary form, ``{"profiler": …, "min": …, "max": …}``.

    Raises
    ------
    ValueError
        When the dictionary has no profiler or keys that are not known.
    """
    if not isinstance(filter, Mapping):
        return filter
    unknown = set(filter) - {"profiler", "min", "max"}
    if unknown or "profiler" not in filter:
        raise ValueError(
            f"a filter is a dictionary with `profiler` and `min` or `max`; got the keys {sorted(map(str, filter))}"
        )
    return RangeProfilerFilter(**filter)
