"""How many members of a space have costs within ranges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.cost.aim import Aim, NothingError, aims_at, aims_regardless
from hwnas.cost.bounded import Bounded, bound_labels, fill, loose_labels, member_rows, within_all
from hwnas.cost.draws import ENUMERATION_LIMIT
from hwnas.cost.histograms import LEVELS, TooManyError, Window, resolutions
from hwnas.cost.lattice import FloatArray
from hwnas.errors import UnsupportedError

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


def count_within(ranges: Sequence[Bounded]) -> Count:
    """Count the assignments of all labels that satisfy the constraints and have every cost within its range.

    Exact when all costs are whole numbers with common divisors that are not tiny (for one cost: a 65,000th of
    the range or more), and whenever the members close to the ends of the ranges are few enough to list; both up
    to 2**53 members, not counting labels without a factor. Otherwise the bounds hold, and the value between them
    is estimated from draws; wide bounds where the costs tie too many labels to each other for a path.

    Parameters
    ----------
    ranges : sequence of Bounded
        Costs over one domain with the same constraints, and their ranges.
    """
    first = ranges[0].model
    bound = bound_labels(ranges)
    free = math.prod(size for label, size in enumerate(first.sizes) if label not in bound)
    uniform = [np.ones(size) for size in first.sizes]
    try:
        aims = aims_at(ranges, uniform)
    except NothingError:
        return Count(0, 0, 0)
    except UnsupportedError:
        return _from_draws(ranges, uniform, free)
    lattices = [aim.lattice for aim in aims]
    asked = [(aim.low, aim.high) for aim in aims]
    count = Count(0, 0, 0)
    for histograms in resolutions(lattices, [aim.span for aim in aims], _levels(aims)):
        wide, sure = histograms.window(asked), histograms.window(asked, sure=True)
        certain = histograms.weight(sure)
        doubtful = 0.0
        lower, upper, value = certain, certain, certain
        for window in _shell(wide, sure):
            members = histograms.weight(window)
            if members == 0.0:
                continue
            try:
                choices = histograms.enumerate(window, ENUMERATION_LIMIT).choices
                listed = True
            except TooManyError:
                choices = histograms.draw(window, _DRAWS, np.random.default_rng(0))
                listed = False
            rows = member_rows(lattices[0].steps, len(first.labels), choices)
            within = float(np.count_nonzero(within_all(ranges, rows)))
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


def _from_draws(ranges: Sequence[Bounded], uniform: Sequence[FloatArray], free: int) -> Count:
    """Count what the constraints allow, and estimate from draws how much of it is within ranges."""
    first = ranges[0].model
    try:
        aims = aims_regardless(ranges, uniform)
    except NothingError:
        return Count(0, 0, 0)
    lattice = aims[0].lattice
    histograms = next(resolutions([lattice], [aims[0].span], (2,)))
    window = histograms.window([(aims[0].low, aims[0].high)])
    loose = loose_labels(ranges, lattice.steps)
    total = histograms.weight(window) * math.prod(first.sizes[p] for p in loose)
    rng = np.random.default_rng(0)
    rows = member_rows(lattice.steps, len(first.labels), histograms.draw(window, _DRAWS, rng))[:, : first.n_labels]
    fill(rows, loose, uniform, rng)
    within = within_all(ranges, rows)
    seen, unwanted = (len(np.unique(rows[which], axis=0)) for which in (within, ~within))
    value = min(max(total * float(within.mean()), seen), total - unwanted)
    return Count(free * round(value), free * seen, free * _rounded(total - unwanted, 1))


def _levels(aims: Sequence[Aim]) -> tuple[int, ...]:
    """Give the resolutions to try: at once the exact one where that is in reach."""
    if aims[0].covers_all:
        return (2,)
    cells = 1
    for aim in aims:
        common = aim.lattice.common_step(aim.span)
        cells *= LEVELS[-1] + 1 if common is None else math.ceil(aim.span / common) + 2
    return (cells,) if cells <= LEVELS[-1] else LEVELS[: 2 if len(aims) == 1 else None]


def _shell(wide: Window, sure: Window) -> Iterator[Window]:
    """Divide what a window has more than one inside it into windows."""
    if any(first >= last for first, last in sure):
        sure = ((wide[0][0], wide[0][0]), *wide[1:])  # nothing is sure
    for k, ((first, last), (inner_first, inner_last)) in enumerate(zip(wide, sure, strict=True)):
        for part in ((first, inner_first), (inner_last, last)):
            yield (*sure[:k], part, *wide[k + 1 :])


def _rounded(number: float, direction: int) -> int:
    return round(number if number < _EXACT_FLOAT else number * (1 + direction * _ROUNDING))
