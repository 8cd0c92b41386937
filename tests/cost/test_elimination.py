from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hwnas.cost import CostModel, Factor
from hwnas.cost.elimination import elimination_order
from hwnas.errors import BudgetError, UnsupportedError


@pytest.mark.parametrize("n_constraints", [0, 3])
@pytest.mark.parametrize("seed", range(15))
def test_extremes_equal_enumeration(
    seed: int,
    n_constraints: int,
    make_model: Callable[..., CostModel],
    enumerate_model: Callable[[CostModel], Any],
) -> None:
    model = make_model(seed, n_labels=7, n_factors=7, n_constraints=n_constraints)
    everything = enumerate_model(model)
    costs = everything.costs[everything.allowed]
    if not len(costs):
        with pytest.raises(BudgetError, match="constraints"):
            model.minimum()
        return
    for extreme, expected in ((model.minimum(), costs.min()), (model.maximum(), costs.max())):
        assert extreme.cost == pytest.approx(expected, abs=1e-12)
        assert extreme.sample.keys() == set(model.labels)
        assert model.evaluate(extreme.sample) == extreme.cost
        assert model.allowed([extreme.sample]).all()


def test_contradicting_constraints_are_reported() -> None:
    either = [Factor(("a",), [True, False]), Factor(("a",), [False, True])]
    with pytest.raises(BudgetError, match="no architecture satisfies"):
        CostModel({"a": [1, 2]}, [], constraints=either).minimum()


def test_a_long_chain_is_no_effort() -> None:
    rng = np.random.default_rng(0)
    n = 200
    model = CostModel(
        {f"c{i}": range(5) for i in range(n)},
        [Factor((f"c{i}", f"c{i + 1}"), rng.random((5, 5))) for i in range(n - 1)],
    )
    best = np.zeros(5)  # by the recurrence along the chain
    for factor in reversed(model.factors):
        best = (factor.table + best).min(axis=1)
    assert model.minimum().cost == pytest.approx(best.min())


def test_a_star_is_eliminated_from_its_leaves() -> None:
    leaves = list(range(1, 30))
    order = elimination_order([(0, leaf) for leaf in leaves], [3] * 30)
    # Any order in which the hub is not taken while it still has more than one leaf.
    assert order.index(0) >= len(leaves) - 1


def test_min_fill_is_used_where_the_smallest_table_first_goes_wrong() -> None:
    # A grid: any order works, but it must stay within the limit of a good one.
    side, options = 6, 4
    scopes = [(r * side + c, r * side + c + 1) for r in range(side) for c in range(side - 1)]
    scopes += [(r * side + c, (r + 1) * side + c) for r in range(side - 1) for c in range(side)]
    rng = np.random.default_rng(1)
    model = CostModel(
        {str(i): range(options) for i in range(side * side)},
        [Factor((str(a), str(b)), rng.random((options, options))) for a, b in scopes],
    )
    assert model.minimum().cost < model.maximum().cost


def test_too_wide_tables_are_refused_with_their_labels() -> None:
    n = 12
    pairs = [(i, j) for i in range(n) for j in range(i)]
    model = CostModel(
        {f"l{i}": range(8) for i in range(n)},
        [Factor((f"l{i}", f"l{j}"), np.add.outer(np.arange(8) ** 2, np.arange(8)) % 5) for i, j in pairs],
    )
    with pytest.raises(UnsupportedError, match=r"tie 12 labels together: l0, l1, .*sums of smaller ones"):
        model.minimum()
    with pytest.raises(BudgetError, match=r"was found that costs at most 10, .*nearest that was found: about"):
        model.sample_within(high=10.0)
    equal = [Factor(factor.labels, factor.table < 4) for factor in model.factors]
    with pytest.raises(UnsupportedError, match="budget sampler needs a table"):
        CostModel(model.domain.values, [], constraints=equal).sample_within(high=10.0)
