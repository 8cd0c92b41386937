"""The expectation of tables over intermediates, by putting in what these are computed from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hwnas.cost.compiled import Compiled
from hwnas.cost.factor import table_entries

Scope = tuple[int, ...]


@dataclass(frozen=True)
class _Average:
    """Sum a label out of a table, weighted with its probabilities."""

    slot: int
    axis: int
    label: int


@dataclass(frozen=True)
class _Replace:
    """Look up the entries of a table in a new order, given as positions in the flat array for the new shape."""

    slot: int
    entries: int  # position of the array among `Substitution.arrays`


@dataclass(frozen=True)
class _Add:
    slot: int
    other: int


class Substitution:
    """A plan that reduces tables to their expectation, without a table of which combinations there are.

    A label that no other label of a table depends on is independent of them, and can be averaged over in that table
    alone. What is left depends on an intermediate: its place is taken by the labels that it is computed from. Tables
    are taken in the order of their last intermediate, so that those over the same labels are added before. Along a
    chain, such as the channels behind one concatenation after the other, this is dynamic programming.

    Parameters
    ----------
    compiled : Compiled
        The cost; only its tables over intermediates are of interest.
    limit : int
        The largest table that may be made, in entries.

    Attributes
    ----------
    feasible : bool
        Whether the limit is kept.
    tables : list of ndarray
        What the plan starts with.
    arrays : list of ndarray of int
        Positions for the look-ups.
    """

    def __init__(self, compiled: Compiled, limit: int) -> None:
        self.feasible = True
        self.tables: list[npt.NDArray[np.float64]] = []
        self.arrays: list[npt.NDArray[np.intp]] = []
        self._compiled = compiled
        self._limit = limit
        self._steps: list[_Average | _Replace | _Add] = []
        self._slots = 0
        self._shared: dict[tuple[int, Scope], int] = {}
        self._depends: dict[int, frozenset[int]] = {p: frozenset({p}) for p in range(compiled.n_labels)}
        self._sources: dict[int, tuple[Sequence[int], npt.NDArray[np.intp]]] = {}
        for p, sources, values in compiled.derived:
            self._depends[p] = frozenset().union(*(self._depends[source] for source in sources))
            self._sources[p] = sources, values
        self._pool: dict[Scope, int] = {}
        self._plan()

    def _plan(self) -> None:
        tables = [table for table in self._compiled.tables if max(table.scope) >= self._compiled.n_labels]
        self.tables = [table.values for table in tables]
        self._slots = len(tables)
        for slot, table in enumerate(tables):
            self._put(table.scope, slot)
        while self.feasible and any(self._pool):
            last = max(scope[-1] for scope in self._pool if scope)
            # The largest first, so that what averaging leaves of them meets the others.
            for scope in sorted((s for s in self._pool if last in s), key=len, reverse=True):
                self._average(scope, self._pool.pop(scope))
            for scope in [s for s in self._pool if last in s and last in self._sources]:
                self._replace(scope, self._pool.pop(scope), last)

    def _put(self, scope: Scope, slot: int) -> None:
        if scope in self._pool:
            slot = self._do(_Add(self._pool[scope], slot))
        self._pool[scope] = slot

    def _do(self, step: _Average | _Replace | _Add) -> int:
        self._steps.append(step)
        self._slots += 1
        return self._slots - 1

    def _average(self, scope: Scope, slot: int) -> None:
        """Average over every label that the rest of a table does not depend on."""
        for label in scope[::-1]:
            rest = tuple(p for p in scope if p != label)
            if label < self._compiled.n_labels and not any(label in self._depends[p] for p in rest):
                slot = self._do(_Average(slot, scope.index(label), label))
                scope = rest
        self._put(scope, slot)

    def _replace(self, scope: Scope, slot: int, label: int) -> None:
        """Put in what an intermediate is computed from."""
        sources, values = self._sources[label]
        sizes = self._compiled.sizes
        new = tuple(sorted({*scope, *sources} - {label}))
        if table_entries(new, sizes) > self._limit:
            self.feasible = False
            return
        key = (label, scope)
        if key not in self._shared:
            shape = [sizes[p] for p in new]
            flat = np.zeros([1] * len(new), dtype=np.intp)
            for p in scope:
                if p == label:
                    order = np.argsort(sources)
                    place = values.transpose(order).reshape([sizes[q] if q in sources else 1 for q in new])
                else:
                    place = np.arange(sizes[p]).reshape([-1 if q == p else 1 for q in new])
                flat = flat * sizes[p] + place
            self.arrays.append(np.ascontiguousarray(np.broadcast_to(flat, shape)))
            self._shared[key] = len(self.arrays) - 1
        self._put(new, self._do(_Replace(slot, self._shared[key])))

    def run(self, tables: Iterable[Tensor], arrays: Sequence[Tensor], probabilities: Mapping[int, Tensor]) -> Tensor:
        """Give the expected sum of the tables.

        Parameters
        ----------
        tables : iterable of Tensor
            `tables` as tensors.
        arrays : sequence of Tensor
            `arrays` as tensors.
        probabilities : mapping of int to Tensor, shape (n_label,)
            By position of the label.

        Returns
        -------
        Tensor, shape ()
        """
        slots = list(tables)
        for step in self._steps:
            table = slots[step.slot]
            if isinstance(step, _Average):
                weights = probabilities[step.label].reshape([-1] + [1] * (table.dim() - 1 - step.axis))
                slots.append((table * weights).sum(step.axis))
            elif isinstance(step, _Replace):
                slots.append(table.reshape(-1)[arrays[step.entries]])
            else:
                slots.append(table + slots[step.other])
        return slots[self._pool[()]]
