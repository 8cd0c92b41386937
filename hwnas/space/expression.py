"""Arithmetic on choices: an expression is recorded now and computed once its leaves have values."""

from __future__ import annotations

import builtins
import copy
import math
import operator
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from hwnas.errors import SampleError
from hwnas.space.mutable import LabeledMutable, Mutable
from hwnas.space.node import Sample


class MutableExpression(Mutable):
    """A value that depends on choices. Operators on it give further expressions.

    ``a == b`` is an expression as well, so never ask with it whether two expressions are the same object;
    hashing is by identity.
    """

    # NumPy scalars and arrays leave the operators to this class.
    __array_ufunc__ = None

    __hash__ = object.__hash__

    def leaves(self) -> list[LabeledMutable]:
        """Return the choices that it depends on, each label once, in order of first appearance."""
        return list(self.simplify().values())

    @abstractmethod
    def compute(self, lookup: Callable[[LabeledMutable], Any]) -> Any:
        """Compute the expression.

        Parameters
        ----------
        lookup : callable
            Gives the value of a leaf. Anything with Python's operators will do, a `torch.SymInt` for example.

        Returns
        -------
        Any
            The value. The branch of a condition that is not taken is not computed.
        """

    @abstractmethod
    def text(self) -> str:
        """Write the expression as a formula, labels in braces."""

    def evaluate(self, values: Mapping[str, Any] | Sequence[Any]) -> Any:
        """Compute the expression from values of its leaves, which are not checked.

        Parameters
        ----------
        values : mapping or sequence
            Values by label, or in the order of `leaves`.

        Returns
        -------
        Any
            The value.

        Raises
        ------
        SampleError
            If a label that is needed is missing.
        ValueError
            If a sequence has another length than `leaves`.
        """
        if not isinstance(values, Mapping):
            leaves = self.leaves()
            if isinstance(values, str) or len(values) != len(leaves):
                raise ValueError(
                    f"expected {len(leaves)} values, for the labels {[str(leaf.label) for leaf in leaves]} "
                    f"in this order, got {values!r}"
                )
            values = {leaf.label: value for leaf, value in zip(leaves, values, strict=True)}
        given = values

        def lookup(leaf: LabeledMutable) -> Any:
            try:
                return given[leaf.label]
            except KeyError:
                raise SampleError(f"no value is given for this label of {self.text()}", (leaf.label,)) from None

        return self.compute(lookup)

    def all_values(self) -> list[Any]:
        """List the distinct values over all combinations of leaf values, in the order in which they are met.

        Returns
        -------
        list
            The values; equal ones once.

        Raises
        ------
        ValueError
            If a leaf is continuous.
        """
        leaves = {str(leaf.label): list(leaf.grid_values()) for leaf in self.leaves()}
        form = _form(self)
        key = repr((form, leaves))
        if key not in _KNOWN_VALUES:
            if len(_KNOWN_VALUES) >= _MAX_KNOWN:
                _KNOWN_VALUES.clear()
            _KNOWN_VALUES[key] = self._enumerated(form, leaves)
        return list(_KNOWN_VALUES[key])

    def _enumerated(self, form: Any, leaves: Mapping[str, Sequence[Any]]) -> list[Any]:
        # Leaf by leaf: what is left of the expression once some leaves have values. Combinations that leave the same go
        # on as one, so that a sum or a count over many choices takes few steps. The first of them is kept, in order.
        rests: dict[Any, Any] = {form: self}
        for label, values in leaves.items():
            assigned = (_assign(rest, label, value) for rest in rests.values() for value in values)
            merged: dict[Any, Any] = {}
            for rest in assigned:
                merged.setdefault(_form(rest), rest)
            rests = merged
        found: dict[Any, Any] = {}
        for rest in rests.values():
            value = _compute(rest, _no_leaf_left)
            try:
                found.setdefault(value, value)
            except TypeError:  # unhashable: a list, for example
                found.setdefault(repr(value), value)
        return list(found.values())

    def freeze(self, sample: Sample) -> Any:
        """Return the value under a sample."""
        self.validate(sample)
        return self.compute(lambda leaf: leaf.canonical(sample[leaf.label]))

    def __repr__(self) -> str:
        """Return the formula."""
        return self.text()

    def _refuse(self, what: str) -> NoReturn:
        raise TypeError(
            f"{self.text()} has no value before a sample is chosen, so it cannot be {what}. "
            "Use freeze(sample) for its value, or condition, switch_case, to_int, to_float, maximum or "
            "minimum of hwnas.space to go on with an expression"
        )

    def __bool__(self) -> bool:
        """Refuse: the value is not known."""
        self._refuse("used as a truth value (in if, and, or, not, in)")

    def __int__(self) -> int:
        """Refuse: the value is not known."""
        self._refuse("turned into an int")

    def __float__(self) -> float:
        """Refuse: the value is not known."""
        self._refuse("turned into a float")

    def __complex__(self) -> complex:
        """Refuse: the value is not known."""
        self._refuse("turned into a complex number")

    def __index__(self) -> int:
        """Refuse: the value is not known."""
        self._refuse("used as an index, a size or in range()")

    def __iter__(self) -> Iterator[Any]:
        """Refuse: the value is not known."""
        self._refuse("iterated over")

    def __contains__(self, item: object) -> bool:
        """Refuse: the value is not known."""
        self._refuse("asked what it contains")

    def __add__(self, other: Any) -> MutableExpression:
        """Record ``self + other``."""
        return Operation("+", self, other)

    def __radd__(self, other: Any) -> MutableExpression:
        """Record ``other + self``."""
        return Operation("+", other, self)

    def __sub__(self, other: Any) -> MutableExpression:
        """Record ``self - other``."""
        return Operation("-", self, other)

    def __rsub__(self, other: Any) -> MutableExpression:
        """Record ``other - self``."""
        return Operation("-", other, self)

    def __mul__(self, other: Any) -> MutableExpression:
        """Record ``self * other``."""
        return Operation("*", self, other)

    def __rmul__(self, other: Any) -> MutableExpression:
        """Record ``other * self``."""
        return Operation("*", other, self)

    def __matmul__(self, other: Any) -> MutableExpression:
        """Record ``self @ other``."""
        return Operation("@", self, other)

    def __rmatmul__(self, other: Any) -> MutableExpression:
        """Record ``other @ self``."""
        return Operation("@", other, self)

    def __truediv__(self, other: Any) -> MutableExpression:
        """Record ``self / other``."""
        return Operation("/", self, other)

    def __rtruediv__(self, other: Any) -> MutableExpression:
        """Record ``other / self``."""
        return Operation("/", other, self)

    def __floordiv__(self, other: Any) -> MutableExpression:
        """Record ``self // other``."""
        return Operation("//", self, other)

    def __rfloordiv__(self, other: Any) -> MutableExpression:
        """Record ``other // self``."""
        return Operation("//", other, self)

    def __mod__(self, other: Any) -> MutableExpression:
        """Record ``self % other``."""
        return Operation("%", self, other)

    def __rmod__(self, other: Any) -> MutableExpression:
        """Record ``other % self``."""
        return Operation("%", other, self)

    def __divmod__(self, other: Any) -> MutableExpression:
        """Record ``divmod(self, other)``."""
        return Operation("divmod", self, other)

    def __rdivmod__(self, other: Any) -> MutableExpression:
        """Record ``divmod(other, self)``."""
        return Operation("divmod", other, self)

    def __pow__(self, other: Any, modulus: Any = None) -> MutableExpression:
        """Record ``self ** other``, or ``pow(self, other, modulus)``."""
        return Operation("**", self, other) if modulus is None else Operation("pow", self, other, modulus)

    def __rpow__(self, other: Any) -> MutableExpression:
        """Record ``other ** self``."""
        return Operation("**", other, self)

    def __lshift__(self, other: Any) -> MutableExpression:
        """Record ``self << other``."""
        return Operation("<<", self, other)

    def __rlshift__(self, other: Any) -> MutableExpression:
        """Record ``other << self``."""
        return Operation("<<", other, self)

    def __rshift__(self, other: Any) -> MutableExpression:
        """Record ``self >> other``."""
        return Operation(">>", self, other)

    def __rrshift__(self, other: Any) -> MutableExpression:
        """Record ``other >> self``."""
        return Operation(">>", other, self)

    def __and__(self, other: Any) -> MutableExpression:
        """Record ``self & other``."""
        return Operation("&", self, other)

    def __rand__(self, other: Any) -> MutableExpression:
        """Record ``other & self``."""
        return Operation("&", other, self)

    def __or__(self, other: Any) -> MutableExpression:
        """Record ``self | other``."""
        return Operation("|", self, other)

    def __ror__(self, other: Any) -> MutableExpression:
        """Record ``other | self``."""
        return Operation("|", other, self)

    def __xor__(self, other: Any) -> MutableExpression:
        """Record ``self ^ other``."""
        return Operation("^", self, other)

    def __rxor__(self, other: Any) -> MutableExpression:
        """Record ``other ^ self``."""
        return Operation("^", other, self)

    def __eq__(self, other: object) -> MutableExpression:  # type: ignore[override]
        """Record ``self == other``."""
        return Operation("==", self, other)

    def __ne__(self, other: object) -> MutableExpression:  # type: ignore[override]
        """Record ``self != other``."""
        return Operation("!=", self, other)

    def __lt__(self, other: Any) -> MutableExpression:
        """Record ``self < other``."""
        return Operation("<", self, other)

    def __le__(self, other: Any) -> MutableExpression:
        """Record ``self <= other``."""
        return Operation("<=", self, other)

    def __gt__(self, other: Any) -> MutableExpression:
        """Record ``self > other``."""
        return Operation(">", self, other)

    def __ge__(self, other: Any) -> MutableExpression:
        """Record ``self >= other``."""
        return Operation(">=", self, other)

    def __neg__(self) -> MutableExpression:
        """Record ``-self``."""
        return Operation("neg", self)

    def __pos__(self) -> MutableExpression:
        """Record ``+self``."""
        return Operation("pos", self)

    def __invert__(self) -> MutableExpression:
        """Record ``~self``."""
        return Operation("invert", self)

    def __abs__(self) -> MutableExpression:
        """Record ``abs(self)``."""
        return Operation("abs", self)

    def __round__(self, ndigits: Any = None) -> MutableExpression:
        """Record ``round(self)`` or ``round(self, ndigits)``."""
        return Operation("round", self) if ndigits is None else Operation("round", self, ndigits)

    def __trunc__(self) -> MutableExpression:
        """Record ``math.trunc(self)``."""
        return Operation("trunc", self)

    def __floor__(self) -> MutableExpression:
        """Record ``math.floor(self)``."""
        return Operation("floor", self)

    def __ceil__(self) -> MutableExpression:
        """Record ``math.ceil(self)``."""
        return Operation("ceil", self)

    def __getitem__(self, key: Any) -> MutableExpression:
        """Record ``self[key]``; the key may be an expression, and so may the bounds of a slice."""
        return Operation("getitem", self, key)


