"""The weighted sum of several costs that says most about whether, and where, all are within their ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hwnas.cost.aim import Aim
from hwnas.cost.lattice import FloatArray, Lattice
from hwnas.cost.path import Step

_ITERATIONS = 60
_TOLERANCE = 1e-9


def weighted_sum(aims: Sequence[Aim], weights: Sequence[FloatArray]) -> Aim:
    r"""Give a weighted sum of costs and the upper bound that it has where all costs are within their ranges.

    If every :math:`c_k \le b_k`, then :math:`\sum_k \lambda_k (c_k - b_k) \le 0` for all non-negative weights. So
    a sum whose minimum is above the bound proves that the ranges exclude each other, and one whose minimum is
    little below the bound says that members within all ranges are near that minimum. Multiplicative updates look
    for the weights with the highest minimum.

    Parameters
    ----------
    aims : sequence of Aim
        The ranges, along one path.
    weights : sequence of ndarray, shape (n_label,)
        Of all labels, those that the lattices have.

    Returns
    -------
    Aim
        Its `span` is negative when the ranges exclude each other. When it is not they may still have no member in
        common: only what is outside the convex hull of the reachable costs is proved.

    References
    ----------
    Arora, Hazan, Kale: The Multiplicative Weights Update Method, Theory of Computing, 2012.
    """
    scales = [max(aim.span, aim.lattice.slack) or 1.0 for aim in aims]
    # For each end of a range its cost, the side, and the bound, in units of the spans.
    ends = [
        (k, side, side * (end - aim.lattice.minimum) / scales[k])
        for k, aim in enumerate(aims)
        for side, end in ((1, aim.high), (-1, aim.low))
        if math.isfinite(end)
    ]
    owners, sides, bounds = (np.array(column) for column in zip(*ends, strict=True))
    shares = np.full(len(ends), 1 / len(ends))
    best: tuple[float, Lattice, float] | None = None
    for iteration in range(_ITERATIONS):
        factors = np.bincount(owners, shares * sides, minlength=len(aims)) / scales
        lattice = Lattice(_added(aims, factors.tolist()), weights, 0.0, 1)
        bound = float(shares @ bounds) + _TOLERANCE
        if best is None or lattice.minimum - bound > best[0]:
            best = lattice.minimum - bound, lattice, bound
        found = np.array([_along(lattice.cheapest(), aim.lattice) for aim in aims]) / scales
        over = sides * found[owners] - bounds
        if best[0] > lattice.slack or (over <= 0).all():  # proved, or a member was found
            break
        shares = shares * np.exp(np.clip(over, -1, 1) / math.sqrt(iteration + 1))
        shares /= shares.sum()
    assert best is not None
    _, lattice, bound = best
    return Aim(lattice, -math.inf, bound, bound + lattice.slack - lattice.minimum, covers_all=False)


def _added(aims: Sequence[Aim], factors: Sequence[float]) -> list[Step]:
    """Give the path with the weighted sum of the excesses as its cost."""
    path = []
    for i, step in enumerate(aims[0].lattice.steps):
        cost = np.zeros(step.cost.shape)
        for aim, factor in zip(aims, factors, strict=True):
            excess = aim.lattice.excess[i]
            cost += np.where(np.isinf(excess), np.inf, factor * np.where(np.isinf(excess), 0.0, excess))
        path.append(Step(step.labels, step.shape, cost, step.next_state))
    return path


def _along(choices: Sequence[int], lattice: Lattice) -> float:
    """Give the excess of a member."""
    state, total = 0, 0.0
    for step, choice, excess in zip(lattice.steps, choices, lattice.excess, strict=True):
        total += float(excess[state, choice])
        state = int(step.next_state[state, choice])
    return total
