"""Factors compiled for computing: merged tables over label positions, evaluated and optimised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hwnas.cost.domain import Domain
from hwnas.cost.elimination import elimination_order, minimise
from hwnas.cost.factor import Factor, Table, compile_tables
from hwnas.cost.intermediate import Intermediate, closure
from hwnas.cost.path import Step, build_paths

# Rows evaluated at a time, so that their columns stay in the cache.
_ROWS = 4096


class Compiled:
    """A sum of factors in the form that all computations start from.

    Parameters
    ----------
    domain : Domain
        Labels and values.
    intermediates : sequence of Intermediate
        What factors and constraints depend on besides, each behind what it is computed from. They follow the labels of
        the domain in all rows of option indices here.
    factors, constraints : sequence of Factor
        The addends, and what is allowed; their tables must fit.
    constant : float
        What is added to every cost.
    unit : str
        The unit, for messages.
    """

    def __init__(
        self,
        domain: Domain,
        intermediates: Sequence[Intermediate],
        factors: Sequence[Factor],
        constraints: Sequence[Factor],
        constant: float,
        unit: str,
    ) -> None:
        #: How many of the labels are those of members.
        self.n_labels = len(domain)
        self.domain = domain.union(Domain({each: range(each.size) for each in intermediates}))
        self.labels = self.domain.labels
        self.sizes = self.domain.sizes
        self.factors = factors
        self.constraints = constraints
        self.unit = unit
        tables = compile_tables(factors, self.labels)
        definitions = [each.definition() for each in intermediates]
        allowed = compile_tables([*constraints, *definitions], self.labels)
        #: What no choice changes: the constant given and all that turned out not to depend on any label.
        self.constant = constant + sum(float(t.values) for t in tables if not t.scope)
        self.tables = [table for table in tables if table.scope]
        self.allowed_tables = [table for table in allowed if table.scope]
        #: False where a constraint rules out everything by itself.
        self.feasible = all(bool(t.values) for t in allowed if not t.scope)
        #: For each intermediate its position, those of what it is computed from, and its table.
        self.derived = [
            (p, [self.domain.position[label] for label in each.labels], each.table)
            for p, each in enumerate(intermediates, self.n_labels)
        ]
        used = {p for table in self.tables for p in table.scope}
        for p, sources, _ in reversed(self.derived):
            used |= set(sources) if p in used else set()
        #: Positions of the labels and intermediates that the cost depends on, directly or not.
        self.used = sorted(used)
        self.used_labels = [p for p in self.used if p < self.n_labels]

    def evaluate(self, indices: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
        """Give the cost of every row of option indices, shape (n, n_labels) or with the intermediates behind."""
        if (
            indices.ndim != 2
            or indices.shape[1] not in (self.n_labels, len(self.labels))
            or indices.dtype.kind not in "iu"
        ):
            raise ValueError(
                f"indices have shape {indices.shape} and type {indices.dtype}, "
                f"expected integers of shape (n_samples, {self.n_labels})"
            )
        costs = np.empty(len(indices))
        for start in range(0, len(indices), _ROWS):
            rows = np.ascontiguousarray(indices[start : start + _ROWS].T, dtype=np.intp)
            # As unsigned numbers, negative indices are larger than any size: one pass checks both ends.
            largest = rows.view(np.uintp).max(axis=1)
            for p in self.used_labels:
                if largest[p] >= self.sizes[p]:
                    raise ValueError(
                        f"an index of {self.labels[p]!r} is outside 0..{self.sizes[p] - 1}: "
                        f"found {rows[p].min()} to {rows[p].max()}"
                    )
            costs[start : start + _ROWS] = self.sum(rows, rows.shape[1])
        return costs

    def sum(
        self, columns: Mapping[int, npt.NDArray[np.intp]] | npt.NDArray[np.intp], n: int
    ) -> npt.NDArray[np.float64]:
        """Add up the tables; ``columns[p]`` are the option indices of the label at position p, shape (n,)."""
        if self.derived:
            columns = dict(columns) if isinstance(columns, Mapping) else dict(enumerate(columns))
            used = set(self.used)
            for p, sources, table in self.derived:
                if p in used:
                    columns[p] = _look_up(table, [columns[source] for source in sources])
        total = np.full(n, self.constant)
        for each in self.tables:
            total += _look_up(each.values, [columns[p] for p in each.scope])
        return total

    def extended(self, indices: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.integer[Any]]:
        """Append the intermediates to rows of option indices, shape (n, n_labels)."""
        rows = np.empty((len(indices), len(self.labels)), dtype=np.intp)
        rows[:, : self.n_labels] = indices
        for p, sources, table in self.derived:
            rows[:, p] = table[tuple(rows[:, source] for source in sources)]
        return rows

    def allowed(self, indices: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        """Tell for every row of option indices, shape (n, n_labels), whether the constraints allow it."""
        indices = self.extended(indices)
        result = np.full(len(indices), self.feasible)
        for table in self.allowed_tables:
            result &= table.values[tuple(indices[:, p] for p in table.scope)]
        return result

    def optimum(self, sign: int) -> npt.NDArray[np.intp] | None:
        """Give the option indices, shape (n_labels,), of smallest ``sign * cost``; None if there is none."""
        forbidden = [Table(t.scope, np.where(t.values, 0.0, np.inf)) for t in self.allowed_tables]
        tables = [*(Table(t.scope, sign * t.values) for t in self.tables), *forbidden]
        best = minimise(tables, self._order, self.labels, self.sizes) if self.feasible else None
        return None if best is None else np.array([best.get(p, 0) for p in range(len(self.labels))], dtype=np.intp)

    @cached_property
    def _order(self) -> list[int]:
        return elimination_order([t.scope for t in (*self.tables, *self.allowed_tables)], self.sizes)

    @cached_property
    def path(self) -> list[Step]:
        """The steps in which the labels of this cost alone are decided."""
        return build_paths([self.tables], self.allowed_tables, self.labels, self.sizes)[0]

    @cached_property
    def without_cost(self) -> Compiled:
        """A cost of nothing under the same constraints, with no more intermediates than these need."""
        needed = closure(label for constraint in self.constraints for label in constraint.labels)
        labels = self.labels[: self.n_labels]
        domain = Domain({label: self.domain.values[label] for label in labels})
        return Compiled(domain, list(needed.values()), (), self.constraints, 0.0, "")

    @cached_property
    def bound_labels(self) -> frozenset[int]:
        """Positions of the labels that the cost or a constraint depends on."""
        return frozenset(p for table in (*self.tables, *self.allowed_tables) for p in table.scope)

    def format(self, cost: float, digits: int = 6) -> str:
        """Write a cost with its unit; whole numbers in full, others to some digits."""
        whole = abs(cost) < 1e15 and cost == round(cost)
        number = f"{cost:,.0f}" if whole else f"{cost:,.{digits}g}"
        return f"{number} {self.unit}".rstrip()


def _look_up(table: npt.NDArray[Any], columns: Sequence[npt.NDArray[np.intp]]) -> npt.NDArray[Any]:
    """Give the entries of a table at option indices, one column for each axis."""
    flat = columns[0]
    for column, size in zip(columns[1:], table.shape[1:], strict=True):
        flat = flat * size + column
    found: npt.NDArray[Any] = table.reshape(-1).take(flat)
    return found
