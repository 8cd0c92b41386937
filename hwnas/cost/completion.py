"""The least cost that a member can have whose first labels are decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hwnas.cost.factor import Factor
from hwnas.cost.intermediate import closure

MAX_ENTRIES = 100_000
"""Entries of the largest table that is built; where more are needed the cost is a lower bound."""


class _Part(NamedTuple):
    """A table over labels, by their places in the order, and the places between which it counts.

    It counts once the last of its labels is decided, `since`, and as long as the label that was eliminated to make it
    is not, `until`.
    """

    places: tuple[int, ...]
    table: npt.NDArray[np.float64]
    until: int

    @property
    def since(self) -> int:
        return self.places[-1] if self.places else -1


class LeastCompletion:
    """The least cost of all members that agree in their first labels, by elimination of the others, last label first.

    Where the tables of the elimination would grow beyond `MAX_ENTRIES`, they are minimised in groups (mini-buckets),
    and what is returned may be too small; once all labels of a factor are decided its cost is exact.

    Parameters
    ----------
    factors : sequence of Factor
        The addends of the cost. Constraints among members are not looked at.
    order : sequence of str
        In which labels are decided; all labels of the factors, and those that their intermediates are computed from.
    constant : float
        Added to every cost.

    References
    ----------
    Dechter, Rish: Mini-Buckets: A General Scheme for Bounded Inference, Journal of the ACM, 2003.

    Examples
    --------
    >>> least = LeastCompletion([Factor(("a",), [1, 5]), Factor(("a", "b"), [[2, 3], [0, 9]])], ["a", "b"])
    >>> least.costs(0, np.zeros((1, 0), int))
    array([[3., 5.]])
    """

    def __init__(self, factors: Sequence[Factor], order: Sequence[str], *, constant: float = 0.0) -> None:
        # An intermediate is known once the last label that it is computed from is.
        known = closure(label for factor in factors for label in factor.labels)
        extended: list[str] = []
        for label in order:
            extended.append(label)
            decided = set(extended)
            for each in known.values():
                if each not in decided and decided.issuperset(each.labels):
                    extended.append(each)
                    decided.add(each)
        place = {label: i for i, label in enumerate(extended)}
        self._places = [place[label] for label in order]
        self._derived = [(place[each], [place[label] for label in each.labels], each.table) for each in known.values()]
        self._constant = constant
        buckets: list[list[_Part]] = [[] for _ in extended]
        parts: list[_Part] = []

        def add(part: _Part) -> None:
            parts.append(part)
            if part.places:
                buckets[part.since].append(part)

        definitions = [each.definition() for each in known.values()]
        for factor in (*factors, *definitions):
            table = np.where(factor.table, 0.0, np.inf) if factor.is_constraint else factor.table
            places = [place[label] for label in factor.labels]
            add(_Part(tuple(sorted(places)), table.transpose(np.argsort(places)), len(extended)))
        for position in reversed(range(len(extended))):
            for group in _groups(buckets[position]):
                scope, joint = _joint(group)
                add(_Part(scope[:-1], joint.min(-1), position))
        self._counting = [
            [part for part in parts if part.since <= position < part.until] for position in range(len(extended))
        ]

    def depends(self, position: int) -> bool:
        """Tell whether the cost depends on the label at a position at all."""
        place = self._places[position]
        return any(part.since == place for part in self._counting[place])

    def costs(self, position: int, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Return for each value of a label the least cost of the members that have it.

        Parameters
        ----------
        position : int
            That of the label in the order; the cost depends on it.
        rows : array of int, shape (n, at least position)
            The positions of the values of the labels before it.

        Returns
        -------
        array, shape (n, number of values)
            In the unit of the factors.
        """
        here = self._places[position]
        columns: dict[int, npt.NDArray[np.integer]] = dict(zip(self._places[:position], rows.T, strict=False))
        for place, sources, table in self._derived:
            if place < here:
                columns[place] = table[tuple(columns[source] for source in sources)]
        known = np.full((len(rows), 1), self._constant)
        for part in self._counting[here]:
            found = part.table[tuple(columns[place] for place in part.places if place < here)]
            known = known + (found if part.since == here else np.reshape(found, (-1, 1)))
        return known


def _groups(bucket: Sequence[_Part]) -> list[list[_Part]]:
    """Divide the parts of a bucket so that the joint table of each group is not too large."""
    groups: list[tuple[dict[int, int], list[_Part]]] = []
    for part in sorted(bucket, key=lambda part: -part.table.size):
        sizes = dict(zip(part.places, part.table.shape, strict=True))
        for taken, group in groups:
            if math.prod((taken | sizes).values()) <= MAX_ENTRIES:
                taken |= sizes
                group.append(part)
                break
        else:
            groups.append((sizes, [part]))
    return [group for _, group in groups]


def _joint(group: Sequence[_Part]) -> tuple[tuple[int, ...], npt.NDArray[np.float64]]:
    """Add the tables of a group."""
    places = tuple(sorted({place for part in group for place in part.places}))
    total: npt.NDArray[np.float64] = np.zeros(())
    for part in group:
        sizes = dict(zip(part.places, part.table.shape, strict=True))
        total = total + part.table.reshape([sizes.get(place, 1) for place in places])
    return places, total
