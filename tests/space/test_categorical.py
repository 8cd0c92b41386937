from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.space import Categorical, CategoricalMultiple, LabeledMutable

# Upper 1e-6 quantiles of the chi-square distribution by degrees of freedom: the seeds are fixed, so this
# bounds how unlucky they may be.
CHI_SQUARE = {0: 1e-9, 1: 23.93, 2: 27.63, 3: 30.66, 5: 35.89, 6: 38.26, 14: 54.2}


def assert_drawn_as_told(mutable: LabeledMutable, expected: dict[Any, float], n: int = 6000) -> None:
    """Compare draws with probabilities by the chi-square statistic."""
    rng = np.random.default_rng(0)
    draws = [mutable.random_value(rng) for _ in range(n)]
    counts = Counter(tuple(draw) if isinstance(draw, list) else draw for draw in draws)
    assert set(counts) <= {value for value, p in expected.items() if p > 0}
    positive = {value: p for value, p in expected.items() if p > 0}
    assert math.isclose(sum(positive.values()), 1)
    statistic = sum((counts[value] - n * p) ** 2 / (n * p) for value, p in positive.items())
    assert statistic < CHI_SQUARE[len(positive) - 1]


def sets_without_replacement(values: list[Any], weights: list[float], k: int) -> dict[Any, float]:
    """Sum over all orders of drawing."""
    expected: dict[Any, float] = dict.fromkeys(itertools.combinations(values, k), 0.0)
    for order in itertools.permutations(range(len(values)), k):
        mass, left = 1.0, 1.0
        for place in order:
            mass *= weights[place] / left if left > 1e-12 else 0.0
            left -= weights[place]
        expected[tuple(values[place] for place in sorted(order))] += mass
    return expected


def non_empty_subsets(values: list[Any], shares: list[float]) -> dict[Any, float]:
    expected = {}
    for inside in itertools.product([False, True], repeat=len(values)):
        if any(inside):
            mass = math.prod(share if taken else 1 - share for share, taken in zip(shares, inside, strict=True))
            expected[tuple(itertools.compress(values, inside))] = mass
    total = sum(expected.values())
    return {value: mass / total for value, mass in expected.items()}


def test_values_keep_their_order_and_types() -> None:
    values = ["relu", None, 3, 2.5, (1, 3), ("a", (True, None))]
    choice = Categorical(values, label="a")
    assert choice.values == values
    assert list(choice.grid_values()) == values
    assert choice.count_values() == 6


def test_numpy_scalars_become_plain() -> None:
    choice = Categorical([np.int64(3), (np.float32(0.5),)], label="a")
    assert [type(choice.values[0]), type(choice.values[1][0])] == [int, float]
    assert choice.canonical(np.int64(3)) is choice.values[0]


def test_a_generator_of_values_is_fine() -> None:
    assert Categorical(range(3), label="a").values == [0, 1, 2]
    assert Categorical((2**k for k in range(3)), label="a").values == [1, 2, 4]


@pytest.mark.parametrize("make", [Categorical, CategoricalMultiple])
@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([], ValueError, "'a' has no values"),
        ([1, 2, 1], ValueError, r"'a' has the value 1 twice, in \[1, 2, 1\]"),
        ([1, True], ValueError, "True twice"),
        ([(1, 2), (1, 2)], ValueError, "twice"),
        ([1.0, math.nan], ValueError, "not finite"),
        ([1.0, (2, math.inf)], ValueError, "not finite"),
        ([[1, 2]], TypeError, "'a'.*list.*use a tuple"),
        ([object()], TypeError, "of type object"),
    ],
)
def test_wrong_values_are_refused(make: Any, values: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(values, label="a")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5], "1 weights for 2 values"),
        ([0.5, 0.6], "must sum to 1"),
        ([1.5, -0.5], "between 0 and 1"),
        ([math.nan, 1.0], "between 0 and 1"),
    ],
)
def test_wrong_weights_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=f"weights of categorical 'a': .*{message}"):
        Categorical([1, 2], weights=weights, label="a")
    with pytest.raises(ValueError, match=f"weights of categorical_multiple 'a': .*{message}"):
        CategoricalMultiple([1, 2], 1, weights=weights, label="a")


