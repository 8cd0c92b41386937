"""Draws from the part of a space that constraints and a filter allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hwnas.cost import BudgetSampler, JointRanges, Range
from hwnas.cost.domain import Domain
from hwnas.errors import BudgetError
from hwnas.profilers.filters import (
    FilterLike,
    ProfilerFilter,
    accept_many,
    as_filter,
    parts_of,
    quantile_of_confidence,
    ranges_in,
)
from hwnas.space import Mutable, Sample
from hwnas.space.sampling import fresh
from hwnas.strategies.cost_labels import cost_labels

Filter = ProfilerFilter | Callable[[Sample], bool]
AnyFilter = FilterLike

BLOCK = 64
"""Samples that are drawn together: dynamic programming over a budget is cheap for many at once."""

_QUICK_TRIES = 100


class FeasibleSampler:
    """An endless sequence of independent feasible samples: its n-th member depends on the seed and n only.

    Samples follow the weights of the labels, conditioned on the constraints and the filter. Within a
    `RangeProfilerFilter`, or several, they are drawn by dynamic programming; any other filter rejects.

    Parameters
    ----------
    space : Mutable
        The space.
    filter : callable, mapping, or sequence of these, optional
        A callable is true for samples that are wanted; a mapping is the dictionary form of
        `hwnas.profilers.filters.as_filter`; of a sequence all have to accept.
    weights : mapping of str to sequence of float, optional
        Weights of the values of labels, in the order of `grid_values`, in place of their own.
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
        self,
        space: Mutable,
        filter: AnyFilter | None = None,
        *,
        weights: Mapping[str, Sequence[float]] | None = None,
        seed: int = 0,
        max_tries: int = 10_000,
    ) -> None:
        self.space = space
        self.filter: Filter | None = as_filter(filter)
        self.max_tries = max_tries
        self._seed = seed
        self._structure = space.structure()
        self.dimensions = self._structure.dimensions
        self._block: tuple[int, list[Sample]] | None = None
        profiled = [part for part in parts_of(self.filter) if isinstance(part, ProfilerFilter)]
        for part in profiled:
            cost_labels(part.profiler.cost_model, self.dimensions, "filter")
        self._profilers = [part.profiler for part in profiled]
        self._weights = dict(weights or {})
        self._ranges = ranges_in(self.filter)
        self._together = any(quantile_of_confidence(part.confidence) for part in self._ranges)
        self._within: tuple[Domain, BudgetSampler] | None = None

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

    def accept_many(self, samples: Sequence[Sample]) -> list[bool]:
        """Tell for each sample whether it meets the filter and the constraints; errors are asked for together."""
        allowed = [i for i, sample in enumerate(samples) if self._structure.verdict(sample) is True]
        wanted = accept_many(self.filter, [samples[i] for i in allowed])
        accepted = {i for i, answer in zip(allowed, wanted, strict=True) if answer}
        return [i in accepted for i in range(len(samples))]

    def accepted(
        self, propose: Callable[[np.random.Generator], Sample], rng: np.random.Generator, tries: int
    ) -> Iterator[Sample]:
        """Yield the feasible ones of so many proposals.

        With a confidence level the error of a prediction is asked for, which costs hardly more for many members than
        for one. So proposals are made a few at a time then, the more the longer none is feasible. Whatever is made
        together, the samples and the state of the generator at each are as if it was one by one.

        Parameters
        ----------
        propose : callable
            Draws a sample by the generator alone.
        rng : numpy.random.Generator
            Of the proposals.
        tries : int
            How many proposals.
        """
        size = 1
        while tries > 0:
            proposed, states = [], []
            for _ in range(min(size, tries)):
                proposed.append(propose(rng))
                states.append(rng.bit_generator.state)
            for sample, state, feasible in zip(proposed, states, self.accept_many(proposed), strict=True):
                if feasible:
                    rng.bit_generator.state = state
                    yield sample
            rng.bit_generator.state = states[-1]
            tries -= len(proposed)
            size = min(2 * size, BLOCK) if self._together else 1

    def cost(self, sample: Sample) -> float | None:
        """Return the cost that the filter looks at, the first of several, in its unit; None without one."""
        return self._profilers[0].profile(sample) if self._profilers else None

    def _draw_block(self, index: int) -> list[Sample]:
        rng = np.random.default_rng((self._seed, index))
        found: list[Sample] = []
        rejected = 0
        while len(found) < BLOCK:
            proposed = self._propose(BLOCK - len(found), rng)
            for sample, accepted in zip(proposed, self.accept_many(proposed), strict=True):
                if accepted:
                    found.append(sample)
                    rejected = 0
                else:
                    rejected += 1
            if rejected >= self.max_tries:
                raise BudgetError(f"the filter {self.filter!r} rejected {rejected} {self._advice(sample)}")
        return found

    def _advice(self, rejected: Sample) -> str:
        if not self._ranges:
            return (
                "random samples in a row. Loosen it, or use RangeProfilerFilter(profiler, min=..., max=...), which "
                "draws within its range and does not reject"
            )
        costs = [f"{profiler.name} {profiler.profile(rejected):g}" for profiler in self._profilers]
        return (
            f"samples in a row that lie within {', '.join(map(repr, self._ranges))}, so hardly any member meets all "
            f"at once, if one does; the last had {', '.join(costs)}. Loosen one of them"
        )

    def _propose(self, n: int, rng: np.random.Generator) -> list[Sample]:
        if not self._ranges:
            return [self._unfiltered(rng) for _ in range(n)]
        if self._within is None:
            joint = JointRanges([Range(part.profiler.cost_model, part.low, part.high) for part in self._ranges])
            weights = {
                label: self._weights.get(label) or [self.dimensions[label].probability(value) for value in values]
                for label, values in joint.domain.values.items()
                if label in self.dimensions
            }
            self._within = joint.domain, joint.sampler(weights)
        domain, sampler = self._within
        within = [domain.sample(row) for row in sampler.draw(n, rng).tolist()]
        if all(label in domain.values for label in self.dimensions):
            return [{label: sample[label] for label in self.dimensions} for sample in within]
        # Dimensions without listed values are not part of the cost.
        return [self.space.random(memo=sample, random_state=rng) for sample in within]

    def _unfiltered(self, rng: np.random.Generator) -> Sample:
        for _ in range(_QUICK_TRIES):
            sample = {str(label): self._value(str(label), rng) for label in self.dimensions}
            if self._structure.verdict(sample) is True:
                return sample
        return self.space.random(random_state=rng)

    def _value(self, label: str, rng: np.random.Generator) -> Any:
        dimension, weights = self.dimensions[label], self._weights.get(label)
        if weights is None:
            return dimension.random_value(rng)
        values = list(dimension.grid_values())
        return values[rng.choice(len(values), p=np.divide(weights, sum(weights)))]
