"""The reachable costs next to a range."""

from __future__ import annotations

import math

import numpy as np

from hwnas.cost.bounded import member_rows
from hwnas.cost.compiled import Compiled
from hwnas.cost.draws import ENUMERATION_LIMIT
from hwnas.cost.histograms import LEVELS, Histograms, TooManyError, resolutions
from hwnas.cost.lattice import IndexArray, Lattice

_DRAWS = 4096


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
        for histograms in resolutions([lattice], [span], LEVELS[:2]):
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
    best: float | None = None
    for bin_ in _outward(histograms, bound, direction):
        # Bins further out hold only members that are further away than the best one.
        if best is not None:
            ((first, last),) = histograms.window([(bound, best) if direction > 0 else (best, bound)])
            if not first <= bin_ < last:
                break
        window = ((bin_, bin_ + 1),)
        if histograms.weight(window) == 0.0:
            continue
        choices = histograms.enumerate(window, ENUMERATION_LIMIT).choices
        best = _closest(model, histograms.lattices[0], choices, bound, direction, best)
    return best


def _drawn(model: Compiled, histograms: Histograms, bound: float, direction: int) -> float | None:
    bins = list(_outward(histograms, bound, direction))
    width = 2
    rng = np.random.default_rng(0)
    while True:
        window = ((min(bins[:width]), max(bins[:width]) + 1),)
        if histograms.weight(window) > 0.0:
            choices = histograms.draw(window, _DRAWS, rng)
            best = _closest(model, histograms.lattices[0], choices, bound, direction, None)
            if best is not None or width >= len(bins):
                return best
        elif width >= len(bins):
            return None
        width *= 2


def _outward(histograms: Histograms, bound: float, direction: int) -> range:
    if direction > 0:
        return range(histograms.window([(bound, math.inf)])[0][0], histograms.bins[0])
    return range(histograms.window([(-math.inf, bound)])[0][1] - 1, -1, -1)


def _closest(
    model: Compiled, lattice: Lattice, choices: IndexArray, bound: float, direction: int, best: float | None
) -> float | None:
    costs = lattice.sign * model.evaluate(member_rows(lattice.steps, len(model.labels), choices))
    costs = costs[direction * costs > direction * bound]
    candidates = costs.tolist() + ([] if best is None else [best])
    return min(candidates, key=lambda cost: abs(cost - bound), default=None)
