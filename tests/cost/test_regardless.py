"""Costs that tie too many labels to each other for a path: draws by constraints and weights, of which costs reject."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare  # type: ignore[import-untyped]

from hwnas.cost import CostModel, Factor, Intermediate, JointRanges, Range
from hwnas.errors import BudgetError, UnsupportedError

SIZE, LABELS = 3, 5
WEIGHTS = {"l0": [1.0, 2.0, 3.0], "l3": [1.0, 0.0, 1.0]}


@pytest.fixture(autouse=True)
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path along the constraint needs 45 entries, one along the costs 243."""
    monkeypatch.setattr("hwnas.cost.path.MAX_ENTRIES", 100)


@pytest.fixture
def models() -> tuple[CostModel, CostModel]:
    """Two costs over all labels but one, one of them by an intermediate of its own, and a constraint on a sum."""
    rng = np.random.default_rng(3)
    labels = [f"l{i}" for i in range(LABELS)]
    domain = {**{label: list(range(SIZE)) for label in labels}, "free": ["a", "b"]}
    total = Intermediate("l0 + l1", ("l0", "l1"), np.add.outer(range(SIZE), range(SIZE)))
    at_most_four = Factor((total, "l2"), np.add.outer(range(5), range(SIZE)) <= 4)
    parity = Intermediate("parity", ("l0", "l4"), np.add.outer(range(SIZE), range(SIZE)) % 2)
    everything = rng.integers(100, size=[SIZE] * LABELS).astype(float)
    time = CostModel(domain, [Factor(tuple(labels), everything)], constraints=[at_most_four], unit="ms")
    others = rng.random([2, *[SIZE] * (LABELS - 1)])
    size = CostModel(domain, [Factor((parity, *labels[:-1]), others)], constraints=[at_most_four], unit="bytes")
    return time, size


def members(*bounded: tuple[CostModel, float, float]) -> dict[tuple[int, ...], float]:
    """Return the rows within ranges with their probabilities, by listing all rows."""
    model = bounded[0][0]
    rows = [row for row in itertools.product(*map(range, model.domain.sizes)) if row[0] + row[1] + row[2] <= 4]
    weight = {
        row: math.prod(WEIGHTS.get(k, [1] * 9)[i] for k, i in zip(model.labels, row, strict=True)) for row in rows
    }
    for each, low, high in bounded:
        costs = each.evaluate(np.array(rows))
        weight = {row: w for row, w in weight.items() if low <= costs[rows.index(row)] <= high}
    total = sum(weight.values())
    return {row: w / total for row, w in weight.items() if w > 0}


def check(rows: np.ndarray[Any, Any], expected: dict[tuple[int, ...], float]) -> None:
    counts = dict.fromkeys(expected, 0)
    for row in map(tuple, rows.tolist()):
        counts[row] += 1  # a KeyError is a member that must not be drawn
    wanted = np.array(list(expected.values())) * len(rows)
    assert chisquare(list(counts.values()), wanted).pvalue > 1e-4


@pytest.mark.parametrize(("low", "high"), [(-math.inf, math.inf), (-math.inf, 30.0), (25.0, 60.0)])
def test_draws_follow_the_conditioned_prior(models: tuple[CostModel, CostModel], low: float, high: float) -> None:
    time, _ = models
    with pytest.raises(UnsupportedError):
        time._compiled.path  # noqa: B018 - the reason for all this
    check(time.sampler(low, high, WEIGHTS).draw(20_000, seed=1), members((time, low, high)))


def test_several_costs(models: tuple[CostModel, CostModel]) -> None:
    time, size = models
    both = JointRanges([Range(time, high=60.0), Range(size, low=0.2, high=0.8)])
    needed = both._bounded[0].model.without_cost.labels
    assert "l0 + l1" in needed
    assert "parity" not in needed  # such quantities may be what makes a path too wide
    check(both.sampler(WEIGHTS).draw(20_000, seed=1), members((time, -math.inf, 60.0), (size, 0.2, 0.8)))


def test_one_cost_with_a_path_leads_the_other(models: tuple[CostModel, CostModel]) -> None:
    time, _ = models
    short = CostModel(time.domain.values, [Factor(("l0",), [1.0, 2.0, 3.0])], constraints=time.constraints)
    both = JointRanges([Range(time, high=60.0), Range(short, high=1.5)])
    check(both.sampler(WEIGHTS).draw(20_000, seed=1), members((time, -math.inf, 60.0), (short, -math.inf, 1.5)))


def test_counts_are_bounded_and_estimated(models: tuple[CostModel, CostModel], monkeypatch: pytest.MonkeyPatch) -> None:
    time, _ = models
    for draws in (8192, 200):
        monkeypatch.setattr("hwnas.cost.counting._DRAWS", draws)
        for high in (10.0, 30.0, 60.0, 1e9):
            rows = itertools.product(*map(range, time.domain.sizes))
            allowed = np.array([row for row in rows if sum(row[:3]) <= 4])
            truth = int((time.evaluate(allowed) <= high).sum())
            count = time.count_within(high=high)
            assert count.lower <= truth <= count.upper
            assert count.lower <= count.value <= count.upper
            assert abs(count.value - truth) < 5 * len(allowed) / math.sqrt(draws)
            assert count.exact == (draws == 8192)  # each of the 414 has been seen then


def test_what_is_out_of_reach_is_told(models: tuple[CostModel, CostModel]) -> None:
    time, size = models
    least, most = time.minimum().cost, time.maximum().cost
    with pytest.raises(BudgetError, match=f"the minimum is {least:g} ms") as low:
        time.sampler(high=least - 1)
    assert low.value.nearest == least
    with pytest.raises(BudgetError, match=f"the maximum is {most:g} ms"):
        time.sampler(low=most + 1)
    with pytest.raises(BudgetError, match=r"was found that costs at least 50\.25 ms and at most 50\.75"):
        time.sampler(50.25, 50.75)
    with pytest.raises(BudgetError, match="the maximum is"):
        JointRanges([Range(time, high=60.0), Range(size, low=2.0)]).sampler()


def test_constraints_that_allow_nothing(models: tuple[CostModel, CostModel]) -> None:
    time, _ = models
    none = Factor(("l0", "l1"), np.zeros((SIZE, SIZE), dtype=bool))
    model = CostModel(time.domain.values, time.factors, constraints=[*time.constraints, none])
    assert model.count_within().value == 0
    with pytest.raises(BudgetError, match="no architecture"):
        model.sampler()