def test_default() -> None:
    assert Categorical([3, 5], label="a").default_value() == 3
    assert Categorical([3, 5], default=5, label="a").default_value() == 5
    assert Categorical([3, None], default=None, label="a").default_value() is None
    with pytest.raises(ValueError, match=r"default of categorical 'a': 4 is not one of the values \[3, 5\]"):
        Categorical([3, 5], default=4, label="a")


@pytest.mark.parametrize("value", [4, "3", [3], None, {}, (3,)])
def test_values_from_elsewhere_are_reported(value: Any) -> None:
    assert "not one of the values [3, 5]" in str(Categorical([3, 5], label="a").check_value(value))


def test_draws_follow_the_weights() -> None:
    assert_drawn_as_told(Categorical("abc", label="a"), dict.fromkeys("abc", 1 / 3))
    weights = [0.2, 0.0, 0.7, 0.1]
    choice = Categorical("abcd", weights=weights, label="a")
    assert_drawn_as_told(choice, dict(zip("abcd", weights, strict=True)))
    assert [choice.probability(value) for value in "abcdz"] == pytest.approx([*weights, 0])


def test_equality_is_about_everything_but_the_object() -> None:
    choice = Categorical([1, 2], label="a")
    assert choice.equals(Categorical([1, 2], label="a"))
    for other in (
        Categorical([1, 2], label="b"),
        Categorical([2, 1], label="a"),
        Categorical([1.0, 2.0], label="a"),
        Categorical([True, 2], label="a"),
        Categorical([1, 2], weights=[0.5, 0.5], label="a"),
        Categorical([1, 2], default=2, label="a"),
        CategoricalMultiple([1, 2], label="a"),
    ):
        assert not choice.equals(other)
    assert not CategoricalMultiple([1, 2], 1, label="a").equals(CategoricalMultiple([1, 2], label="a"))


def test_representations() -> None:
    assert repr(Categorical([1], label="a")) == "Categorical([1], label='a')"
    assert repr(Categorical("ab", weights=[0, 1], default="b", label="x/y")) == (
        "Categorical(['a', 'b'], weights=[0.0, 1.0], default='b', label='x/y')"
    )
    assert repr(CategoricalMultiple([1, 2], 1, default=[2], label="m")) == (
        "CategoricalMultiple([1, 2], n_chosen=1, default=[2], label='m')"
    )


@pytest.mark.parametrize(("n_chosen", "default"), [(None, [0, 1, 2]), (1, [0]), (2, [0, 1])])
def test_multiple_default(n_chosen: int | None, default: list[int]) -> None:
    choice = CategoricalMultiple([0, 1, 2], n_chosen, label="m")
    assert choice.default_value() == default
    choice.default_value().append(9)
    assert choice.default_value() == default


def test_multiple_given_default() -> None:
    assert CategoricalMultiple([0, 1, 2], 2, default=(1, 2), label="m").default_value() == [1, 2]
    with pytest.raises(ValueError, match=r"default of categorical_multiple 'm': .*order of the values"):
        CategoricalMultiple([0, 1, 2], 2, default=[2, 1], label="m")


