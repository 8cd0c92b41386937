from __future__ import annotations

import copy
import itertools
import math
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import SampleError
from hwnas.space import (
    Categorical,
    CategoricalMultiple,
    MutableExpression,
    MutableList,
    condition,
    maximum,
    minimum,
    switch_case,
    to_float,
    to_int,
)
from hwnas.space.expression import Operation

INTS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, divmod]
BITS = [operator.lshift, operator.rshift, operator.and_, operator.or_, operator.xor]
COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("op", [*INTS, *BITS, *COMPARISONS, operator.pow], ids=lambda op: op.__name__)
def test_binary_operators_agree_with_python(op: Callable[[Any, Any], Any]) -> None:
    a = Categorical([1, 2, 7], label="a")
    b = Categorical([3, 4], label="b")
    for x in a.values:
        for y in b.values:
            sample = {"a": x, "b": y}
            assert same(op(a, b).evaluate(sample), op(x, y))
            assert same(op(a, 5).evaluate(sample), op(x, 5))
            assert same(op(5, b).evaluate(sample), op(5, y))


@pytest.mark.parametrize(
    "op",
    [operator.neg, operator.pos, abs, round, math.trunc, math.floor, math.ceil, lambda x: round(x, 1)],
)
def test_unary_operators_agree_with_python(op: Callable[[Any], Any]) -> None:
    a = Categorical([-2.75, 0.5, 1.5, 2.25], label="a")
    for x in a.values:
        assert same(op(a).evaluate([x]), op(x))


def test_the_rest_of_the_operators() -> None:
    a = Categorical([5, 6], label="a")
    assert (~a).evaluate([5]) == ~5
    assert pow(a, 3, 7).evaluate([5]) == pow(5, 3, 7)
    matrix = np.arange(4).reshape(2, 2)
    assert np.array_equal((a @ a).evaluate([matrix]), matrix @ matrix)
    assert np.array_equal(MutableExpression.__rmatmul__(a, matrix).evaluate([matrix]), matrix @ matrix)


def test_indexing() -> None:
    size = Categorical([(1, 3), (3, 5)], label="size")
    place = Categorical([0, 1], label="place")
    assert size[1].all_values() == [3, 5]
    assert size[place].evaluate([(3, 5), 0]) == 3
    assert size[:place].evaluate([(3, 5), 1]) == (3,)
    assert size[::-1].evaluate([(3, 5)]) == (5, 3)


def test_expressions_inside_tuples_and_lists_are_computed() -> None:
    a = Categorical([1, 2], label="a")
    assert (Categorical([(1, 2)], label="b") == (a, a + 1)).evaluate({"b": (1, 2), "a": 1}) is True
    assert operator.add(Categorical([(0,)], label="c"), (a,)).evaluate([(0,), 2]) == (0, 2)
    assert [str(leaf.label) for leaf in (Categorical([1], label="d") == [a]).leaves()] == ["d", "a"]


def test_numpy_scalars_leave_the_operator_to_the_expression() -> None:
    a = Categorical([2, 3], label="a")
    for value in (np.float64(1.5) * a, np.int64(3) + a, a * np.float64(1.5)):
        assert isinstance(value, MutableExpression)
    assert (np.float64(1.5) * a).evaluate([2]) == 3.0


LEAF_VALUES = {"a": [1, 2, 3], "b": [-4, 5], "c": [0.5, 2.0]}


@st.composite
def formulas(draw: st.DrawFn, depth: int = 4) -> tuple[Callable[[dict[str, Any]], Any], Callable[[Any], Any]]:
    """Draw one formula twice: as a function of plain values and as a function of leaves."""
    if depth == 0 or draw(st.booleans()):
        if draw(st.booleans()):
            label = draw(st.sampled_from(sorted(LEAF_VALUES)))
            return (lambda values: values[label]), (lambda leaves: leaves[label])
        constant = draw(st.integers(-3, 3))
        return (lambda values: constant), (lambda leaves: constant)
    kind = draw(st.sampled_from(["binary", "unary", "extreme", "condition"]))
    first = draw(formulas(depth - 1))
    second = draw(formulas(depth - 1))
    if kind == "binary":
        op = draw(st.sampled_from([operator.add, operator.sub, operator.mul, *COMPARISONS]))
        return (lambda v: op(first[0](v), second[0](v))), (lambda e: op(first[1](e), second[1](e)))
    if kind == "unary":
        op1 = draw(st.sampled_from([operator.neg, abs, round, math.floor, math.ceil]))
        return (lambda v: op1(first[0](v))), (lambda e: op1(first[1](e)))
    if kind == "extreme":
        plain, ours = draw(st.sampled_from([(max, maximum), (min, minimum)]))
        return (lambda v: plain(first[0](v), second[0](v))), (lambda e: ours(first[1](e), second[1](e)))
    return (
        lambda v: first[0](v) if second[0](v) > 0 else second[0](v),
        lambda e: condition(second[1](e) > 0, first[1](e), second[1](e)),
    )


