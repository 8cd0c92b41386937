"""Costs over intermediates, against the same costs as tables over all labels."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from hwnas.cost import CostModel, Factor, Intermediate, JointRanges, Range, expectation
from hwnas.cost.compiled import Compiled
from hwnas.cost.completion import LeastCompletion
from hwnas.errors import BudgetError, UnsupportedError

WIDTHS = [8, 16, 24]
LABELS = ["w1", "w2", "w3", "w4"]
DOMAIN = {**{label: WIDTHS for label in LABELS}, "kernel": [1, 3], "idle": [0, 1, 2]}


@pytest.fixture(autouse=True, params=[expectation.MAX_REPLACED, 1], ids=["replaced", "eliminated"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expectations put in what intermediates are computed from, or eliminate labels."""
    monkeypatch.setattr(expectation, "MAX_REPLACED", request.param)


def prefix_sums() -> list[Intermediate]:
    """w1 + w2, w1 + w2 + w3, and so on."""
    sums: list[Intermediate] = []
    before: str = "w1"
    for number, label in enumerate(LABELS[1:], 2):
        size = before.size if isinstance(before, Intermediate) else 3
        sums.append(Intermediate(f"sum of {number}", (before, label), np.add.outer(np.arange(size), np.arange(3))))
        before = sums[-1]
    return sums


