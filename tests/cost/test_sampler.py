from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare  # type: ignore[import-untyped]

from hwnas.cost import CostModel, Factor
from hwnas.errors import BudgetError

# With fixed seeds a failure is a defect, not bad luck; the level only has to leave room for honest chance.
LEVEL = 1e-4


def _prior(everything: Any, weights: dict[str, list[float]]) -> np.ndarray:
    vectors = [np.array(w) / np.sum(w) for w in weights.values()]
    prior: np.ndarray = np.prod([v[everything.rows[:, i]] for i, v in enumerate(vectors)], axis=0)
    return prior


def _check_distribution(
    model: CostModel,
    everything: Any,
    low: float | None,
    high: float | None,
    weights: dict[str, list[float]] | None,
) -> None:
    """Compare draws with the enumerated prior, conditioned on range and constraints."""
    costs = model.evaluate(everything.rows)
    within = everything.allowed.copy()
    within &= costs >= (-math.inf if low is None else low)
    within &= costs <= (math.inf if high is None else high)
    uniform = {label: [1.0] * len(v) for label, v in model.domain.values.items()}
    expected = np.where(within, _prior(everything, weights or uniform), 0.0)
    expected /= expected.sum()
    n = 4000
    rows = model.sampler(low, high, weights).draw(n, seed=1)
    numbers = np.ravel_multi_index(tuple(rows.T), model.domain.sizes)
    counts = np.bincount(numbers, minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    order = np.argsort(expected)  # rare members together, until a cell expects five
    order = order[expected[order] > 0]
    cells = np.floor(np.cumsum(expected[order]) * n / 5).astype(int)
    _, cells = np.unique(cells, return_inverse=True)
    observed, wanted = np.bincount(cells, counts[order]), np.bincount(cells, expected[order]) * n
    if len(wanted) > 1:
        assert chisquare(observed, wanted * n / wanted.sum()).pvalue > LEVEL


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("n_constraints", [0, 2])
@pytest.mark.parametrize("seed", range(5))
def test_draws_follow_the_conditioned_prior(
    seed: int,
    n_constraints: int,
    integers: bool,
    make_model: Callable[..., CostModel],
    enumerate_model: Callable[[CostModel], Any],
) -> None:
    model = make_model(seed, n_labels=5, n_factors=5, n_constraints=n_constraints, integers=integers)
    everything = enumerate_model(model)
    costs = model.evaluate(everything.rows)[everything.allowed]
    rng = np.random.default_rng(seed)
    weights = {label: rng.gamma(1.0, size=len(v)).tolist() for label, v in model.domain.values.items()}
    a, b, c = np.quantile(costs, [0.1, 0.4, 0.8], method="nearest")
    _check_distribution(model, everything, None, None, weights)
    _check_distribution(model, everything, None, a, None)
    _check_distribution(model, everything, None, b, weights)
    _check_distribution(model, everything, b, c, weights)
    _check_distribution(model, everything, c, None, weights)
    _check_distribution(model, everything, b, b, weights)


def test_a_coarse_resolution_changes_nothing_but_the_speed(
    monkeypatch: pytest.MonkeyPatch,
    make_model: Callable[..., CostModel],
    enumerate_model: Callable[[CostModel], Any],
) -> None:
    monkeypatch.setattr("hwnas.cost.draws.LEVELS", (8,))
    accepted = []
    for seed in range(4):
        model = make_model(seed, n_labels=6, n_factors=7, n_constraints=1)
        everything = enumerate_model(model)
        low, high = np.quantile(model.evaluate(everything.rows)[everything.allowed], [0.3, 0.5])
        accepted.append(model.sampler(low, high)._draws.acceptance)
        _check_distribution(model, everything, low, high, None)
    assert min(accepted) < 0.9  # rounding does matter here


def test_listing_a_small_set_gives_the_same_distribution(
    monkeypatch: pytest.MonkeyPatch,
    make_model: Callable[..., CostModel],
    enumerate_model: Callable[[CostModel], Any],
) -> None:
    monkeypatch.setattr("hwnas.cost.draws._PILOT_WANTED", 10**9)
    model = make_model(3, n_labels=6, n_factors=7, n_constraints=1)
    everything = enumerate_model(model)
    weights = {label: [float(i + 1) for i in range(len(v))] for label, v in model.domain.values.items()}
    low, high = np.quantile(model.evaluate(everything.rows)[everything.allowed], [0.2, 0.5])
    assert model.sampler(low, high, weights)._draws.listed is not None
    _check_distribution(model, everything, low, high, weights)


@pytest.mark.parametrize("window", ["bottom", "top", "middle"])
def test_one_member_in_a_million_is_found(window: str) -> None:
    rng = np.random.default_rng(7)
    names = [f"l{i}" for i in range(10)]
    model = CostModel(
        {name: range(4) for name in names},
        [Factor((a, b), rng.random((4, 4))) for a, b in pairwise(names)],
    )
    grid = np.indices((4,) * 10).reshape(10, -1).T  # 1,048,576 members
    costs = model.evaluate(grid)
    order = np.sort(costs)
    at = {"bottom": 0, "top": len(order) - 1, "middle": len(order) // 2}[window]
    low = None if window == "bottom" else order[at]
    high = None if window == "top" else order[at]
    (target,) = grid[costs == order[at]]
    drawn = model.sampler(low if window != "bottom" else None, high).draw(20, seed=3)
    assert (drawn == target).all()
    if window == "bottom":
        some = model.sampler(None, order[9]).draw(2000, seed=3)
        assert len(np.unique(some, axis=0)) == 10


def test_costs_of_very_different_size_keep_the_small_ones_apart() -> None:
    # The budget is decided by the small factor, a millionth of the range of the large one.
    model = CostModel(
        {"big": range(8), "small": range(8)},
        [Factor(("big",), np.arange(8) * 1e6 * math.pi), Factor(("small",), np.arange(8) * math.e)],
    )
    drawn = model.sample_within(high=3 * math.e + 1e-9, n=400)
    assert {(s["big"], s["small"]) for s in drawn} == {(0, i) for i in range(4)}


def test_free_labels_are_drawn_from_their_weights() -> None:
    model = CostModel({"a": [0, 1], "free": ["x", "y", "z"]}, [Factor(("a",), [0.0, 1.0])])
    drawn = model.sample_within(high=0.5, n=3000, weights={"free": [0.0, 1.0, 3.0]})
    counts = [sum(s["free"] == value for s in drawn) for value in "xyz"]
    assert counts[0] == 0
    assert chisquare(counts[1:], [750, 2250]).pvalue > LEVEL
    assert all(s["a"] == 0 for s in drawn)


def test_same_seed_same_draws(make_model: Callable[..., CostModel]) -> None:
    model = make_model(2)
    high = float(model.evaluate(np.zeros((1, 6), dtype=int))[0])
    first = model.sample_within(high=high, n=20, seed=5)
    assert first == make_model(2).sample_within(high=high, n=20, seed=np.random.default_rng(5))
    assert first == model.sample_within(high=high, n=20, seed=5)
    assert first != model.sample_within(high=high, n=20, seed=6)
    assert model.sample_within(high=high, n=0) == []


@pytest.mark.parametrize("seed", range(6))
def test_a_budget_out_of_reach_names_the_extreme(seed: int, make_model: Callable[..., CostModel]) -> None:
    model = make_model(seed)
    least, most = model.minimum().cost, model.maximum().cost
    with pytest.raises(BudgetError, match=r"the minimum is .* is fixed") as caught:
        model.sample_within(high=np.nextafter(least, -np.inf))
    assert caught.value.nearest == pytest.approx(least, abs=1e-12)
    with pytest.raises(BudgetError, match="the maximum is") as caught:
        model.sample_within(low=most + 1)
    assert caught.value.nearest == pytest.approx(most, abs=1e-12)
    assert model.sample_within(high=least)
    assert model.sample_within(low=most)


def test_the_message_says_what_blocks_the_budget() -> None:
    model = CostModel(
        {"a": [1, 2], "b": [1, 2]},
        [
            Factor(("a",), [0.4, 0.9], name="stage1/block1"),
            Factor(("b",), [0.25, 0.3]),
            Factor(("a",), [1.0, 1.0], name="stem"),
        ],
        constant=0.2,
        unit="ms",
    )
    with pytest.raises(BudgetError) as caught:
        model.sample_within(high=1.5)
    assert str(caught.value) == (
        "no architecture costs at most 1.5 ms: the minimum is 1.85 ms; of it 1.2 ms is fixed "
        "(no choice changes it); the largest parts at the minimum: "
        "stage1/block1 0.4 ms, factor over b 0.25 ms"
    )


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_an_empty_window_names_its_neighbours(
    seed: int,
    integers: bool,
    make_model: Callable[..., CostModel],
    enumerate_model: Callable[[CostModel], Any],
) -> None:
    model = make_model(seed, n_constraints=1, integers=integers)
    everything = enumerate_model(model)
    costs = np.unique(model.evaluate(everything.rows)[everything.allowed])
    gaps = np.flatnonzero(np.diff(costs) > 1e-6)
    for gap in gaps[[0, len(gaps) // 2, -1]]:
        below, above = costs[gap], costs[gap + 1]
        low, high = below + 0.1 * (above - below), below + 0.5 * (above - below)
        with pytest.raises(BudgetError, match="nearest reachable cost") as caught:
            model.sample_within(low=low, high=high)
        assert caught.value.nearest == below
        assert f"above it {model._compiled.format(above, 12)}" in str(caught.value)
        with pytest.raises(BudgetError) as caught:
            model.sample_within(low=np.nextafter(below, np.inf), high=np.nextafter(above, -np.inf))
        low, high = below + 0.5 * (above - below), below + 0.9 * (above - below)
        with pytest.raises(BudgetError) as caught:
            model.sample_within(low=low, high=high)
        assert caught.value.nearest == above


def test_neighbours_are_exact_with_coarse_bins_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.cost.nearest.LEVELS", (12, 12))
    rng = np.random.default_rng(2)
    model = CostModel({f"l{i}": range(4) for i in range(6)}, [Factor((f"l{i}",), rng.random(4)) for i in range(6)])
    costs = np.sort(model.evaluate(np.indices((4,) * 6).reshape(6, -1).T))
    for gap in (3, 1000, 2048, 4000):
        below, above = costs[gap : gap + 2]
        middle = below + 0.4 * (above - below)
        with pytest.raises(BudgetError) as caught:
            model.sample_within(low=middle, high=middle)
        assert caught.value.nearest == below
        assert f"above it {above:.12g}" in str(caught.value)


def test_dead_ends_behind_constraints_are_avoided(enumerate_model: Callable[[CostModel], Any]) -> None:
    # b = 1 leaves no c, and a = 1 leaves only b = 1.
    allowed = [
        Factor(("a", "b"), [[True, True], [False, True]]),
        Factor(("b", "c"), [[True, True], [False, False]]),
    ]
    model = CostModel(
        {"a": [0, 1], "b": [0, 1], "c": [0, 1], "d": range(3)},
        [
            Factor(("a", "b", "c"), np.arange(8.0).reshape(2, 2, 2)),
            Factor(("c", "d"), np.arange(6.0).reshape(2, 3)),
        ],
        constraints=allowed,
    )
    everything = enumerate_model(model)
    _check_distribution(model, everything, None, None, None)
    _check_distribution(model, everything, 1.0, 3.0, None)
    assert model.count_within().value == everything.allowed.sum() == 6


def test_a_window_too_narrow_to_decide_says_so() -> None:
    rng = np.random.default_rng(0)
    model = CostModel({f"l{i}": range(9) for i in range(12)}, [Factor((f"l{i}",), rng.random(9)) for i in range(12)])
    middle = (model.minimum().cost + model.maximum().cost) / 2
    with pytest.raises(BudgetError, match="too narrow to search fully") as caught:
        model.sample_within(low=middle, high=middle)
    assert caught.value.nearest == pytest.approx(middle, rel=1e-3)


def test_constraints_that_allow_nothing_are_reported() -> None:
    model = CostModel({"a": [1, 2]}, [Factor(("a",), [1.0, 2.0])], constraints=[Factor(("a",), [False, False])])
    with pytest.raises(BudgetError, match="constraints"):
        model.sample_within()
    model = CostModel({"a": [1, 2]}, [], constraints=[Factor(("a",), [True, False])])
    with pytest.raises(BudgetError, match="non-zero weight"):
        model.sample_within(weights={"a": [0.0, 1.0]})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"shape \(1,\), expected \(2,\)"),
        ([0.0, 0.0], "one of them positive"),
        ([-1.0, 2.0], "finite numbers >= 0"),
        ([math.nan, 1.0], "finite numbers >= 0"),
    ],
)
def test_bad_weights_are_refused(weights: list[float], message: str) -> None:
    model = CostModel({"a": [1, 2]}, [Factor(("a",), [1.0, 2.0])])
    with pytest.raises(ValueError, match=message):
        model.sample_within(weights={"a": weights})


def test_bad_ranges_are_refused() -> None:
    model = CostModel({"a": [1, 2]}, [Factor(("a",), [1.0, 2.0])])
    with pytest.raises(ValueError, match="low <= high"):
        model.sample_within(low=2.0, high=1.0)
    with pytest.raises(ValueError, match="empty"):
        model.sample_within(high=math.nan)


def test_labels_that_are_all_tied_are_not_decided_at_once() -> None:
    """A draw weighs every choice of a step, so a step has few, however many labels one table ties."""
    rng = np.random.default_rng(0)
    model = CostModel(
        {f"x{i}": [0, 1] for i in range(12)}, [Factor(tuple(f"x{i}" for i in range(12)), rng.random([2] * 12))]
    )
    steps = model._compiled.path
    assert max(step.cost.shape[1] for step in steps) <= 256
    rows = model.sampler(high=0.01).draw(200)
    assert (model.evaluate(rows) <= 0.01).all()
    assert len(np.unique(rows, axis=0)) == model.count_within(high=0.01).value