@settings(max_examples=200, deadline=None)
@given(formulas(), st.data())
def test_nested_formulas_agree_with_python(formula: Any, data: st.DataObject) -> None:
    plain, ours = formula
    leaves = {label: Categorical(values, label=label) for label, values in LEAF_VALUES.items()}
    expression = ours(leaves)
    sample = {label: data.draw(st.sampled_from(values)) for label, values in LEAF_VALUES.items()}
    if not isinstance(expression, MutableExpression):
        assert same(expression, plain(sample))
        return
    expected = plain(sample)
    assert same(expression.evaluate(sample), expected)
    assert same(expression.freeze(sample), expected)
    assert same(expression.evaluate([sample[leaf.label] for leaf in expression.leaves()]), expected)
    for other in (copy.deepcopy(expression), pickle.loads(pickle.dumps(expression))):
        assert same(other.evaluate(sample), expected)
        assert other.text() == expression.text()


def test_leaves_are_in_order_and_once() -> None:
    a, b = Categorical([1, 2], label="a"), Categorical([3], label="b")
    expression = b * (a + b) - Categorical([1, 2], label="a")
    assert [str(leaf.label) for leaf in expression.leaves()] == ["b", "a"]
    assert expression.evaluate([3, 2]) == 3 * 5 - 2
    assert a.leaves()[0] is a


def test_two_different_leaves_of_one_label_are_refused() -> None:
    expression = Categorical([1, 2], label="a") + Categorical([1, 3], label="a")
    with pytest.raises(ValueError, match=r"label 'a'.*\[1, 2\].*\[1, 3\]"):
        expression.leaves()


def test_compute_uses_whatever_lookup_gives() -> None:
    class Symbol:
        def __init__(self, text: str) -> None:
            self.text = text

        def __mul__(self, other: int) -> Symbol:
            return Symbol(f"{self.text}*{other}")

    assert (Categorical([1], label="a") * 3).compute(lambda leaf: Symbol(leaf.label)).text == "a*3"


