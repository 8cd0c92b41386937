"""Quantities that are computed from labels, so that costs over many labels stay small tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hwnas.cost.factor import Factor


class Intermediate(str):
    """A quantity with few values that is computed from labels, or from other intermediates.

    A factor may have it among its labels. The channels behind a concatenation of twelve tensors, for instance, depend
    on twelve labels together, which no table could hold, but they are few different numbers, and each partial sum is
    one of the sum before it and of one label. `CostModel` computes such quantities from the labels, members do not
    have them, and expectations, bounds, counts and draws are as exact as without them.

    Parameters
    ----------
    name : str
        Distinct from all labels; shown in messages.
    labels : sequence of str
        What it is computed from: labels and intermediates.
    table : array-like of int, shape (n_1, ..., n_d)
        Which of its values it has, from 0, for every combination of option indices.

    Raises
    ------
    ValueError
        If the table does not fit the labels or leaves a number out.

    Examples
    --------
    >>> from hwnas.cost import CostModel, Factor
    >>> domain = {"a": [8, 16], "b": [8, 16], "c": [1, 2]}
    >>> total = Intermediate("a + b", ("a", "b"), [[0, 1], [1, 2]])  # 16, 24 or 32
    >>> model = CostModel(domain, [Factor((total, "c"), [[16, 32], [24, 48], [32, 64]])])
    >>> model.evaluate({"a": 8, "b": 16, "c": 2})
    48.0
    """

    labels: tuple[str, ...]
    table: npt.NDArray[np.intp]

    def __new__(cls, name: str, labels: Sequence[str], table: npt.ArrayLike) -> Intermediate:
        """Make the name, which knows what it stands for."""
        self = super().__new__(cls, name)
        self.labels = tuple(labels)
        self.table = np.array(table)
        if self.table.dtype.kind not in "iu" or self.table.ndim != len(self.labels) or not self.table.size:
            raise ValueError(
                f"the intermediate {name!r} has a table of shape {self.table.shape} and type {self.table.dtype}; "
                f"expected integers, and an axis for each of its {len(self.labels)} labels"
            )
        if not np.array_equal(np.unique(self.table), np.arange(self.table.max() + 1)):
            raise ValueError(f"the table of the intermediate {name!r} has to have all numbers from 0 to its largest")
        self.table = self.table.astype(np.intp)
        self.table.setflags(write=False)
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Give what copies and pickles are made from."""
        return str(self), self.labels, self.table

    @property
    def size(self) -> int:
        """How many values it has."""
        return int(self.table.max()) + 1

    def definition(self) -> Factor:
        """Give the constraint that ties it to what it is computed from."""
        values = self.table[..., None] == np.arange(self.size)
        return Factor((*self.labels, self), values, name=str(self))

    def same_as(self, other: Intermediate) -> bool:
        """Tell whether another one is computed in the same way."""
        return self.labels == other.labels and np.array_equal(self.table, other.table)


def closure(labels: Iterable[str]) -> dict[str, Intermediate]:
    """Give the intermediates among labels, and those that they are computed from, each behind what it needs.

    Raises
    ------
    ValueError
        If two of one name differ.
    """
    found: dict[str, Intermediate] = {}

    def visit(label: str) -> None:
        if not isinstance(label, Intermediate):
            return
        known = found.get(label)
        if known is None:
            for below in label.labels:
                visit(below)
            found[label] = label
        elif known is not label and not known.same_as(label):
            raise ValueError(f"two intermediates have the name {str(label)!r} but are computed in different ways")

    for label in labels:
        visit(label)
    return found


def base_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Give the labels that decide about labels and intermediates, in order of first appearance."""
    listed = list(labels)
    parts = [*(part for each in closure(listed).values() for part in each.labels), *listed]
    return tuple(dict.fromkeys(part for part in parts if not isinstance(part, Intermediate)))
