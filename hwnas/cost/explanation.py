"""Why no architecture is within a budget, and what comes nearest to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from hwnas.cost.aim import NothingError, extreme
from hwnas.cost.bounded import Bounded
from hwnas.cost.draws import Draws
from hwnas.cost.lattice import FloatArray, IndexArray, Lattice
from hwnas.cost.nearest import reachable_neighbours
from hwnas.errors import BudgetError, UnsupportedError

_PARTS_SHOWN = 3
# Rounds in which a nearer member is looked for while other ranges are kept, and draws in each, accepted or not.
_ROUNDS, _TRIES = 4, 2048
# Along a path with more transitions one round has to do.
_MANY_TRANSITIONS = 50_000


def explain(ranges: Sequence[Bounded], weights: Sequence[FloatArray], *, undecided: bool) -> BudgetError:
    """Say why no architecture is within the ranges.

    Parameters
    ----------
    ranges : sequence of Bounded
        Costs over one domain with the same constraints, and their ranges.
    weights : sequence of ndarray, shape (n_label,)
        Of all labels.
    undecided : bool
        Whether there may be an architecture all the same.

    Returns
    -------
    BudgetError
        To be raised.
    """
    lattices = [_lattices(bounded, weights) for bounded in ranges]
    for bounded, pair in zip(ranges, lattices, strict=True):
        if pair is not None and not (bounded.model.feasible and math.isfinite(pair[0].minimum)):
            return BudgetError("no architecture satisfies the constraints with a non-zero weight; relax them")
        ends = _optima(bounded) if pair is None else [extreme(bounded, lattice) for lattice in pair]
        if ends is not None and bounded.high < ends[0][0]:
            return _out_of_reach(bounded, "minimum", *ends[0])
        if ends is not None and bounded.low > ends[1][0]:
            return _out_of_reach(bounded, "maximum", *ends[1])
    if len(ranges) == 1 and lattices[0] is not None:
        return _gap(ranges[0], *lattices[0], undecided=undecided)
    return _conflict(ranges, weights, undecided=undecided)


def _lattices(bounded: Bounded, weights: Sequence[FloatArray]) -> tuple[Lattice, Lattice] | None:
    """Give a cost as excess over its minimum and over its maximum; None where it ties too many labels together."""
    try:
        path = bounded.model.path
    except UnsupportedError:
        return None
    rising, falling = (Lattice(path, weights, bounded.model.constant, sign) for sign in (1, -1))
    return rising, falling


def _optima(bounded: Bounded) -> list[tuple[float, IndexArray]] | None:
    """Give the least and the largest cost whatever the weights, with members; None where that is not known."""
    try:
        rows = [bounded.model.optimum(sign) for sign in (1, -1)]
    except UnsupportedError:
        return None
    return [(float(bounded.model.evaluate(row[None])[0]), row) for row in rows if row is not None] or None


def _out_of_reach(bounded: Bounded, which: str, cost: float, row: IndexArray) -> BudgetError:
    model = bounded.model
    show = model.format
    parts = [
        (factor.title, float(factor.table[tuple(row[[model.domain.position[p] for p in factor.labels]])]))
        for factor in model.factors
        if (factor.table != factor.table.flat[0]).any()
    ]
    parts = sorted(parts, key=lambda part: part[1], reverse=True)[:_PARTS_SHOWN]
    message = f"no architecture costs {bounded.described()}: the {which} is {show(cost)}"
    message += f"; of it {show(model.constant)} is fixed (no choice changes it)"
    if parts:
        message += f"; the largest parts at the {which}: {', '.join(f'{n} {show(c)}' for n, c in parts)}"
    return BudgetError(message, nearest=cost)


def _gap(bounded: Bounded, rising: Lattice, falling: Lattice, *, undecided: bool) -> BudgetError:
    below, above = reachable_neighbours(bounded.model, rising, falling, bounded.low, bounded.high)
    nearest = below if bounded.low - below <= above - bounded.high else above
    show = partial(bounded.model.format, digits=12)  # neighbours may be close
    return BudgetError(
        f"{_none((bounded,), undecided=undecided, digits=12)}: the nearest reachable cost is {show(nearest)} "
        f"(below the range {show(below)}, above it {show(above)}); widen the range",
        nearest=nearest,
    )


def _conflict(ranges: Sequence[Bounded], weights: Sequence[FloatArray], *, undecided: bool) -> BudgetError:
    """Say how far each range has to be widened while the others are kept, as far as draws tell."""
    nearest, told = [], []
    for k, bounded in enumerate(ranges):
        sides = [_beyond(ranges, k, weights, side) for side in (-1, 1)]
        found = [side for side in sides if side is not None]
        if not found:
            nearest.append(math.nan)
            continue
        cost, exact = min(found, key=lambda side: max(bounded.low - side[0], side[0] - bounded.high))
        nearest.append(cost)
        told.append(f"{'' if exact else 'about '}{bounded.model.format(cost, 12)} instead of {bounded.described()}")
    message = _none(ranges, undecided=undecided)
    if told and len(ranges) == 1:
        message += f"; the nearest that was found: {told[0]}"
    elif told:
        message += f"; the nearest that is reachable while the other ranges are kept: {', or '.join(told)}"
    return BudgetError(f"{message}. Widen a range", nearest=tuple(nearest))


def _beyond(ranges: Sequence[Bounded], k: int, weights: Sequence[FloatArray], side: int) -> tuple[float, bool] | None:
    """Give the cost nearest to range k, above it (1) or below it (-1), within the others; and whether it is exact."""
    model = ranges[k].model
    low, high = -math.inf, math.inf
    if side > 0:
        low = float(np.nextafter(ranges[k].high, math.inf))
    else:
        high = float(np.nextafter(ranges[k].low, -math.inf))
    best: float | None = None
    for _ in range(_ROUNDS):
        if not low <= high or math.isinf(low if side > 0 else high):
            break
        try:
            draws = Draws([*ranges[:k], Bounded(model, low, high), *ranges[k + 1 :]], weights, thorough=False)
        except NothingError as nothing:
            return None if best is None else (best, not nothing.undecided)
        n = math.ceil(_TRIES * draws.acceptance)
        rows = draws.draw(n, np.random.default_rng(0)) if draws.listed is None else draws.listed[0]
        costs = model.evaluate(rows)
        best = float(costs.min() if side > 0 else costs.max())
        if draws.listed is not None or draws.transitions > _MANY_TRANSITIONS:
            return best, draws.listed is not None
        if side > 0:
            high = float(np.nextafter(best, -math.inf))
        else:
            low = float(np.nextafter(best, math.inf))
    return None if best is None else (best, False)


def _none(ranges: Sequence[Bounded], *, undecided: bool, digits: int = 6) -> str:
    asked = ", and ".join(bounded.described(digits) for bounded in ranges)
    if not undecided:
        return f"no architecture costs {asked}"
    what = "a range" if len(ranges) == 1 else "ranges"
    return f"no architecture was found that costs {asked}, {what} too narrow to search fully"
