"""From which end of the reachable costs a range is counted, and how far the count has to go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.cost.bounded import Bounded, joint_paths, member_rows
from hwnas.cost.lattice import FloatArray, IndexArray, Lattice


class NothingError(Exception):
    """No member is within the ranges.

    Parameters
    ----------
    undecided : bool
        Whether there may be one all the same, which was not found.
    """

    def __init__(self, *, undecided: bool = False) -> None:
        super().__init__()
        self.undecided = undecided


@dataclass(frozen=True, eq=False)
class Aim:
    """A range as a range of excesses over the nearer end of the reachable costs.

    Parameters
    ----------
    lattice : Lattice
        The cost, or its negative.
    low, high : float
        The range, with the sign of the lattice.
    span : float
        The largest excess in the range.
    covers_all : bool
        Whether every reachable cost is in the range.
    """

    lattice: Lattice
    low: float
    high: float
    span: float
    covers_all: bool


def aims_at(ranges: Sequence[Bounded], weights: Sequence[FloatArray]) -> list[Aim]:
    """Give the aims along the common path of several costs; those alone that leave something out, or else one.

    Parameters
    ----------
    ranges : sequence of Bounded
        Costs over one domain with the same constraints, and their ranges.
    weights : sequence of ndarray, shape (n_label,)
        Of all labels.

    Raises
    ------
    NothingError
        If all costs are outside one of the ranges.
    UnsupportedError
        If the costs together tie too many labels to each other.
    """
    aims = []
    for bounded, path in zip(ranges, joint_paths([each.model for each in ranges]), strict=True):
        rising, falling = (Lattice(path, weights, bounded.model.constant, sign) for sign in (1, -1))
        if not (bounded.model.feasible and math.isfinite(rising.minimum)):
            raise NothingError
        least, most = (extreme(bounded, lattice)[0] for lattice in (rising, falling))
        if bounded.high < least or bounded.low > most or bounded.low > bounded.high:
            raise NothingError
        up, down = min(bounded.high, most) - least, most - max(bounded.low, least)
        lattice = rising if up <= down else falling
        covers_all = bounded.low <= least and bounded.high >= most
        aims.append(Aim(lattice, *bounded.signed(lattice.sign), min(up, down), covers_all))
    return [aim for aim in aims if not aim.covers_all] or aims[:1]


def aims_regardless(ranges: Sequence[Bounded], weights: Sequence[FloatArray]) -> list[Aim]:
    """Give the aim of drawing by weights and constraints alone, for costs that tie too many labels to each other.

    Its steps number the labels of members as the costs do, but intermediates differently.

    Parameters
    ----------
    ranges, weights
        See `aims_at`.

    Raises
    ------
    NothingError
        If the constraints allow nothing.
    UnsupportedError
        If the constraints, too, tie too many labels to each other.
    """
    model = ranges[0].model.without_cost
    n = model.n_labels
    return aims_at([Bounded(model)], [*weights[:n], *(np.ones(size) for size in model.sizes[n:])])


def extreme(bounded: Bounded, lattice: Lattice) -> tuple[float, IndexArray]:
    """Give the least cost of a lattice, or the largest of one with the sign -1, and a member that has it."""
    choices = np.array([lattice.cheapest()], dtype=np.intp).reshape(1, -1)
    rows = member_rows(lattice.steps, len(bounded.model.labels), choices)
    return float(bounded.model.evaluate(rows)[0]), rows[0]