@pytest.mark.parametrize("n_chosen", [0, 4, -1, 1.5])
def test_multiple_refuses_impossible_numbers(n_chosen: Any) -> None:
    with pytest.raises(ValueError, match=r"n_chosen of .* 'm' must be None or an int from 1 to 3"):
        CategoricalMultiple([0, 1, 2], n_chosen, label="m")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1, "not a list"),
        ((0, 1), "not a list"),
        ([0, 7], r"7 in \[0, 7\] is not one of the values"),
        ([0, 0], "twice"),
        ([0], "has 1 values; expected 2"),
        ([0, 1, 2], "has 3 values; expected 2"),
        ([2, 0], r"order of the values; write \[0, 2\]"),
    ],
)
def test_multiple_reports_wrong_values(value: Any, message: str) -> None:
    choice = CategoricalMultiple([0, 1, 2], 2, label="m")
    with pytest.raises(ValueError, match=f"^m: .*{message}"):
        choice.validate({"m": value})


def test_any_subset_but_the_empty_one() -> None:
    choice = CategoricalMultiple([0, 1, 2], label="m")
    assert "expected at least 1" in str(choice.check_value([]))
    lists = list(choice.grid_values())
    assert lists == [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]]
    assert choice.count_values() == 7
    assert all(choice.check_value(value) is None for value in lists)


def test_multiple_combinations() -> None:
    choice = CategoricalMultiple("abcd", 2, label="m")
    assert list(map(tuple, choice.grid_values())) == list(itertools.combinations("abcd", 2))
    assert choice.count_values() == 6


WEIGHTS = [None, [0.1, 0.2, 0.3, 0.4], [0.5, 0.0, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_multiple_draws_without_replacement(weights: list[float] | None) -> None:
    choice = CategoricalMultiple([0, 1, 2, 3], 2, weights=weights, label="m")
    expected = sets_without_replacement(choice.values, weights or [0.25] * 4, 2)
    assert_drawn_as_told(choice, expected)
    assert [choice.probability(list(value)) for value in expected] == pytest.approx(list(expected.values()))


@pytest.mark.parametrize("shares", [None, [0.1, 0.2, 0.05], [1.0, 0.3, 0.0], [0.0, 0.0, 0.4]])
def test_multiple_draws_subsets(shares: list[float] | None) -> None:
    choice = CategoricalMultiple([0, 1, 2], weights=shares, label="m")
    expected = non_empty_subsets(choice.values, shares or [0.5] * 3)
    assert_drawn_as_told(choice, expected)
    assert [choice.probability(list(value)) for value in expected] == pytest.approx(list(expected.values()))


def test_tiny_probabilities_still_give_a_subset_at_once() -> None:
    choice = CategoricalMultiple(range(5), weights=[1e-20] * 5, label="m")
    rng = np.random.default_rng(0)
    drawn = Counter(tuple(choice.random_value(rng)) for _ in range(500))
    assert set(drawn) == {(i,) for i in range(5)}


def test_too_few_positive_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values are chosen but fewer have a positive weight"):
        CategoricalMultiple([0, 1, 2], 2, weights=[1.0, 0.0, 0.0], label="m")
    with pytest.raises(ValueError, match="1 values are chosen but fewer"):
        CategoricalMultiple([0, 1], weights=[0.0, 0.0], label="m")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.data())
def test_probabilities_sum_to_one(n: int, data: st.DataObject) -> None:
    raw = data.draw(st.lists(st.floats(0.01, 1), min_size=n, max_size=n))
    k = data.draw(st.integers(1, n))
    chosen = CategoricalMultiple(range(n), k, weights=[weight / sum(raw) for weight in raw], label="m")
    subset = CategoricalMultiple(range(n), weights=raw, label="m")
    for choice in (chosen, subset):
        assert sum(map(choice.probability, choice.grid_values())) == pytest.approx(1)
        assert len(list(choice.grid_values())) == choice.count_values()


def test_freeze_gives_a_new_list_of_the_space_s_values() -> None:
    choice = CategoricalMultiple([0, 1, 2], 2, label="m")
    given_value = [np.int64(0), np.int64(2)]
    frozen = choice.freeze({"m": given_value})
    assert frozen == [0, 2]
    assert frozen is not given_value
    assert [type(item) for item in frozen] == [int, int]
