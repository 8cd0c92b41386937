"""Combining the conditions of one trace, each combination once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from hwnas.profilers.tables import Table, combined, conjunction, disjunction

ALWAYS = Table((), np.asarray(True))
NEVER = Table((), np.asarray(False))


class Logic:
    """Combines tables, and remembers what it made of which.

    The cells of a network share labels, and the operators of a candidate share conditions: a few hundred different
    combinations stand behind tens of thousands of questions. Equal results are one object, so that what is combined
    from them is found again too.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], tuple[tuple[Table, ...], Table]] = {}
        self._same: dict[tuple[Any, ...], Table] = {}

    def same(self, table: Table) -> Table:
        """Return the one object that stands for this table and all that equal it."""
        values = table.values
        if values.dtype == object:
            return table
        return self._same.setdefault((table.labels, values.shape, values.dtype.str, values.tobytes()), table)

    def all(self, conditions: Iterable[Table]) -> Table:
        """Return where all of several conditions hold; without any, everywhere."""
        return self._once("all", conjunction, [each for each in conditions if each.labels or not each.values])

    def any(self, conditions: Iterable[Table]) -> Table:
        """Return where any of several conditions holds; without any, nowhere."""
        return self._once("any", disjunction, [each for each in conditions if each.labels or each.values])

    def masked(self, quantity: Table, conditions: Iterable[Table]) -> Table:
        """Return a quantity where all conditions hold, and zero elsewhere."""
        return self.product(self.all(conditions), quantity)

    def product(self, one: Table, other: Table) -> Table:
        """Return the product of two quantities."""
        return self._once("product", lambda tables: combined(np.multiply, tables), [one, other])

    def _once(self, name: str, make: Callable[[list[Table]], Table], tables: list[Table]) -> Table:
        distinct = tables if name == "product" else list({id(table): table for table in tables}.values())
        if len(distinct) == 1:
            return distinct[0]
        key = (name, *sorted(map(id, distinct)))
        if key not in self._made:  # the tables are kept, so that no identity is used twice
            self._made[key] = (tuple(distinct), self.same(make(distinct)))
        return self._made[key][1]