def _to_int(value: Any) -> Any:
    # trunc() keeps a symbolic number symbolic, which int() does not; of a symbolic condition there is none.
    keeps = hasattr(type(value), "__trunc__") and not isinstance(value, bool)
    return math.trunc(value) if keeps else builtins.int(value)


def _to_float(value: Any) -> Any:
    return builtins.float(value) if isinstance(value, str) else value / 1


def _as_tuple(*values: Any) -> tuple[Any, ...]:
    return values


def _as_list(*values: Any) -> list[Any]:
    return [*values]


# What expressions can be, by their formulas: the layers of a network ask for the same ones over and over.
_KNOWN_VALUES: dict[str, list[Any]] = {}
_MAX_KNOWN = 4096

_INFIX: dict[str, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "@": operator.matmul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "<<": operator.lshift,
    ">>": operator.rshift,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_PREFIX: dict[str, tuple[str, Callable[..., Any]]] = {
    "neg": ("-", operator.neg),
    "pos": ("+", operator.pos),
    "invert": ("~", operator.invert),
}
_CALL: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "round": round,
    "trunc": math.trunc,
    "floor": math.floor,
    "ceil": math.ceil,
    "divmod": divmod,
    "pow": pow,
    "max": max,
    "min": min,
    "to_int": _to_int,
    "to_float": _to_float,
    "length": len,
    "getitem": operator.getitem,
    "slice": slice,
    "tuple": _as_tuple,
    "list": _as_list,
}
OPERATORS: dict[str, Callable[..., Any]] = {
    **_INFIX,
    **_CALL,
    **{name: op for name, (_, op) in _PREFIX.items()},
}
"""Functions by the names that operations have; a condition computes but one of its branches and stands apart."""