def test_only_the_taken_branch_of_a_condition_is_computed() -> None:
    a = Categorical([0, 4], label="a")
    expression = condition(a == 0, -1, 8 // a)
    assert expression.all_values() == [-1, 2]
    seen: list[str] = []
    b = Categorical([1], label="b")
    condition(a == 0, a, b).compute(lambda leaf: seen.append(leaf.label) or 0)
    assert seen == ["a", "a"]


def test_all_values_are_distinct_in_the_order_first_met() -> None:
    a, b = Categorical([2, 1], label="a"), Categorical([1, 2], label="b")
    assert (a * b).all_values() == [2, 4, 1]
    assert Categorical([(1, 2), (2, 1)], label="t").all_values() == [(1, 2), (2, 1)]
    assert (Categorical([0, 1], label="a") == [b]).all_values() == [False]


@pytest.mark.parametrize(
    ("use", "what"),
    [
        (bool, "truth value"),
        (int, "int"),
        (float, "float"),
        (complex, "complex"),
        (range, "range"),
        (iter, "iterated"),
        (lambda e: e in [Categorical([1], label="z")], "truth value"),
        (lambda e: 1 in e, "contains"),
        (lambda e: [1, 2][e], "index"),
        (lambda e: 1 if e > 2 else 0, "truth value"),
        (lambda e: e and 1, "truth value"),
    ],
)
def test_what_needs_a_value_is_refused_with_advice(use: Callable[[Any], Any], what: str) -> None:
    with pytest.raises(TypeError, match=rf"(?s){what}.*Use freeze\(sample\)"):
        use(Categorical([1, 2], label="a") + 1)


def test_hash_is_by_identity() -> None:
    a = Categorical([1, 2], label="a")
    twin = Categorical([1, 2], label="a")
    assert len({a, twin, a}) == 2
    assert {a: 1}[a] == 1


def test_deepcopy_keeps_sharing_and_labels() -> None:
    a = Categorical([1, 2], label="a")
    space = MutableList([a, a + 1])
    other = copy.deepcopy(space)
    assert other[0] is not a
    assert other[1].leaves()[0] is other[0]  # type: ignore[attr-defined]
    assert other[0].label == "a"  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", [lambda a: a**2, lambda a: 2**a, lambda a: pow(a, 2, 3), lambda a: (a, a)])
def test_powers_and_tuples_pickle(make: Callable[[Any], Any]) -> None:
    expression = Categorical([(1, 2)], label="t") == make(Categorical([1, 2], label="a"))
    assert pickle.loads(pickle.dumps(expression)).text() == expression.text()
    indexed = Categorical([(1, 2)], label="t")[Categorical([0, 1], label="i")]
    assert pickle.loads(pickle.dumps(indexed)).evaluate([(1, 2), 1]) == 2


def test_wrong_evaluations_are_explained() -> None:
    a, b = Categorical([1, 2], label="a"), Categorical([3], label="b")
    with pytest.raises(ValueError, match=r"expected 2 values, for the labels \['a', 'b'\]"):
        (a + b).evaluate([1])
    with pytest.raises(ValueError, match="expected 1 values"):
        a.evaluate("x")
    with pytest.raises(SampleError, match=r"^b: no value is given"):
        (a + b).evaluate({"a": 1})
    with pytest.raises(SampleError, match=r"^a: 9 is not one of the values \[1, 2\]"):
        (a + b).freeze({"a": 9, "b": 3})


def test_freeze_gives_the_values_of_the_space() -> None:
    a = Categorical([1, 2], label="a")
    assert type((a + 0).freeze({"a": np.int64(2)})) is int
    assert same(a.freeze({"a": 2.0}), 2)


def test_text_shows_labels_in_braces_and_keeps_the_order_of_operations() -> None:
    a, b = Categorical([1], label="net/a"), Categorical([2], label="b")
    assert repr(-(a + 1) * b[0] >= maximum(a, b)) == "((-({net/a} + 1)) * {b}[0]) >= max({net/a}, {b})"


def test_a_choice_of_several_stands_for_its_list() -> None:
    several = CategoricalMultiple([1, 2, 5], n_chosen=2, label="m")
    assert (several[0] + several[1]).all_values() == [3, 6, 7]
    assert (several[-1] == 5).freeze({"m": [1, 5]}) is True
    assert repr(several[0] + 1) == "{m}[0] + 1"
    assert pickle.loads(pickle.dumps(several[1] * 2)).evaluate({"m": [2, 5]}) == 10
    with pytest.raises(TypeError, match="truth value"):
        bool(several == [1, 2])


def test_conversions_take_strings() -> None:
    text = Categorical(["3", "4"], label="t")
    assert to_int(text).all_values() == [3, 4]
    assert to_float(text).all_values() == [3.0, 4.0]


def brute_force(expression: MutableExpression) -> list[Any]:
    """Evaluate every combination."""
    leaves = expression.leaves()
    found: list[Any] = []
    for values in itertools.product(*(list(leaf.grid_values()) for leaf in leaves)):
        value = expression.evaluate(values)
        if value not in found:
            found.append(value)
    return found


@settings(max_examples=100, deadline=None)
@given(formulas())
def test_all_values_are_those_of_every_combination(formula: Any) -> None:
    expression = formula[1]({label: Categorical(values, label=label) for label, values in LEAF_VALUES.items()})
    if isinstance(expression, MutableExpression):
        assert expression.all_values() == brute_force(expression)


def test_all_values_of_lists_tuples_and_extremes() -> None:
    a, b = Categorical([3, 1, 2], label="a"), Categorical([0, 1], label="b")
    several = CategoricalMultiple([5, 6, 7], n_chosen=2, label="several")
    pair = Categorical([(1, 2), (3, 4)], label="pair")
    for expression in (
        Operation("tuple", a, a + b, 1),
        Operation("list", a, maximum(b, 1, a, 0)),
        several[b] * a,
        several,
        maximum(several),
        minimum(2, a, 3, b, 1.5),
        maximum(1, True, 0, b),
        pair[b],
        pair,
        condition(b == 0, several[0], a) * (several[1] == 7),
    ):
        assert expression.all_values() == brute_force(expression)


def test_errors_in_branches_that_are_not_taken_do_not_matter() -> None:
    a, b = Categorical([0, 4], label="a"), Categorical([0, 1], label="b")
    guarded = condition((a != 0) & (b != 7), 8 // a, b)
    assert guarded.all_values() == brute_force(guarded) == [0, 1, 2]
    assert condition(b == 2, 8 // (a * 0), a).all_values() == [0, 4]
    with pytest.raises(ZeroDivisionError):
        (8 // (a + b)).all_values()
    with pytest.raises(ValueError, match="no case applies"):
        switch_case(a, {4: 1}).all_values()


def test_all_values_of_a_count_over_many_choices_take_few_steps() -> None:
    choices = [CategoricalMultiple(list(range(8)), 1, label=f"x{i}") for i in range(8)]
    count = sum(1 - maximum(to_int(choice[0] == item) for choice in choices) for item in range(4))
    assert sorted(count.all_values()) == list(range(5))  # of 8 ** 8 combinations
