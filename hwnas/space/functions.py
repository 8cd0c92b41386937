"""Functions of expressions. Plain operands are computed at once, others are recorded."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping
from typing import Any

from hwnas.space.expression import MutableExpression, Operation, holds_expression

_REQUIRED: Any = object()


def maximum(*values: Any) -> Any:
    """Return the largest of several values, or of the items of one iterable.

    Parameters
    ----------
    *values : Any
        Expressions or plain values, at least one.

    Returns
    -------
    Any
        An expression, or a plain value if all operands are plain.
    """
    return _extreme("max", values)


def minimum(*values: Any) -> Any:
    """Return the smallest of several values, or of the items of one iterable.

    Parameters
    ----------
    *values : Any
        Expressions or plain values, at least one.

    Returns
    -------
    Any
        An expression, or a plain value if all operands are plain.
    """
    return _extreme("min", values)


def _extreme(name: str, values: tuple[Any, ...]) -> Any:
    if len(values) == 1 and not isinstance(values[0], MutableExpression):
        values = tuple(values[0])
        if len(values) == 1:
            return values[0]
    if holds_expression(values):
        return Operation(name, *values)
    return builtins.max(values) if name == "max" else builtins.min(values)


def condition(predicate: Any, if_true: Any, if_false: Any) -> Any:
    """Choose one of two values by a predicate.

    Parameters
    ----------
    predicate : Any
        Decides by its truth value.
    if_true, if_false : Any
        The values. When the expression is computed, only the chosen one is.

    Returns
    -------
    Any
        An expression, or one of the values if the predicate is plain.
    """
    if isinstance(predicate, MutableExpression):
        return Operation("condition", predicate, if_true, if_false)
    return if_true if predicate else if_false


def case(pairs: Iterable[tuple[Any, Any]], default: Any = _REQUIRED) -> Any:
    """Choose the value of the first predicate that is true.

    Parameters
    ----------
    pairs : iterable of (predicate, value)
        Tried in order.
    default : Any, optional
        The value if no predicate is true. Without it, that is a ValueError when the expression is computed.

    Returns
    -------
    Any
        An expression, or a plain value if plain predicates decide.

    Raises
    ------
    ValueError
        If all predicates are plain and false, and there is no default.
    """
    return _chain(list(pairs), default, "case")


def switch_case(value: Any, cases: Mapping[Any, Any], default: Any = _REQUIRED) -> Any:
    """Look a value up in a table.

    Parameters
    ----------
    value : Any
        Compared with the keys.
    cases : mapping
        Key to value; the values may be expressions.
    default : Any, optional
        The value if no key is equal. Without it, that is a ValueError when the expression is computed.

    Returns
    -------
    Any
        An expression, or an entry of `cases` if `value` is plain.

    Raises
    ------
    ValueError
        If `value` is plain, equals no key, and there is no default.
    """
    return _chain([(value == key, result) for key, result in cases.items()], default, value)


def _chain(pairs: list[tuple[Any, Any]], default: Any, subject: Any) -> Any:
    for place, (predicate, result) in enumerate(pairs):
        if isinstance(predicate, MutableExpression):
            return condition(predicate, result, _rest(pairs[place + 1 :], default, subject))
        if predicate:
            return result
    if default is _REQUIRED:
        raise ValueError(f"no case applies to {subject!r} and no default is given; add the case or a default")
    return default


def _rest(pairs: list[tuple[Any, Any]], default: Any, subject: Any) -> Any:
    """As `_chain`, but having no case is a fault only once it is computed."""
    try:
        return _chain(pairs, default, subject)
    except ValueError:
        return Operation("unmatched", subject)


def length(value: Any) -> Any:
    """Return how many values a choice of several has chosen, or ``len()`` of a plain value.

    Parameters
    ----------
    value : Any
        An expression or a plain container.

    Returns
    -------
    Any
        An expression, or an int.
    """
    return Operation("length", value) if isinstance(value, MutableExpression) else len(value)


def to_int(value: Any) -> Any:
    """Turn a value into an int, towards zero, as ``int()`` does."""
    return _convert("to_int", value)


def to_float(value: Any) -> Any:
    """Turn a value into a float, as ``float()`` does."""
    return _convert("to_float", value)


def _convert(name: str, value: Any) -> Any:
    operation = Operation(name, value)
    return operation if holds_expression(operation.operands) else operation.compute(_no_leaf)


def _no_leaf(leaf: Any) -> Any:
    raise AssertionError("a plain operand has no leaves")
