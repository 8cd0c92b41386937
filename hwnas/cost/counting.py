"""How many members of a space cost something within a range."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hwnas.cost.compiled import Compiled
from hwnas.cost.lattice import FloatArray, Lattice, TooManyError
from hwnas.cost.nearest import ENUMERATION_LIMIT, LEVELS, member_rows, resolutions

# Members whose side of the border is not known are judged by this many draws when they are too many to list.
_DRAWS = 8192
# Up to here float64 counts without rounding.
_EXACT_FLOAT = 2**53
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Count:
    """A number of members, with bounds.

    Parameters
    ----------
    value : int
        The number, or its estimate.
    lower, upper : int
        The number lies between them, ends included.
    """

    value: int
    lower: int
    upper: int

    @property
    def exact(self) -> bool:
        """Whether `value` is the number itself."""
        return self.lower == self.upper


def count_within(model: Compiled, low: float, high: float) -> Count:
    """Count the assignments of all labels that satisfy the constraints and cost between `low` and `high`.

    Exact when all costs are whole numbers with a common divisor that is not tiny (a 65,000th of the range or
    more), and whenever the members close to the ends of the range are few enough to list; both up to 2**53
    members, not counting labels without a factor. Otherwise the bounds hold, and the value between them is
    estimated from draws.
    """
    free = math.prod(model.sizes[label] for label in model.free_labels)
    ones: list[FloatArray] = [np.ones(size) for size in model.sizes]
    lattices = [Lattice(model.path, ones, model.constant, sign) for sign in (1, -1)]
    if not (model.feasible and math.isfinite(lattices[0].minimum)):
        return Count(0, 0, 0)
    smallest, largest = lattices[0].minimum, -lattices[1].minimum
    up, down = min(high, largest) - smallest, largest - max(low, smallest)
    lattice, span = (lattices[0], up) if up <= down else (lattices[1], down)
    if lattice.sign < 0:
        low, high = -high, -low
    if low > high or span < -lattice.slack:
        return Count(0, 0, 0)
    count = Count(0, 0, 0)
    covered = low <= lattice.minimum - lattice.slack and high >= lattice.maximum + lattice.slack
    levels: tuple[int, ...] = (2,) if covered else LEVELS[:2]
    common = lattice.common_step(span)
    if common is not None and (bins := math.ceil(span / common) + 2) <= LEVELS[-1] and not covered:
        levels = (bins,)
    for histograms in resolutions(lattice, span, levels):
        wide, sure = histograms.window(low, high), histograms.window(low, high, sure=True)
        if sure[0] >= sure[1]:
            sure = (wide[0], wide[0])
        certain = histograms.weight(*sure)
        doubtful = 0.0
        lower, upper, value = certain, certain, certain
        for first, last in ((wide[0], sure[0]), (sure[1], wide[1])):
            members = histograms.weight(first, last)
            if members == 0.0:
                continue
            try:
                choices = histograms.enumerate(first, last, ENUMERATION_LIMIT).choices
                listed = True
            except TooManyError:
                choices = histograms.draw(first, last, _DRAWS, np.random.default_rng(0))
                listed = False
            costs = lattice.sign * model.evaluate(member_rows(model, choices))
            within = float(np.count_nonzero((costs >= low) & (costs <= high)))
            if listed:
                lower, upper, value = lower + within, upper + within, value + within
            else:
                upper += members
                value += within / _DRAWS * members
                doubtful += members
        count = Count(free * round(value), free * _rounded(lower, -1), free * _rounded(upper, 1))
        if doubtful <= 0.01 * certain:
            break
    return count


def _rounded(number: float, direction: int) -> int:
    return round(number if number < _EXACT_FLOAT else number * (1 + direction * _ROUNDING))
