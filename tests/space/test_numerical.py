from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hwnas.space import Numerical, UncountableError


def draws(number: Numerical, n: int = 5000) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    return np.array([number.random_value(rng) for _ in range(n)])


@pytest.mark.parametrize(
    ("arguments", "distribution"),
    [
        ({"low": -1, "high": 3}, stats.uniform(-1, 4)),
        ({"low": 1e-4, "high": 10, "log_distributed": True}, stats.loguniform(1e-4, 10)),
        ({"mu": 2, "sigma": 0.5}, stats.norm(2, 0.5)),
        ({"mu": -1, "sigma": 0.5, "log_distributed": True}, stats.lognorm(0.5, scale=math.exp(-1))),
    ],
)
def test_draws_follow_the_distribution(arguments: dict[str, Any], distribution: Any) -> None:
    number = Numerical(**arguments, label="x")
    assert stats.kstest(draws(number), distribution.cdf).pvalue > 1e-3
    assert number.default_value() == pytest.approx(distribution.median())


def test_numbers_beyond_a_bound_are_moved_to_it() -> None:
    values = draws(Numerical(-1, 1, mu=0, sigma=1, label="x"))
    assert values.min() == -1
    assert values.max() == 1
    assert np.mean(values == 1) == pytest.approx(stats.norm.sf(1), abs=0.02)


def test_rounding_comes_before_clipping() -> None:
    number = Numerical(1.6, 4.2, quantize=1, label="x")
    assert list(number.grid_values()) == [2, 3, 4]
    assert list(Numerical(1.4, 4.6, quantize=1, label="x").grid_values()) == [1.4, 2, 3, 4, 4.6]
    assert set(draws(number)) == {2, 3, 4}
    assert Numerical(0, 7, quantize=2, label="x").default_value() == 4
    assert Numerical(10, 11, mu=0, sigma=1, label="x").default_value() == 10


STEPPED = [
    {"low": 0, "high": 7, "quantize": 2},
    {"low": 1.4, "high": 4.6, "quantize": 1},
    {"low": 1.6, "high": 4.2, "quantize": 1},
    {"low": 1, "high": 40, "quantize": 8, "log_distributed": True},
    {"low": 1.6, "high": 4.2, "quantize": 1, "mu": 2, "sigma": 1},
    {"low": -2, "high": 2, "quantize": 0.5, "mu": 0, "sigma": 1},
    {"low": 0.2, "high": 5, "quantize": 1, "mu": 0, "sigma": 1, "log_distributed": True},
    {"low": 0.3, "high": 0.4, "quantize": 1},
]


@pytest.mark.parametrize("arguments", STEPPED)
def test_probability_of_steps(arguments: dict[str, Any]) -> None:
    number = Numerical(**arguments, label="x")
    values = list(number.grid_values())
    assert values == sorted(set(values))
    assert number.count_values() == len(values)
    assert all(number.check_value(value) is None for value in values)
    probabilities = [number.probability(value) for value in values]
    assert sum(probabilities) == pytest.approx(1)
    sample = draws(number, 20_000)
    assert set(sample) <= set(values)
    for value, probability in zip(values, probabilities, strict=True):
        assert np.mean(sample == value) == pytest.approx(probability, abs=5 * math.sqrt(0.25 / 20_000))
    assert number.probability(99.5) == 0