LAZY = frozenset({"condition", "unmatched"})
"""Operations that are no function of all their operands."""


class Operation(MutableExpression):
    """An operator and its operands.

    Parameters
    ----------
    name : str
        Name of the operator. A name, not a function, so that expressions pickle.
    *operands : Any
        Expressions or plain values. Expressions inside tuples, lists and slices are found as well.
    """

    def __init__(self, name: str, *operands: Any) -> None:
        self.name = name
        self.operands = tuple(_wrap(operand) for operand in operands)

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield the operands that are expressions: all leaves count as active, whichever branch is taken."""
        for operand in self.operands:
            if isinstance(operand, MutableExpression):
                yield operand

    def compute(self, lookup: Callable[[LabeledMutable], Any]) -> Any:
        """Compute the operands, then the operator; only one branch of a condition is computed."""
        if self.name == "condition":
            pred, yes, no = self.operands
            chosen = yes if _compute(pred, lookup) else no
            return _compute(chosen, lookup)
        if self.name == "unmatched":
            raise ValueError(f"no case applies and there is no default: {_compute(self.operands[0], lookup)!r}")
        return OPERATORS[self.name](*(_compute(operand, lookup) for operand in self.operands))

    def text(self) -> str:
        """Write the operation as a formula, fully parenthesised inside."""
        parts = [_text(operand) for operand in self.operands]
        if self.name in _INFIX:
            return f" {self.name} ".join(parts)
        if self.name in _PREFIX:
            return _PREFIX[self.name][0] + parts[0]
        if self.name == "getitem":
            return f"{parts[0]}[{parts[1]}]"
        return f"{self.name}({', '.join(parts)})"


def _wrap(operand: Any) -> Any:
    """Turn a plain container with expressions inside into an expression."""
    if isinstance(operand, slice):
        parts = (operand.start, operand.stop, operand.step)
        return Operation("slice", *parts) if any(map(holds_expression, parts)) else operand
    if type(operand) in (tuple, list) and holds_expression(operand):
        return Operation(type(operand).__name__, *operand)
    return operand


def holds_expression(value: Any) -> bool:
    """Tell whether a value is an expression, or a tuple or list with one inside."""
    if type(value) in (tuple, list):
        return any(map(holds_expression, value))
    return isinstance(value, MutableExpression)


def _compute(operand: Any, lookup: Callable[[LabeledMutable], Any]) -> Any:
    return operand.compute(lookup) if isinstance(operand, MutableExpression) else operand


def _text(operand: Any) -> str:
    if not isinstance(operand, MutableExpression):
        return repr(operand)
    text = operand.text()
    return f"({text})" if isinstance(operand, Operation) and operand.name in {*_INFIX, *_PREFIX} else text


def _no_leaf_left(leaf: LabeledMutable) -> NoReturn:
    raise AssertionError(f"label {leaf.label!r} has got no value")


def _assign(operand: Any, label: str, value: Any) -> Any:
    """Put a value in the place of a leaf, and compute all that is then known without doubt."""
    if not isinstance(operand, Operation):
        return value if isinstance(operand, LabeledMutable) and operand.label == label else operand
    operands = [_assign(part, label, value) for part in operand.operands]
    if operand.name == "condition" and not isinstance(operands[0], MutableExpression):
        return operands[1] if operands[0] else operands[2]
    if all(new is old for new, old in zip(operands, operand.operands, strict=True)):
        return operand
    if operand.name in ("max", "min"):
        operands = _without_dominated(operand.name, operands)
    known = operand.name not in LAZY and not any(isinstance(part, MutableExpression) for part in operands)
    if known:
        with suppress(Exception):  # whether it is reached at all, a condition further up decides
            return OPERATORS[operand.name](*operands)
    rest = copy.copy(operand)
    rest.operands = tuple(operands)
    return rest


def _without_dominated(name: str, operands: list[Any]) -> list[Any]:
    """Keep one number among the operands of a maximum or a minimum; the other numbers never matter."""
    is_number = [type(part) in (bool, int, float) and not math.isnan(part) for part in operands]
    if all(is_number) or sum(is_number) < 2:
        return operands
    extreme = OPERATORS[name](part for part, number in zip(operands, is_number, strict=True) if number)
    return [extreme, *(part for part, number in zip(operands, is_number, strict=True) if not number)]


def _form(operand: Any) -> Any:
    """Return what two operands have in common exactly when they are the same formula."""
    if isinstance(operand, Operation):
        return (operand.name, *map(_form, operand.operands))
    if isinstance(operand, MutableExpression):
        return (operand.text(),)
    if isinstance(operand, tuple | list):
        return (type(operand), *map(_form, operand))
    return (type(operand), operand if isinstance(operand, Hashable) else repr(operand))
