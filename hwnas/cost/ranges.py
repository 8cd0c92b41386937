"""Several costs at once: draws and counts of the members that have each of them within a range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from hwnas.cost.bounded import Bounded
from hwnas.cost.counting import Count, count_within
from hwnas.cost.domain import Domain
from hwnas.cost.intermediate import closure
from hwnas.cost.model import CostModel, Sample
from hwnas.cost.sampler import BudgetSampler


@dataclass(frozen=True)
class Range:
    """A cost and the range in which it has to be.

    Parameters
    ----------
    model : CostModel
        The cost.
    low, high : float, optional
        The range, in the unit of the model; both ends belong to it.
    """

    model: CostModel
    low: float | None = None
    high: float | None = None


class JointRanges:
    """The members of a space that have several costs within ranges.

    Where one cost is bounded, `CostModel.sample_within` and `CostModel.count_within` do the same.

    Parameters
    ----------
    ranges : sequence of Range
        At least one. The models are of one space: labels that several of them have, have the same values in all.
        The constraints of all are honoured.

    Raises
    ------
    ValueError
        If there is no range, a range is empty, or models disagree about the values of a label.

    Examples
    --------
    >>> from hwnas.cost import CostModel, Factor
    >>> domain = {"width": [8, 16, 32], "kernel": [3, 5]}
    >>> time = CostModel(domain, [Factor.outer({"width": [1, 2, 4], "kernel": [1, 1.5]})], unit="ms")
    >>> size = CostModel(domain, [Factor.outer({"width": [8, 16, 32], "kernel": [9, 25]})], unit="bytes")
    >>> both = JointRanges([Range(time, high=3), Range(size, low=150, high=400)])
    >>> both.count().value
    2
    >>> sorted((sample["width"], sample["kernel"]) for sample in both.sample(100))[::99]
    [(8, 5), (16, 5)]
    """

    def __init__(self, ranges: Sequence[Range]) -> None:
        if not ranges:
            raise ValueError("there is no range; give at least one, such as Range(model, high=3.0)")
        self.ranges = tuple(ranges)
        self.domain: Domain = reduce(Domain.union, (each.model.domain for each in ranges))
        constraints = list(dict.fromkeys(factor for each in ranges for factor in each.model.constraints))
        intermediates = list(closure(part for each in ranges for part in each.model.intermediates).values())
        self._bounded = [
            Bounded.of(each.model._compile(self.domain, intermediates, constraints), each.low, each.high)
            for each in ranges
        ]

    def sampler(self, weights: Mapping[str, Sequence[float]] | None = None) -> BudgetSampler:
        """Give what draws option indices, in the order of the labels of `domain`; keep it to draw several times.

        Parameters
        ----------
        weights : mapping of str to sequence of float, shape (n_label,), optional
            Prior weights of the options. Labels left out are uniform.

        Raises
        ------
        BudgetError
            If no member is within all ranges; names the nearest reachable costs.
        """
        return BudgetSampler(self._bounded, weights)

    def sample(
        self, n: int = 1, seed: int | np.random.Generator = 0, weights: Mapping[str, Sequence[float]] | None = None
    ) -> list[Sample]:
        """Draw members independently from the prior, conditioned on the ranges and the constraints.

        Parameters
        ----------
        n : int
            How many.
        seed : int or numpy.random.Generator
            The source of randomness.
        weights : mapping of str to sequence of float, shape (n_label,), optional
            Prior weights of the options. Labels left out are uniform.

        Raises
        ------
        BudgetError
            If no member is within all ranges; names the nearest reachable costs.
        """
        return [self.domain.sample(row) for row in self.sampler(weights).draw(n, seed).tolist()]

    def count(self) -> Count:
        """Count the members; see `hwnas.cost.counting.count_within` for when the count is exact."""
        return count_within(self._bounded)