@settings(max_examples=100, deadline=None)
@given(
    st.floats(-50, 50),
    st.floats(0.1, 50),
    st.one_of(st.none(), st.floats(0.05, 20)),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_every_draw_and_default_is_a_valid_value(
    low: float, width: float, quantize: float | None, normal: bool, log: bool, seed: int
) -> None:
    if log:
        low = abs(low) + 1e-3
    spread = {"mu": 0.5, "sigma": 2.0} if normal else {}
    number = Numerical(low, low + width, quantize=quantize, log_distributed=log, **spread, label="x")  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    for value in [
        number.default_value(),
        *(number.random_value(rng) for _ in range(5)),
        *number.grid_values(4),
    ]:
        assert number.check_value(value) is None
        assert low <= value <= low + width
        assert number.canonical(value) == value


def test_grid() -> None:
    assert list(Numerical(0, 1, label="x").grid_values(5)) == [0, 0.25, 0.5, 0.75, 1]
    assert list(Numerical(0, 1, label="x").grid_values(1)) == [0.5]
    logarithmic = Numerical(1e-3, 10, log_distributed=True, label="x")
    assert list(logarithmic.grid_values(5)) == pytest.approx(np.geomspace(1e-3, 10, 5))
    normal = Numerical(mu=1, sigma=2, label="x")
    assert list(normal.grid_values(4)) == pytest.approx(stats.norm(1, 2).ppf([0.125, 0.375, 0.625, 0.875]))
    assert list(Numerical(0, 4, quantize=2, label="x").grid_values(50)) == [0, 2, 4]


def test_a_grid_without_granularity_needs_steps() -> None:
    for number in (Numerical(0, 1, label="x"), Numerical(mu=0, sigma=1, quantize=1, label="x")):
        with pytest.raises(UncountableError, match="'x' is continuous or unbounded"):
            number.grid_values()
        with pytest.raises(ValueError, match="granularity"):
            number.size()
    with pytest.raises(UncountableError, match="more than 1000000 steps"):
        Numerical(0, 1, quantize=1e-9, label="x").grid_values()
    for granularity in (0, -1, 2.5):
        with pytest.raises(ValueError, match="granularity must be"):
            Numerical(0, 1, label="x").grid_values(granularity)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give both low and high, or mu and sigma"),
        ({"low": 0}, "give both low and high"),
        ({"low": 2, "high": 1}, "low must be less than high"),
        ({"low": math.nan, "high": 1}, "low must be less"),
        ({"low": 0, "high": 1, "log_distributed": True}, "low must be positive"),
        ({"mu": 1}, "both mu and sigma"),
        ({"sigma": 1}, "both mu and sigma"),
        ({"mu": 0, "sigma": 0}, "sigma positive"),
        ({"mu": math.inf, "sigma": 1}, "mu must be finite"),
        ({"low": 0, "high": 1, "quantize": 0}, "quantize must be a positive"),
        ({"low": 0, "high": 1, "default": 2}, "default of numerical 'x': 2 does not lie between 0.0 and 1.0"),
        ({"low": 0, "high": 9, "quantize": 3, "default": 4}, "not a multiple of 3.0.*nearest is 3.0"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Numerical(**arguments, label="x")


@pytest.mark.parametrize("value", ["1", None, True, math.nan, math.inf, 1.5, -0.1, [0.5]])
def test_wrong_values_are_reported(value: Any) -> None:
    assert Numerical(0, 1, label="x").check_value(value) is not None


def test_a_log_distributed_number_is_positive() -> None:
    assert "not positive" in str(Numerical(mu=0, sigma=1, log_distributed=True, label="x").check_value(0.0))
    stepped = Numerical(mu=0, sigma=1, log_distributed=True, quantize=1, label="x")
    assert stepped.check_value(0.0) is None
    assert "not positive" in str(stepped.check_value(-1.0))


def test_it_takes_part_in_expressions() -> None:
    rate = Numerical(0.1, 0.3, label="x")
    assert (rate * 10).freeze({"x": 0.2}) == 2.0
    assert isinstance(rate.freeze({"x": np.float64(0.2)}), float)
    assert Numerical(0, 3, quantize=1, label="x").all_values() == [0, 1, 2, 3]


def test_equality_and_representation() -> None:
    number = Numerical(0, 1, quantize=0.5, label="x")
    assert number.equals(Numerical(0.0, 1.0, quantize=0.5, label="x"))
    assert not number.equals(Numerical(0, 1, label="x"))
    assert repr(number) == "Numerical(low=0.0, high=1.0, quantize=0.5, default=0.5, label='x')"
