"""Draws from the part of a space that constraints and a filter allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hwnas.errors import BudgetError
from hwnas.profilers.filters import ProfilerFilter, RangeProfilerFilter, as_filter
from hwnas.space import Mutable, Sample
from hwnas.space.sampling import fresh
from hwnas.strategies.cost_labels import cost_labels

Filter = ProfilerFilter | Callable[[Sample], bool]
AnyFilter = Filter | Mapping[str, Any]

BLOCK = 64
"""Samples that are drawn together: dynamic programming over a budget is cheap for many at once."""

_QUICK_TRIES = 100


class FeasibleSampler:
    """An endless sequence of independent feasible samples: its n-th member depends on the seed and n only.

    Samples follow the weights of the labels, conditioned on the constraints and the filter. Within a
    `RangeProfilerFilter` they are drawn by dynamic programming; any other filter rejects.

    Parameters
    ----------
    space : Mutable
        The space.
    filter : ProfilerFilter, callable or mapping, optional
        A callable is true for samples that are wanted; a mapping is the dictionary form of
        `hwnas.profilers.filters.as_filter`.
    seed : int
        At least 0.
    max_tries : int
        How many samples a filter may reject in a row.

    Raises
    ------
    ValueError
        When the profiler of the filter does not belong to the space.
    """

    def __init__(
        self, space: Mutable, filter: AnyFilter | None = None, *, seed: int = 0, max_tries: int = 10_000
    ) -> None:
        self.space = space
        self.filter: Filter | None = as_filter(filter) if isinstance(filter, Mapping) else filter
        self.max_tries = max_tries
        self._seed = seed
        self._structure = space.structure()
        self.dimensions = self._structure.dimensions
        self._block: tuple[int, list[Sample]] | None = None
        if isinstance(self.filter, ProfilerFilter):
            cost_labels(self.filter.profiler.cost_model, self.dimensions, "filter")
        self._weights: dict[str, list[float]] = {}
        if isinstance(self.filter, RangeProfilerFilter):
            domain = self.filter.profiler.cost_model.domain.values
            self._weights = {
                label: [self.dimensions[label].probability(value) for value in values]
                for label, values in domain.items()
                if label in self.dimensions
            }

    def sample(self, number: int) -> Sample:
        """Return the sample of a number, a new dictionary.

        Raises
        ------
        BudgetError
            When nothing feasible was found.
        """
        index, position = divmod(number, BLOCK)
        if self._block is None or self._block[0] != index:
            self._block = index, self._draw_block(index)
        return fresh(self._block[1][position])

    def first(self) -> Sample:
        """Return the default sample where it is feasible, else the first of the sequence."""
        sample = self.space.default()
        return sample if self.accepts(sample) else self.sample(0)

    def accepts(self, sample: Sample) -> bool:
        """Tell whether a sample meets the filter and the constraints."""
        return self._structure.verdict(sample) is True and (self.filter is None or bool(self.filter(sample)))

    def cost(self, sample: Sample) -> float | None:
        """Return the cost that the filter looks at, in its unit; None without one."""
        return self.filter.profiler.profile(sample) if isinstance(self.filter, ProfilerFilter) else None

    def _draw_block(self, index: int) -> list[Sample]:
        rng = np.random.default_rng((self._seed, index))
        found: list[Sample] = []
        rejected = 0
        while len(found) < BLOCK:
            for sample in self._propose(BLOCK - len(found), rng):
                if self.accepts(sample):
                    found.append(sample)
                    rejected = 0
                else:
                    rejected += 1
            if rejected >= self.max_tries:
                raise BudgetError(
                    f"the filter {self.filter!r} rejected {rejected} random samples in a row. Loosen it, or "
                    "use RangeProfilerFilter(profiler, min=..., max=...), which draws within its range and "
                    "does not reject"
                )
        return found

    def _propose(self, n: int, rng: np.random.Generator) -> list[Sample]:
        if not isinstance(self.filter, RangeProfilerFilter):
            return [self._unfiltered(rng) for _ in range(n)]
        model = self.filter.profiler.cost_model
        within = model.sample_within(self.filter.min, self.filter.max, n=n, seed=rng, weights=self._weights)
        if all(label in model.domain.values for label in self.dimensions):
            return [{label: sample[label] for label in self.dimensions} for sample in within]
        # Dimensions without listed values are not part of the cost.
        return [self.space.random(memo=sample, random_state=rng) for sample in within]

    def _unfiltered(self, rng: np.random.Generator) -> Sample:
        for _ in range(_QUICK_TRIES):
            sample = {str(label): dimension.random_value(rng) for label, dimension in self.dimensions.items()}
            if self._structure.verdict(sample) is True:
                return sample
        return self.space.random(random_state=rng)
