"""Quantities as tables over the labels on which they depend, small also where these are many."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from hwnas.cost import Intermediate
from hwnas.cost.elimination import elimination_order, minimise
from hwnas.cost.factor import Table as CostTable
from hwnas.cost.intermediate import base_labels, closure
from hwnas.errors import UnsupportedError

MAX_TABLE = 200_000  # entries; beyond it a table is no small factor
MAX_DENSE = 4_096  # entries from which what an expression computes is made of intermediates


@dataclass(frozen=True)
class Table:
    """A quantity as a function of a few labels.

    Parameters
    ----------
    labels : tuple of str
        The labels on which it depends, intermediates among them.
    values : ndarray, shape (number of values of each label, ...)
        The quantity for every combination of their values.
    """

    labels: tuple[str, ...]
    values: np.ndarray

    def reduced(self) -> Table:
        """Return the same quantity without the labels that make no difference."""
        labels, values = self.labels, self.values
        for axis in reversed(range(len(labels))):
            first = values.take([0], axis)
            if (values == first).all():
                values = first.squeeze(axis)
                labels = labels[:axis] + labels[axis + 1 :]
        return Table(labels, values)

    def aligned(self, labels: tuple[str, ...]) -> np.ndarray:
        """Return the values with one axis for each of `labels`, of length one for those that do not matter."""
        order = [self.labels.index(label) for label in labels if label in self.labels]
        moved = self.values.transpose(order)
        shape = iter(moved.shape)
        aligned: np.ndarray = moved.reshape([next(shape) if label in self.labels else 1 for label in labels])
        return aligned

    def narrowed(self, labels: int = 2) -> Table:
        """Return the same quantity over one `Intermediate` that says which of its values it has.

        Quantities that distinguish the same cases in the same order share it.

        Parameters
        ----------
        labels : int, default 2
            From how many labels on; 1 is for a label with many values, such as an intermediate.
        """
        if len(self.labels) < labels:
            return self
        values, places = _distinct(self.values)
        if len(values) == 1:
            return Table((), values[0])
        digest = hashlib.blake2b(repr((self.labels, places.shape)).encode() + places.tobytes(), digest_size=6)
        base = sorted(base_labels(self.labels), key=_natural)
        listed = ", ".join(base) if len(base) <= 3 else f"{base[0]}, ..., {base[-1]}"
        return Table((Intermediate(f"{listed} ({digest.hexdigest()})", self.labels, places),), values)


def union(tables: Iterable[Table]) -> tuple[str, ...]:
    """Return the labels of several tables, in order of first appearance."""
    return tuple(dict.fromkeys(label for table in tables for label in table.labels))


def sizes_of(tables: Iterable[Table]) -> dict[str, int]:
    """Return the labels of several tables and their numbers of values."""
    return {label: n for table in tables for label, n in zip(table.labels, table.values.shape, strict=True)}


def check_table_size(shape: Iterable[int], labels: Iterable[str]) -> None:
    """Raise `UnsupportedError` when a table over these labels would be too large."""
    entries = math.prod(shape)
    if entries > MAX_TABLE:
        raise UnsupportedError(
            f"a cost depends on {', '.join(base_labels(labels))} together: {entries:,} combinations, more than "
            f"{MAX_TABLE:,}, and what it is computed from has too many different values. Share labels, or offer "
            "fewer values"
        )


def combined(operation: Callable[..., Any], tables: Sequence[Table], limit: int | None = None) -> Table:
    """Return what an elementwise operation makes of several tables.

    Parameters
    ----------
    operation : callable
        Takes an array for each table; the arrays broadcast.
    tables : sequence of Table
        Where the result would be too large, those over several labels are narrowed first.
    limit : int, optional
        Entries from which that is done; `MAX_TABLE` unless given.

    Raises
    ------
    UnsupportedError
        When that does not help.
    """
    if _entries(tables) > (MAX_TABLE if limit is None else limit):
        tables = [table.narrowed() for table in tables]
    labels = union(tables)
    sizes = sizes_of(tables)
    shape = [sizes[label] for label in labels]
    check_table_size(shape, labels)
    values = np.asarray(operation(*(table.aligned(labels) for table in tables)))
    return Table(labels, np.broadcast_to(values, shape))


def folded(operation: Callable[[Any, Any], Any], tables: Sequence[Table]) -> Table:
    """Return what an operation that may be taken in any order makes of many tables, over few labels.

    They are taken in the order of their labels, and after each one the result is narrowed. So sums over the same
    labels, or the first of them, have partial sums in common.
    """
    in_order = sorted(tables, key=lambda table: sorted(map(_natural, base_labels(table.labels))))
    return reduce(lambda total, table: combined(operation, [total, table], MAX_DENSE).narrowed(), in_order)


def conjunction(conditions: Iterable[Table]) -> Table:
    """Return where all of several boolean tables hold; without any, everywhere."""
    return _fold(np.logical_and, conditions, True)


def disjunction(conditions: Iterable[Table]) -> Table:
    """Return where any of several boolean tables holds; without any, nowhere."""
    return _fold(np.logical_or, conditions, False)


def _fold(operation: np.ufunc, conditions: Iterable[Table], start: bool) -> Table:
    """Combine tables one after the other, those over few labels first: many of the others then add nothing."""
    total = Table((), np.asarray(start))
    for condition in sorted(conditions, key=lambda condition: len(condition.labels)):
        if _entries([total, condition]) > MAX_TABLE:
            total, condition = total.narrowed(), condition.narrowed()
        labels = union([total, condition])
        known, new = total.aligned(labels), condition.aligned(labels)
        check_table_size(np.broadcast_shapes(known.shape, new.shape), labels)
        holds = operation(known, new)
        if (holds != known).any():
            total = Table(labels, holds).reduced()
    return total


def possible(labels: Sequence[str]) -> np.ndarray:
    """Return which combinations of labels and intermediates there are, a boolean for each, broadcastable to all.

    Intermediates that are computed from one label cannot have all their values together.
    """
    known = closure(labels)
    if not known or not _overlap(labels):
        return np.ones((1,) * len(labels), dtype=bool)
    order, sizes, tables = _definitions(labels)
    free = [axis for axis, label in enumerate(labels) if label not in order]
    labels = [label for label in labels if label in order]
    wanted = {order.index(label) for label in labels}
    scopes = [table.scope for table in tables]
    for position in (p for p in elimination_order(scopes, sizes) if p not in wanted):
        touching = [table for table in tables if position in table.scope]
        tables = [table for table in tables if position not in table.scope]
        scope = tuple(sorted({p for table in touching for p in table.scope}))
        check_table_size([sizes[p] for p in scope], [order[p] for p in scope])
        axis = scope.index(position)
        holds = reduce(np.logical_and, [_spread(table, scope) for table in touching])
        tables.append(CostTable((*scope[:axis], *scope[axis + 1 :]), np.asarray(holds.any(axis))))
    positions = tuple(order.index(label) for label in labels)
    every = tuple(sorted(positions))
    shape = [sizes[p] for p in every]
    check_table_size(shape, labels)
    all_hold = reduce(np.logical_and, [_spread(table, every) for table in tables])
    return np.expand_dims(np.broadcast_to(all_hold, shape).transpose([every.index(p) for p in positions]), free)


def holds_always(condition: Table) -> bool:
    """Tell whether a boolean table holds for every combination of labels that there is."""
    return bool(condition.values.all()) or bool((condition.values | ~possible(condition.labels)).all())


def realised(labels: Sequence[str], places: Sequence[int]) -> dict[str, int]:
    """Return option indices of labels with which labels and intermediates have given places among their values.

    Parameters
    ----------
    labels : sequence of str
        Labels and intermediates.
    places : sequence of int
        One for each; together they have to be `possible`.
    """
    order, sizes, tables = _definitions(labels)
    given = [
        CostTable((order.index(label),), np.where(np.arange(sizes[order.index(label)]) == place, 0.0, np.inf))
        for label, place in zip(labels, places, strict=True)
        if label in order
    ]
    forbidden = [CostTable(table.scope, np.where(table.values, 0.0, np.inf)) for table in tables]
    scopes = [table.scope for table in (*forbidden, *given)]
    found = minimise([*forbidden, *given], elimination_order(scopes, sizes), order, sizes)
    if found is None:
        raise ValueError(f"there is no member in which {labels} have the places {places}")
    free = {label: place for label, place in zip(labels, places, strict=True) if label not in order}
    decided = {order[p]: place for p, place in found.items()}
    return {label: place for label, place in (decided | free).items() if not isinstance(label, Intermediate)}


def place_of(label: str, sample: Mapping[str, Any], domain: Mapping[str, Sequence[Any]]) -> int:
    """Return which of its values a label, or an intermediate, has in a sample."""
    if isinstance(label, Intermediate):
        return int(label.table[tuple(place_of(part, sample, domain) for part in label.labels)])
    return domain[label].index(sample[label])


def at(table: Table, sample: Mapping[str, Any], domain: Mapping[str, Sequence[Any]]) -> Any:
    """Look up the entry of a table for a sample."""
    return table.values[tuple(place_of(label, sample, domain) for label in table.labels)]


def length_of(label: str, domain: Mapping[str, Sequence[Any]]) -> int:
    """Return how many values a label, or an intermediate, has."""
    return label.size if isinstance(label, Intermediate) else len(domain[label])


def _definitions(labels: Sequence[str]) -> tuple[list[str], list[int], list[CostTable]]:
    """Return all labels that intermediates have to do with, their sizes, and what ties them together."""
    known = closure(labels)
    sizes: dict[str, int] = {}
    for each in known.values():
        sizes.update(zip(each.labels, each.table.shape, strict=True))
        sizes[each] = each.size
    order = list(sizes)
    tables = []
    for each in known.values():
        scope = tuple(order.index(label) for label in (*each.labels, each))
        holds = each.table[..., None] == np.arange(each.size)
        tables.append(CostTable(tuple(sorted(scope)), holds.transpose(np.argsort(scope))))
    return order, list(sizes.values()), tables


def _spread(table: CostTable, scope: tuple[int, ...]) -> np.ndarray:
    shape = iter(table.values.shape)
    spread: np.ndarray = table.values.reshape([next(shape) if p in table.scope else 1 for p in scope])
    return spread


def _overlap(labels: Sequence[str]) -> bool:
    """Tell whether two of several labels and intermediates depend on one label."""
    bases = [base_labels([label]) for label in labels]
    return len({label for base in bases for label in base}) < sum(map(len, bases))


def _entries(tables: Iterable[Table]) -> int:
    return math.prod(sizes_of(tables).values())


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different values, numbers in ascending order, and which of them stands at each place."""
    if values.dtype != object or all(isinstance(value, bool | int | float) for value in values.flat):
        comparable = values if values.dtype != object else values.astype(float)
        _, first, places = np.unique(comparable, return_index=True, return_inverse=True)
        return values.reshape(-1)[first], places.reshape(values.shape)
    numbers: dict[Any, int] = {}
    found: list[Any] = []
    places = np.empty(values.shape, dtype=np.intp)
    for index, value in zip(np.ndindex(*values.shape), values.flat, strict=True):
        key = repr(value)
        if key not in numbers:
            numbers[key] = len(found)
            found.append(value)
        places[index] = numbers[key]
    distinct = np.empty(len(found), dtype=object)
    distinct[:] = found
    return distinct, places


def _natural(label: str) -> list[tuple[int, str]]:
    """Return a key that sorts labels as people do: numbers in them by their size."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", label)]
