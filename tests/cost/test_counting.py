from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hwnas.cost import CostModel, Factor


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("n_constraints", [0, 2])
@pytest.mark.parametrize("seed", range(5))
def test_small_spaces_are_counted_exactly(
    seed: int,
    n_constraints: int,
    integers: bool,
    make_model: Callable[..., CostModel],
    enumerate_model: Callable[[CostModel], Any],
) -> None:
    model = make_model(seed, n_constraints=n_constraints, integers=integers)
    everything = enumerate_model(model)
    costs = model.evaluate(everything.rows)[everything.allowed]
    a, b = np.quantile(costs, [0.2, 0.7], method="nearest")
    for low, high in ((None, None), (None, a), (a, b), (b, None), (a, a), (b, a), (None, costs.min() - 1)):
        count = model.count_within(low, high)
        inside = costs if low is None else costs[costs >= low]
        inside = inside if high is None else inside[inside <= high]
        assert count.exact
        assert count.value == len(inside)


def test_whole_numbers_in_a_large_space_are_counted_exactly() -> None:
    # 25 labels with costs 0..3: the number of ways to a sum is a coefficient of (1 + x + x^2 + x^3)^25.
    model = CostModel({f"l{i}": range(4) for i in range(25)}, [Factor((f"l{i}",), np.arange(4)) for i in range(25)])
    ways = [1]
    for _ in range(25):
        ways = [sum(ways[max(0, k - 3) : k + 1]) for k in range(len(ways) + 3)]
    count = model.count_within(10, 30)
    assert count.exact
    assert count.value == sum(ways[10:31])
    fraction = (model * 0.001).count_within(0.0095, 0.0305)
    assert fraction == count


def test_fractions_in_a_large_space_are_estimated_within_bounds() -> None:
    rng = np.random.default_rng(0)
    model = CostModel({f"l{i}": range(4) for i in range(11)}, [Factor((f"l{i}",), rng.random(4)) for i in range(11)])
    costs = model.evaluate(np.indices((4,) * 11).reshape(11, -1).T)
    count = model.count_within(4.0, 6.0)
    truth = np.count_nonzero((costs >= 4.0) & (costs <= 6.0))
    assert count.lower <= truth <= count.upper
    assert count.value == pytest.approx(truth, rel=0.005)
    assert count.upper - count.lower < 0.1 * truth


def test_the_estimate_is_good_where_the_bounds_are_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.cost.counting.LEVELS", (64, 64))
    monkeypatch.setattr("hwnas.cost.counting.ENUMERATION_LIMIT", 100)
    rng = np.random.default_rng(1)
    model = CostModel({f"l{i}": range(4) for i in range(9)}, [Factor((f"l{i}",), rng.random(4)) for i in range(9)])
    costs = model.evaluate(np.indices((4,) * 9).reshape(9, -1).T)
    low, high = np.quantile(costs, [0.3, 0.5])
    count = model.count_within(low, high)
    truth = np.count_nonzero((costs >= low) & (costs <= high))
    assert count.lower < 0.9 * truth
    assert count.upper > 1.1 * truth
    assert count.value == pytest.approx(truth, rel=0.03)


def test_free_labels_multiply_the_count() -> None:
    model = CostModel({"a": [1, 2, 3], "free": range(7)}, [Factor(("a",), [1.0, 2.0, 3.0])])
    assert model.count_within(high=2.0).value == 14


def test_contradicting_constraints_leave_nothing() -> None:
    model = CostModel({"a": [1, 2]}, [], constraints=[Factor(("a",), [False, False])])
    assert model.count_within().value == 0
