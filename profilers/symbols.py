"""Sizes that depend on choices, as symbols of PyTorch's shape environment, and back to tables."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.functions import Max, Min
from torch.utils._sympy.interp import _run_sympy_handler, sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from hwnas.errors import UnsupportedError
from hwnas.profilers.tables import MAX_DENSE, Table, combined, folded, possible, sizes_of, union
from hwnas.space import Categorical, CategoricalMultiple, LabeledMutable, MutableExpression
from hwnas.space.expression import OPERATORS, Operation
from hwnas.space.node import Dimension

Size = int | torch.SymInt


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


def hashable(value: Any) -> Any:
    """Return a value of a sample as something that can be looked up; subsets are lists."""
    return tuple(value) if isinstance(value, list) else value


def is_listed(mutable: LabeledMutable) -> bool:
    """Tell whether a dimension has a list of values."""
    return isinstance(mutable, Categorical | CategoricalMultiple)


def tabulate(expression: MutableExpression) -> Table:
    """Return the value of an expression for every combination of its labels.

    Returns
    -------
    Table
        Of objects: the values need not be numbers. Where there are very many combinations it is over an `Intermediate`.

    Raises
    ------
    UnsupportedError
        When there are too many combinations, and too many different values of what it is computed from.
    """
    leaves = expression.leaves()
    listed = [listed_values(leaf) for leaf in leaves]
    shape = tuple(len(values) for values in listed)
    labels = tuple(leaf.label for leaf in leaves)
    if np.prod(shape, dtype=float) > MAX_DENSE and len(labels) > 1:
        table = _tabulated_in_parts(expression)
        for value in table.values.flat:
            if isinstance(value, _Failure):
                raise value.error
        return table
    values = np.empty(shape, dtype=object)
    for index, combination in zip(np.ndindex(*shape), itertools.product(*listed), strict=True):
        values[index] = expression.evaluate(dict(zip(labels, combination, strict=True)))
    return Table(labels, values)


class _Failure:
    """What a part of an expression is where it cannot be computed; a condition may leave it out."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __repr__(self) -> str:
        return "_Failure()"  # alike, so that there is one of them


def _tabulated_in_parts(part: Any) -> Table:
    """Tabulate an expression operator by operator."""
    if not isinstance(part, MutableExpression):
        return _constant(part)
    if not isinstance(part, Operation):
        (leaf,) = part.leaves()
        return Table((leaf.label,), _objects(listed_values(leaf)))
    operands = [_tabulated_in_parts(operand) for operand in _flattened(part)]
    if part.name in _ANY_ORDER and all(isinstance(v, int | float) for operand in operands for v in operand.values.flat):
        operation = _ANY_ORDER[part.name]
        return folded(lambda a, b: _elementwise(operation, a, b), operands)
    if part.name == "unmatched":
        return _constant(_Failure(ValueError(f"no case of {part.text()} applies and there is no default")))
    operation = _condition if part.name == "condition" else OPERATORS[part.name]
    return _reachable(combined(lambda *arrays: _elementwise(operation, *arrays), operands, MAX_DENSE)).reduced()


def _reachable(table: Table) -> Table:
    """Replace failures where there is no member."""
    fails = np.array([isinstance(value, _Failure) for value in table.values.flat]).reshape(table.values.shape)
    nowhere = fails & ~possible(table.labels) if fails.any() else fails
    if not nowhere.any():
        return table
    some = next(value for value in table.values.flat if not isinstance(value, _Failure))
    values = table.values.copy()
    for index in zip(*np.nonzero(nowhere), strict=True):
        values[index] = some
    return Table(table.labels, values)


_ANY_ORDER: dict[str, Callable[..., Any]] = {"+": operator.add, "*": operator.mul, "max": max, "min": min}


def _flattened(expression: Operation) -> list[Any]:
    """Return the operands, and in their place those of the same operation where the order does not matter."""
    operands: list[Any] = []
    for operand in expression.operands:
        same = isinstance(operand, Operation) and operand.name == expression.name and operand.name in _ANY_ORDER
        operands += _flattened(operand) if same else [operand]
    return operands


def _condition(predicate: Any, yes: Any, no: Any) -> Any:
    return yes if predicate else no


def _elementwise(operation: Callable[..., Any], *operands: np.ndarray) -> np.ndarray:
    """Apply an operation of Python to arrays of objects that broadcast."""
    arrays = np.broadcast_arrays(*operands)
    values = np.empty(arrays[0].shape, dtype=object)
    for index in np.ndindex(*values.shape):
        values[index] = _attempt(operation, [array[index] for array in arrays])
    return values


def _attempt(operation: Callable[..., Any], operands: Sequence[Any]) -> Any:
    needed = operands[:1] if operation is _condition else operands
    for operand in needed:
        if isinstance(operand, _Failure):
            return operand
    try:
        return operation(*operands)
    except Exception as error:  # whether it is reached at all, a condition further up decides
        return _Failure(error)


def _constant(value: Any) -> Table:
    return Table((), _objects([value])[0, ...])


def _objects(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


class SymbolTable:
    """The symbols that stand for sizes in one symbolic run of a model.

    Two expressions that are equal for every sample share a symbol, so that PyTorch sees that their sizes agree.
    """

    def __init__(self) -> None:
        self.shape_env = ShapeEnv(duck_shape=False, specialize_zero_one=False)
        self._tables: dict[sympy.Symbol, Table] = {}
        self._made: dict[tuple[Any, ...], Size] = {}
        self._evaluated: dict[Any, Table] = {}
        self._constants: dict[int, Table] = {}

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
            return self._constants.setdefault(size, Table((), np.asarray(size)))
        expression = size.node.expr if isinstance(size, torch.SymInt | torch.SymBool) else sympy.sympify(size)
        if expression not in self._evaluated:
            self._evaluated[expression] = self._evaluate(expression)
        return self._evaluated[expression]

    def _evaluate(self, expression: Any) -> Table:
        symbols = sorted(expression.free_symbols, key=str)
        tables = [self._tables[symbol] for symbol in symbols]
        labels, sizes = union(tables), sizes_of(tables)
        if np.prod(list(sizes.values()), dtype=float) > MAX_DENSE and expression.args:
            return self._evaluate_in_parts(expression)
        environment: Mapping[sympy.Symbol, Any] = {
            symbol: table.aligned(labels) for symbol, table in zip(symbols, tables, strict=True)
        }
        values = np.asarray(sympy_interp(_NumpyAnalysis, dict(environment), expression))
        return Table(labels, np.broadcast_to(values, [sizes[label] for label in labels])).reduced()

    def _evaluate_in_parts(self, expression: Any) -> Table:
        """Evaluate operator by operator, so that sums over many labels become sums of partial sums."""
        if isinstance(expression, sympy.Add):
            expression = sympy.factor_terms(expression)
        operands = [self.evaluate(argument) for argument in expression.args]

        def operation(*values: np.ndarray) -> Any:
            return _run_sympy_handler(_NumpyAnalysis, list(values), expression)

        if isinstance(expression, sympy.Add | sympy.And | sympy.Or | sympy.Min | sympy.Max | Min | Max):
            return folded(operation, operands)
        if isinstance(expression, sympy.Mul):
            # Those over the same labels first, so that what is over few values stays so.
            return reduce(lambda a, b: combined(np.multiply, [a, b], MAX_DENSE), operands).reduced()
        return combined(operation, operands, MAX_DENSE).reduced()

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
