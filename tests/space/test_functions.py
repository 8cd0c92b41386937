from __future__ import annotations

import math

import pytest

from hwnas.space import (
    Categorical,
    MutableExpression,
    case,
    condition,
    maximum,
    minimum,
    switch_case,
    to_float,
    to_int,
)


def a() -> Categorical:
    return Categorical([1, 2, 3], label="a")


def test_plain_operands_are_computed_at_once() -> None:
    assert maximum(1, 2) == 2
    assert minimum([3, 1, 2]) == 1
    assert condition(0, "yes", "no") == "no"
    assert case([(False, 1), (True, 2)]) == 2
    assert switch_case(2, {1: "one", 2: "two"}) == "two"
    assert switch_case(5, {1: "one"}, default="many") == "many"
    assert to_int(2.9) == 2
    assert to_int(-2.9) == -2
    assert to_int("7") == 7
    assert isinstance(to_int(True), int)
    assert isinstance(to_float(2), float)


def test_extremes() -> None:
    assert maximum(a(), 2).all_values() == [2, 3]
    assert minimum([a(), 2]).all_values() == [1, 2]
    assert maximum(Categorical([(1, 5), (4, 2)], label="t")).all_values() == [5, 4]
    only = a()
    assert maximum([only]) is only
    with pytest.raises(ValueError, match="empty"):
        maximum([])


def test_a_plain_predicate_decides_even_between_expressions() -> None:
    choice = a()
    assert condition(True, choice, 1) is choice
    assert case([(False, 1), (True, choice)]) is choice


def test_case_takes_the_first_that_is_true() -> None:
    expression = case([(a() > 2, "large"), (a() > 1, "middle")], default="small")
    assert [expression.evaluate([value]) for value in (1, 2, 3)] == ["small", "middle", "large"]


def test_case_without_a_match_fails_only_when_it_is_computed() -> None:
    expression = case([(a() > 2, 1), (False, 2)])
    assert expression.evaluate([3]) == 1
    with pytest.raises(ValueError, match="no case applies"):
        expression.evaluate([1])
    with pytest.raises(ValueError, match="no case applies"):
        case([(False, 1)])


def test_switch_case() -> None:
    choice = a()
    expression = switch_case(choice, {1: 10, 2: choice * 7, 3: 30})
    assert expression.all_values() == [10, 14, 30]
    with pytest.raises(ValueError, match="no case applies and there is no default: 2"):
        switch_case(choice, {1: 10}).evaluate([2])
    with pytest.raises(ValueError, match="no case applies to 9"):
        switch_case(9, {1: 10})


def test_conversions() -> None:
    ratio = Categorical([0.5, -1.5, 2.5], label="r")
    assert to_int(ratio * 4).all_values() == [2, -6, 10]
    assert to_int(ratio).all_values() == [math.trunc(value) for value in ratio.values]
    converted = to_float(a())
    assert isinstance(converted, MutableExpression)
    assert [type(value) for value in converted.all_values()] == [float] * 3
