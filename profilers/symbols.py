"""Sizes that depend on choices, as symbols of PyTorch's shape environment, and back to tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from hwnas.errors import UnsupportedError
from hwnas.space import Categorical, CategoricalMultiple, LabeledMutable, MutableExpression
from hwnas.space.node import Dimension

Size = int | torch.SymInt
MAX_TABLE = 200_000  # entries; beyond it an expression is no small factor


@dataclass(frozen=True)
class Table:
    """A quantity as a function of a few labels.

    Parameters
    ----------
    labels : tuple of str
        The labels on which it depends.
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


def union(tables: Iterable[Table]) -> tuple[str, ...]:
    """Return the labels of several tables, in order of first appearance."""
    return tuple(dict.fromkeys(label for table in tables for label in table.labels))


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
        labels = union([total, condition])
        known, new = total.aligned(labels), condition.aligned(labels)
        check_table_size(np.broadcast_shapes(known.shape, new.shape), labels)
        holds = operation(known, new)
        if (holds != known).any():
            total = Table(labels, holds).reduced()
    return total


def listed_values(mutable: Dimension) -> list[Any]:
    """Return every value of a finite dimension; subsets are listed as they stand in samples.

    Raises
    ------
    UnsupportedError
        When the dimension is not finite.
    """
    if isinstance(mutable, Categorical):
        return list(mutable.values)
    if isinstance(mutable, CategoricalMultiple):
        return list(mutable.grid_values())
    raise UnsupportedError(
        f"{mutable.label!r} is a {type(mutable).__name__}; costs can depend on choices among listed values only"
    )


def is_listed(mutable: LabeledMutable) -> bool:
    """Tell whether a dimension has a list of values."""
    return isinstance(mutable, Categorical | CategoricalMultiple)


def tabulate(expression: MutableExpression) -> Table:
    """Return the value of an expression for every combination of its labels.

    Returns
    -------
    Table
        Of objects: the values need not be numbers.

    Raises
    ------
    UnsupportedError
        When there are too many combinations.
    """
    leaves = expression.leaves()
    listed = [listed_values(leaf) for leaf in leaves]
    shape = tuple(len(values) for values in listed)
    check_table_size(shape, [leaf.label for leaf in leaves])
    table = np.empty(shape, dtype=object)
    labels = tuple(leaf.label for leaf in leaves)
    for index, combination in zip(np.ndindex(*shape), itertools.product(*listed), strict=True):
        table[index] = expression.evaluate(dict(zip(labels, combination, strict=True)))
    return Table(labels, table)


def check_table_size(shape: Iterable[int], labels: Iterable[str]) -> None:
    """Raise `UnsupportedError` when a table over these labels would be too large."""
    entries = int(np.prod(list(shape), dtype=float))
    if entries > MAX_TABLE:
        raise UnsupportedError(
            f"a cost depends on {', '.join(labels)} together: {entries:,} combinations, more than {MAX_TABLE:,}. "
            "Share labels, or offer fewer values"
        )


class SymbolTable:
    """The symbols that stand for sizes in one symbolic run of a model.

    Two expressions that are equal for every sample share a symbol, so that PyTorch sees that their sizes agree.
    """

    def __init__(self) -> None:
        self.shape_env = ShapeEnv(duck_shape=False, specialize_zero_one=False)
        self._tables: dict[sympy.Symbol, Table] = {}
        self._made: dict[tuple[Any, ...], Size] = {}
        self._evaluated: dict[Any, Table] = {}

    def size(self, table: Table, hint: int) -> Size:
        """Return the symbol of an integer quantity.

        Parameters
        ----------
        table : Table
            Its values.
        hint : int
            The value that decides where Python code branches on it.

        Returns
        -------
        SymInt or int
            A plain integer when the quantity does not vary.
        """
        values = table.values.astype(np.int64)
        if (values == values.flat[0]).all():
            return int(values.flat[0])
        key = (table.labels, values.shape, values.tobytes())
        if key not in self._made:
            lowest = int(values.min())
            step = int(np.gcd.reduce((values - lowest).ravel()))
            # Sizes that differ by a factor and an offset share a symbol. So the padding of a kernel cancels against the
            # kernel, and the image behind does not seem to depend on it.
            # Sizes that may be 1 stay as they are: PyTorch treats 1 in its own way, and sees it in a symbol only.
            if lowest <= 1:
                self._made[key] = self._symbol(Table(table.labels, values), hint)
            else:
                unit = Table(table.labels, (values - lowest) // step + 1)
                self._made[key] = step * self.size(unit, (hint - lowest) // step + 1) + (lowest - step)
        return self._made[key]

    def _symbol(self, table: Table, hint: int) -> torch.SymInt:
        source = ConstantSource(f"size{len(self._tables)}")
        symbol = self.shape_env.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
        if not isinstance(symbol, sympy.Symbol):
            raise UnsupportedError(f"no symbol could be made for a size over {table.labels}")
        self._tables[symbol] = table
        made: torch.SymInt = self.shape_env.create_symintnode(symbol, hint=hint, source=source)  # type: ignore[assignment]
        return made

    def evaluate(self, size: Any) -> Table:
        """Return a size, or a truth value over sizes, as a table over the labels on which it depends.

        Parameters
        ----------
        size : int, SymInt or sympy expression
            Anything computed from the symbols of this object.

        Returns
        -------
        Table
            Without labels when it is constant.
        """
        if type(size) is int:
            return Table((), np.asarray(size))
        expression = size.node.expr if isinstance(size, torch.SymInt | torch.SymBool) else sympy.sympify(size)
        if expression not in self._evaluated:
            self._evaluated[expression] = self._evaluate(expression)
        return self._evaluated[expression]

    def _evaluate(self, expression: Any) -> Table:
        symbols = sorted(expression.free_symbols, key=str)
        tables = [self._tables[symbol] for symbol in symbols]
        labels = union(tables)
        shape = np.broadcast_shapes(*(table.aligned(labels).shape for table in tables)) if tables else ()
        check_table_size(shape, labels)
        environment: Mapping[sympy.Symbol, Any] = {
            symbol: table.aligned(labels) for symbol, table in zip(symbols, tables, strict=True)
        }
        values = np.asarray(sympy_interp(_NumpyAnalysis, dict(environment), expression))
        return Table(labels, np.broadcast_to(values, shape)).reduced()

    def guards(self) -> list[Any]:
        """Return the conditions under which the symbolic run holds."""
        return [guard.expr for guard in self.shape_env.guards]


class _NumpyAnalysis(PythonReferenceAnalysis):
    """Evaluate expressions over shapes on arrays, elementwise."""

    @staticmethod
    def maximum(a: Any, b: Any) -> Any:
        return np.maximum(a, b)

    @staticmethod
    def minimum(a: Any, b: Any) -> Any:
        return np.minimum(a, b)

    @staticmethod
    def and_(a: Any, b: Any) -> Any:
        return np.logical_and(a, b)

    @staticmethod
    def or_(a: Any, b: Any) -> Any:
        return np.logical_or(a, b)

    @staticmethod
    def not_(a: Any) -> Any:
        return np.logical_not(a)
