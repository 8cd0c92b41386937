"""Resolutions for the dynamic programming over costs, and the reachable costs next to a range."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from hwnas.cost.compiled import Compiled
from hwnas.cost.lattice import Histograms, IndexArray, Lattice, TooManyError

#: Resolutions that are tried in turn, in bins over the interesting range of costs.
LEVELS = (1024, 8192, 65536)
#: Sets of this many members are listed rather than drawn from.
ENUMERATION_LIMIT = 50_000
_DRAWS = 4096


def resolutions(lattice: Lattice, span: float, levels: Sequence[int] = LEVELS) -> Iterator[Histograms]:
    """Give histograms of the excesses up to `span`, finer and finer while that helps and is affordable.

    Where all excesses are multiples of one number, bins of that width are exact and the last.
    """
    span = max(span, 0.0)
    common = lattice.common_step(span)
    extent = max(span, lattice.slack) or 1.0
    for level in levels:
        bins = level
        while level == levels[0] and bins > 2 and not lattice.affordable(span, extent / (bins - 1)):
            bins //= 2
        step = extent / (bins - 1)
        exact = common is not None and common >= step
        if common is not None and exact:
            step = common
        if level != levels[0] and not lattice.affordable(span, step):
            return
        yield Histograms(lattice, span, step)
        if exact:
            return


def member_rows(model: Compiled, choices: IndexArray) -> IndexArray:
    """Turn choices of the path's steps, shape (n, n_steps), into option indices, shape (n, n_labels).

    Labels outside the path get option 0.
    """
    rows = np.zeros((len(choices), len(model.labels)), dtype=np.intp)
    for i, step in enumerate(model.path):
        rows[:, step.labels] = step.options[choices[:, i]]
    return rows


def reachable_neighbours(
    model: Compiled, rising: Lattice, falling: Lattice, low: float, high: float
) -> tuple[float, float]:
    """Give the largest reachable cost below `low` and the smallest above `high`.

    Exact where the members close to the range can be listed; otherwise the best of many draws.

    Parameters
    ----------
    model : Compiled
        The cost.
    rising, falling : Lattice
        The lattices of the cost with signs 1 and -1.
    low, high : float
        A range without members, between the minimum and the maximum.
    """
    if high - rising.minimum <= -falling.minimum - low:
        return _neighbour(model, rising, low, -1), _neighbour(model, rising, high, 1)
    return -_neighbour(model, falling, -low, 1), -_neighbour(model, falling, -high, -1)


def _neighbour(model: Compiled, lattice: Lattice, bound: float, direction: int) -> float:
    """Give the reachable cost (with the lattice's sign) next to `bound`, above it (1) or below it (-1)."""
    full = lattice.maximum - lattice.minimum
    near = bound - lattice.minimum
    spans = [near] if direction < 0 else [min(4 * near, full), full]
    for span in spans:
        for histograms in resolutions(lattice, span, LEVELS[:2]):
            try:
                found = _listed(model, histograms, bound, direction)
            except TooManyError:
                found = _drawn(model, histograms, bound, direction)
                continue
            break
        if found is not None:
            return found
    return math.inf * direction


def _listed(model: Compiled, histograms: Histograms, bound: float, direction: int) -> float | None:
    mass = histograms.mass[0][0]
    best: float | None = None
    for bin_ in _outward(histograms, bound, direction):
        # Bins further out hold only members that are further away than the best one.
        if best is not None:
            inside = histograms.window(bound, best) if direction > 0 else histograms.window(best, bound)
            if not inside[0] <= bin_ < inside[1]:
                break
        if mass[bin_] == 0.0:
            continue
        choices = histograms.enumerate(bin_, bin_ + 1, ENUMERATION_LIMIT).choices
        best = _closest(model, histograms.lattice, choices, bound, direction, best)
    return best


def _drawn(model: Compiled, histograms: Histograms, bound: float, direction: int) -> float | None:
    bins = list(_outward(histograms, bound, direction))
    width = 2
    rng = np.random.default_rng(0)
    while True:
        first, last = min(bins[:width]), max(bins[:width]) + 1
        if histograms.weight(first, last) > 0.0:
            best = _closest(
                model, histograms.lattice, histograms.draw(first, last, _DRAWS, rng), bound, direction, None
            )
            if best is not None or width >= len(bins):
                return best
        elif width >= len(bins):
            return None
        width *= 2


def _outward(histograms: Histograms, bound: float, direction: int) -> range:
    if direction > 0:
        return range(histograms.window(bound, math.inf)[0], histograms.bins)
    return range(histograms.window(-math.inf, bound)[1] - 1, -1, -1)


def _closest(
    model: Compiled, lattice: Lattice, choices: IndexArray, bound: float, direction: int, best: float | None
) -> float | None:
    costs = lattice.sign * model.evaluate(member_rows(model, choices))
    costs = costs[direction * costs > direction * bound]
    candidates = costs.tolist() + ([] if best is None else [best])
    return min(candidates, key=lambda cost: abs(cost - bound), default=None)