def dense_net(*, constraints: bool = False) -> tuple[CostModel, CostModel]:
    """A cost by intermediates, and the same cost as one table over everything."""
    sums = prefix_sums()
    factors = [
        Factor(
            (total, label),
            [[channels * width for width in WIDTHS] for channels in 8 * np.arange(number, 3 * number + 1)],
        )
        for number, (total, label) in enumerate(zip(sums, LABELS[2:], strict=False), 2)
    ]
    factors += [
        Factor((sums[-1], "kernel"), np.multiply.outer(8.0 * np.arange(4, 13), [1.0, 9.0]), name="last"),
        Factor(("w1", sums[-1]), np.multiply.outer([1.0, 5.0, 2.0], np.arange(9.0) ** 2)),  # not independent
        Factor(("w1", "kernel"), [[0, 1], [3, 2], [1, 7]]),
    ]
    rules = [Factor((sums[1],), np.arange(7) % 3 != 1)] if constraints else []
    by_sums = CostModel(DOMAIN, factors, constant=3.0, unit="MACs", constraints=rules)

    def cost(w: tuple[int, ...], kernel: int) -> float:
        total = 3.0 + w[2] * (w[0] + w[1]) + w[3] * (w[0] + w[1] + w[2]) + sum(w) * kernel**2
        first = WIDTHS.index(w[0])
        total += [1, 5, 2][first] * (sum(w) / 8 - 4) ** 2
        return float(total + [[0, 1], [3, 2], [1, 7]][first][kernel // 2])

    table = [[cost(w, kernel) for kernel in (1, 3)] for w in itertools.product(WIDTHS, repeat=4)]
    allowed = [[not constraints or (sum(w[:3]) // 8 - 3) % 3 != 1] * 2 for w in itertools.product(WIDTHS, repeat=4)]
    shape = (3, 3, 3, 3, 2)
    labels = (*LABELS, "kernel")
    rules = [Factor(labels, np.array(allowed).reshape(shape))] if constraints else []
    return by_sums, CostModel(DOMAIN, [Factor(labels, np.array(table).reshape(shape))], unit="MACs", constraints=rules)


def everything() -> list[dict[str, int]]:
    return [dict(zip(DOMAIN, values, strict=True)) for values in itertools.product(*DOMAIN.values())]


def test_evaluation_of_dictionaries_arrays_and_one_member() -> None:
    model, truth = dense_net()
    members = everything()
    expected = truth.evaluate(members)
    np.testing.assert_array_equal(model.evaluate(members), expected)
    np.testing.assert_array_equal(model.evaluate(model.indices(members)), expected)
    assert model.evaluate(members[77]) == expected[77]
    assert sum(part for _, part in model.breakdown(members[77])) == expected[77]
    assert model.labels == tuple(DOMAIN)
    assert set(model.factor_labels) == {*LABELS, "kernel"}


def test_an_index_out_of_range_is_refused_before_it_is_looked_up() -> None:
    model, _ = dense_net()
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=r"'w2' is outside 0\.\.2"):
            model.evaluate(np.array([[0, wrong, 0, 0, 0, 0]]))


@pytest.mark.parametrize("constraints", [False, True])
def test_bounds_and_counts(constraints: bool) -> None:
    model, truth = dense_net(constraints=constraints)
    for mine, theirs in ((model.minimum(), truth.minimum()), (model.maximum(), truth.maximum())):
        assert mine.cost == theirs.cost == truth.evaluate(mine.sample)
        assert list(mine.sample) == list(DOMAIN)
    for low, high in ((None, None), (None, 1500), (1200, 2500), (2500, None)):
        assert model.count_within(low, high) == truth.count_within(low, high)
        assert model.count_within(low, high).exact
    rows = model.indices(everything())
    np.testing.assert_array_equal(model.allowed(rows), truth.allowed(rows))


@pytest.mark.parametrize("constraints", [False, True])
def test_draws_are_uniform(constraints: bool) -> None:
    model, truth = dense_net(constraints=constraints)
    members = everything()
    costs, allowed = truth.evaluate(members), truth.allowed(members)
    feasible = [s for s, c, ok in zip(members, costs, allowed, strict=True) if 1000 <= c <= 1400 and ok]
    draws = Counter(tuple(s.values()) for s in model.sample_within(1000, 1400, n=20 * len(feasible), seed=1))
    assert set(draws) <= {tuple(s.values()) for s in feasible}
    found = [draws[tuple(s.values())] for s in feasible]
    assert stats.chisquare(found).pvalue > 1e-4


def test_an_empty_range_tells_the_nearest_cost() -> None:
    model, truth = dense_net()
    with pytest.raises(BudgetError, match="the minimum is"):
        model.sample_within(high=10)
    costs = np.unique(truth.evaluate(everything()))
    gap = int(np.diff(costs).argmax())
    with pytest.raises(BudgetError) as caught:
        model.sample_within(costs[gap] + 0.25, costs[gap + 1] - 0.25)
    assert caught.value.nearest in (costs[gap], costs[gap + 1])


def test_the_expectation_and_its_gradient() -> None:
    model, truth = dense_net()
    generator = torch.Generator().manual_seed(0)
    p = {label: torch.rand(len(v), generator=generator, dtype=torch.double).softmax(0) for label, v in DOMAIN.items()}
    results = []
    for each in (model, truth):
        given = {label: v.clone().requires_grad_() for label, v in p.items()}
        expected = each.expectation(given)
        results.append((expected, torch.autograd.grad(expected, list(given.values()))))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-12, atol=0)
    weighted = sum(
        math.prod(p[k][DOMAIN[k].index(v)].item() for k, v in s.items()) * truth.evaluate(s) for s in everything()
    )
    assert results[0][0].item() == pytest.approx(weighted, rel=1e-12)
    for label, mine, theirs in zip(p, results[0][1], results[1][1], strict=True):
        # Tables that do not have a label are multiplied by the sum of its probabilities, or are not: the derivative
        # along the simplex is the same.
        torch.testing.assert_close(mine - mine.mean(), theirs - theirs.mean(), rtol=1e-9, atol=1e-7, msg=label)
    assert model.expectation({label: v.float() for label, v in p.items()}).dtype == torch.float32


def test_tables_that_cannot_be_eliminated_together_are_eliminated_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, truth = dense_net()
    p = {label: torch.full((len(v),), 1 / len(v), dtype=torch.double) for label, v in DOMAIN.items()}
    largest = expectation._largest
    monkeypatch.setattr(expectation, "MAX_REPLACED", 1)

    def large_together(compiled: Compiled, part: expectation._Elimination) -> tuple[int, tuple[int, ...]]:
        entries, labels = largest(compiled, part)
        return (expectation.MAX_ENTRIES + 1 if len(part.costs) > 1 else entries), labels

    monkeypatch.setattr(expectation, "_largest", large_together)
    assert len(model._expectation._eliminations) == 4
    assert model.expectation(p).item() == pytest.approx(truth.expectation(p).item(), rel=1e-12)
    monkeypatch.setattr(expectation, "MAX_ENTRIES", 10)
    with pytest.raises(UnsupportedError, match="the factors tie 3 labels together: w1, w2, sum of 2"):
        dense_net()[0].expectation(p)


@pytest.mark.parametrize("order", [list(DOMAIN), list(reversed(DOMAIN))])
def test_the_least_completion_of_what_was_decided(order: list[str]) -> None:
    model, truth = dense_net()
    least = LeastCompletion(model.factors, order, constant=model.constant)
    costs = truth.evaluate(everything()).reshape([len(values) for values in DOMAIN.values()])
    costs = costs.transpose([list(DOMAIN).index(label) for label in order])
    for position, label in enumerate(order):
        if label == "idle":
            assert not least.depends(position)
            continue
        rows = np.indices(costs.shape[:position]).reshape(position, math.prod(costs.shape[:position])).T
        rest = costs.reshape(*costs.shape[: position + 1], -1).min(-1)
        np.testing.assert_allclose(least.costs(position, rows), rest.reshape(-1, costs.shape[position]), rtol=1e-12)


def test_several_costs_at_once() -> None:
    model, truth = dense_net()
    other = CostModel(DOMAIN, [Factor(("w4", "kernel"), [[8, 72], [16, 144], [24, 216]])], unit="parameters")
    both = JointRanges([Range(model, high=1500), Range(other, low=16, high=80)])
    expected = JointRanges([Range(truth, high=1500), Range(other, low=16, high=80)])
    assert both.count() == expected.count()
    for sample in both.sample(50, seed=3):
        assert truth.evaluate(sample) <= 1500
        assert 16 <= other.evaluate(sample) <= 80


def test_sums_scaled_costs_copies_and_files() -> None:
    model, truth = dense_net(constraints=True)
    members = everything()
    expected = truth.evaluate(members)
    for same in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        CostModel.from_dict(json.loads(json.dumps(model.to_dict()))),
    ):
        np.testing.assert_array_equal(same.evaluate(members), expected)
        assert same.minimum() == model.minimum()
    np.testing.assert_array_equal((2 * model + model).evaluate(members), 3 * expected)


def test_intermediates_that_nothing_depends_on_do_not_change_a_count() -> None:
    (total, *_) = prefix_sums()
    model = CostModel(DOMAIN, [Factor((total,), np.zeros(5)), Factor(("kernel",), [1, 2])])
    assert model.count_within().value == len(everything())
    assert model.count_within(high=1).value == len(everything()) // 2


def test_what_is_refused() -> None:
    (total, *_) = prefix_sums()
    with pytest.raises(ValueError, match="all numbers from 0"):
        Intermediate("gap", ("w1",), [0, 2, 2])
    with pytest.raises(ValueError, match="expected integers"):
        Intermediate("floats", ("w1",), [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="expected integers"):
        Intermediate("axes", ("w1", "w2"), [0, 1, 2])
    other = Intermediate("sum of 2", ("w1", "w2"), np.add.outer(np.arange(3), np.arange(3)) // 4)
    with pytest.raises(ValueError, match="computed in different ways"):
        CostModel(DOMAIN, [Factor((total,), np.zeros(5)), Factor((other,), np.zeros(2))])
    with pytest.raises(ValueError, match="a label and of an intermediate"):
        CostModel({**DOMAIN, "sum of 2": [0]}, [Factor((total,), np.zeros(5))])
    with pytest.raises(ValueError, match="not in the domain"):
        CostModel({"w1": WIDTHS}, [Factor((total,), np.zeros(5))])
    with pytest.raises(ValueError, match=r"2 entries for 'sum of 2', but that has 5"):
        CostModel(DOMAIN, [Factor((total,), np.zeros(2))])


def test_the_table_of_an_intermediate_stays_as_it_is() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Intermediate("place", ("w1",), [0, 1, 2]).table[0] = 1
