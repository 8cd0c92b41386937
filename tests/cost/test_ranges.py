"""Several costs at once, against the enumeration of all members."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare  # type: ignore[import-untyped]

from hwnas.cost import CostModel, Factor, JointRanges, Range
from hwnas.errors import BudgetError

LEVEL = 1e-4
Make = Callable[..., CostModel]
Enumerate = Callable[[CostModel], Any]


def _another(model: CostModel, seed: int, *, integers: bool = False, n_constraints: int = 0) -> CostModel:
    """Give another cost of the same space, with constraints of its own."""
    rng = np.random.default_rng((seed, 1))
    labels = list(model.labels)

    def scope() -> tuple[list[str], list[int]]:
        chosen = [labels[i] for i in rng.permutation(len(labels))[: rng.integers(1, 3)]]
        return chosen, [len(model.domain.values[label]) for label in chosen]

    factors = []
    for _ in range(5):
        names, shape = scope()
        factors.append(Factor(names, rng.integers(-9, 9, shape) if integers else rng.normal(size=shape)))
    constraints = []
    for _ in range(n_constraints):
        names, shape = scope()
        allowed = rng.random(shape) < 0.7
        allowed.flat[0] = True
        constraints.append(Factor(names, allowed))
    return CostModel(model.domain.values, factors, unit="bytes", constraints=constraints)


def _within(ranges: list[Range], everything: Any) -> np.ndarray:
    inside = np.ones(len(everything.rows), dtype=bool)
    for each in ranges:
        costs = each.model.evaluate(everything.rows)
        inside &= each.model.allowed(everything.rows)
        inside &= costs >= (-math.inf if each.low is None else each.low)
        inside &= costs <= (math.inf if each.high is None else each.high)
    return inside


def _check(ranges: list[Range], everything: Any, weights: dict[str, list[float]] | None = None) -> Any:
    """Compare count and draws with the enumeration; give the draws."""
    inside = _within(ranges, everything)
    joint = JointRanges(ranges)
    domain = ranges[0].model.domain
    count = joint.count()
    assert count.exact
    assert count.value == inside.sum()
    prior = inside.astype(float)
    for i, label in enumerate(domain.labels):
        vector = np.array((weights or {}).get(label, [1.0] * domain.sizes[i]))
        prior *= vector[everything.rows[:, i]]
    prior /= prior.sum()
    sampler = joint.sampler(weights)
    rows = sampler.draw(4000, seed=1)
    counts = np.bincount(np.ravel_multi_index(tuple(rows.T), domain.sizes), minlength=len(prior))
    assert counts[prior == 0].sum() == 0
    order = np.argsort(prior)  # rare members together, until a cell expects five
    order = order[prior[order] > 0]
    cells = np.floor(np.cumsum(prior[order]) * 4000 / 5).astype(int)
    _, cells = np.unique(cells, return_inverse=True)
    observed, wanted = np.bincount(cells, counts[order]), np.bincount(cells, prior[order]) * 4000
    if len(wanted) > 1:
        assert chisquare(observed, wanted * 4000 / wanted.sum()).pvalue > LEVEL
    return sampler._draws


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_draws_and_counts_within_two_ranges(
    seed: int, integers: bool, make_model: Make, enumerate_model: Enumerate
) -> None:
    first = make_model(seed, n_labels=5, n_factors=5, n_constraints=seed % 2, integers=integers)
    second = _another(first, seed, integers=integers, n_constraints=1)
    everything = enumerate_model(first)
    allowed = first.allowed(everything.rows) & second.allowed(everything.rows)
    costs = [model.evaluate(everything.rows)[allowed] for model in (first, second)]
    rng = np.random.default_rng(seed)
    weights = {label: rng.gamma(1.0, size=len(v)).tolist() for label, v in first.domain.values.items()}
    (a, b), (c, d) = (np.quantile(cost, [0.3, 0.7], method="nearest").tolist() for cost in costs)
    for ranges in (
        [Range(first, high=b), Range(second, high=d)],
        [Range(first, low=a), Range(second, high=d)],
        [Range(first, a, b), Range(second, c, d)],
        [Range(first), Range(second, low=c)],
        [Range(first), Range(second)],
    ):
        if _within(ranges, everything).any():
            _check(ranges, everything)
            _check(ranges, everything, weights)


def test_three_ranges(make_model: Make, enumerate_model: Enumerate) -> None:
    first = make_model(4, n_labels=6, n_factors=5)
    models = [first, _another(first, 1), _another(first, 2)]
    everything = enumerate_model(first)
    ranges = [Range(m, high=float(np.quantile(m.evaluate(everything.rows), 0.7))) for m in models]
    assert _within(ranges, everything).sum() > 5
    _check(ranges, everything)


@pytest.mark.parametrize("way", ["joint", "sum", "alone"])
def test_every_way_of_drawing_gives_the_same_distribution(
    way: str, monkeypatch: pytest.MonkeyPatch, make_model: Make, enumerate_model: Enumerate
) -> None:
    # Coarse bins, nothing listed: what remains is right because draws are checked.
    monkeypatch.setattr("hwnas.cost.draws.LEVELS", (16,))
    monkeypatch.setattr("hwnas.cost.draws.Draws._list", lambda *_: False)
    from hwnas.cost.draws import Draws

    original = Draws._ways

    def only(self: Draws) -> Any:
        number = {"joint": 0, "sum": 1, "alone": 2}[way]
        yield list(original(self))[number]

    monkeypatch.setattr(Draws, "_ways", only)
    for seed in range(3):
        first = make_model(seed, n_labels=5, n_factors=5, n_constraints=1)
        second = _another(first, seed)
        everything = enumerate_model(first)
        costs = [m.evaluate(everything.rows)[everything.allowed] for m in (first, second)]
        ranges = [
            Range(first, high=float(np.quantile(costs[0], 0.5))),
            Range(second, low=float(np.quantile(costs[1], 0.3))),
        ]
        assert _within(ranges, everything).any()
        draws = _check(ranges, everything)
        assert draws.listed is None
    # Costs without a common label.
    domain = {"a": range(6), "b": range(6)}
    time, size = (CostModel(domain, [Factor(label, np.arange(6.0))]) for label in domain)
    assert _check([Range(time, high=3.5), Range(size, high=2.5)], enumerate_model(time)).listed is None


def test_one_member_in_a_million_is_found() -> None:
    rng = np.random.default_rng(7)
    names = [f"l{i}" for i in range(10)]
    domain = {name: range(4) for name in names}
    time, size = (CostModel(domain, [Factor((a, b), rng.random((4, 4))) for a, b in pairwise(names)]) for _ in range(2))
    grid = np.indices((4,) * 10).reshape(10, -1).T  # 1,048,576 members
    fast, small = time.evaluate(grid), size.evaluate(grid)
    # The member that is smallest among the fastest thousandth, between ends that let nothing else in.
    candidates = np.flatnonzero(fast <= np.quantile(fast, 0.001))
    target = candidates[small[candidates].argmin()]
    ranges = [Range(time, high=float(np.quantile(fast, 0.001))), Range(size, high=float(small[target]))]
    assert JointRanges(ranges).count().value == 1
    drawn = JointRanges(ranges).sampler().draw(20, seed=3)
    assert (drawn == grid[target]).all()
    # And a few members far from any extreme of their own.
    middle = [Range(time, *np.quantile(fast, [0.5, 0.501])), Range(size, *np.quantile(small, [0.3, 0.301]))]
    inside = (fast >= middle[0].low) & (fast <= middle[0].high) & (small >= middle[1].low) & (small <= middle[1].high)
    drawn = JointRanges(middle).sampler().draw(500, seed=3)
    assert {tuple(row) for row in drawn} <= {tuple(row) for row in grid[inside]}
    count = JointRanges(middle).count()
    assert count.lower <= inside.sum() <= count.upper


def test_a_large_space_with_opposed_costs() -> None:
    # 16^20 members; few of the fast ones are large. Independent truth: the draws are checked by their costs.
    rng = np.random.default_rng(1)
    domain = {f"l{i}": range(16) for i in range(20)}
    time = CostModel(domain, [Factor((label,), rng.random(16)) for label in domain], unit="ms")
    size = CostModel(domain, [Factor((label,), rng.random(16)) for label in domain], unit="bytes")
    fast, large = time.minimum().cost + 1.5, size.maximum().cost - 6.0
    ranges = [Range(time, high=fast), Range(size, low=large)]
    drawn = JointRanges(ranges).sample(50, seed=2)
    assert (time.evaluate(drawn) <= fast).all()
    assert (size.evaluate(drawn) >= large).all()
    assert len({tuple(sample.values()) for sample in drawn}) > 40


def test_models_need_not_know_the_same_labels() -> None:
    time = CostModel({"a": [1, 2], "b": [1, 2]}, [Factor(("a", "b"), [[1.0, 2.0], [3.0, 4.0]])])
    size = CostModel({"b": [1, 2], "c": [1, 2]}, [Factor(("b", "c"), [[1.0, 5.0], [6.0, 2.0]])])
    joint = JointRanges([Range(time, high=3), Range(size, high=2)])
    found = {tuple(sample.items()) for sample in joint.sample(200)}
    # b = 1 needs c = 1; b = 2 needs c = 2 and a = 1.
    assert found == {
        (("a", 1), ("b", 1), ("c", 1)),
        (("a", 2), ("b", 1), ("c", 1)),
        (("a", 1), ("b", 2), ("c", 2)),
    }
    assert joint.count().value == 3
    other = CostModel({"b": [1, 3]}, [])
    with pytest.raises(ValueError, match=r"'b' has the values \(1, 2\) in one model and \(1, 3\)"):
        JointRanges([Range(time), Range(other)])


def test_branches_that_are_not_active() -> None:
    # The width of the second block matters where there is one.
    domain = {"depth": [1, 2], "width1": [1, 2, 3], "width2": [1, 2, 3]}
    time = CostModel(
        domain, [Factor("width1", [1.0, 2.0, 3.0]), Factor("width2", [1.0, 2.0, 3.0]).gated("depth", [False, True])]
    )
    size = CostModel(
        domain, [Factor("width1", [9.0, 3.0, 1.0]), Factor("width2", [9.0, 3.0, 1.0]).gated("depth", [False, True])]
    )
    joint = JointRanges([Range(time, high=4), Range(size, high=6)])
    members = [s for s in map(dict, _product(domain)) if _cost(s, 1) <= 4 and _cost(s, -1) <= 6]
    assert joint.count().value == len(members)
    found = {tuple(sample.values()) for sample in joint.sample(400)}
    assert found == {tuple(sample.values()) for sample in members}


def _product(domain: dict[str, list[int]]) -> Any:
    for index in np.ndindex(*map(len, domain.values())):
        yield zip(domain, (values[i] for values, i in zip(domain.values(), index, strict=True)), strict=True)


def _cost(sample: dict[str, int], side: int) -> int:
    of = (lambda w: w) if side > 0 else {1: 9, 2: 3, 3: 1}.__getitem__
    return int(of(sample["width1"]) + (of(sample["width2"]) if sample["depth"] == 2 else 0))


@pytest.mark.parametrize("seed", range(4))
def test_ranges_that_exclude_each_other_name_what_is_reachable(
    seed: int, make_model: Make, enumerate_model: Enumerate
) -> None:
    first = make_model(seed, n_labels=5, n_factors=5)
    second = _another(first, seed, n_constraints=1)
    everything = enumerate_model(first)
    allowed = second.allowed(everything.rows)
    a, b = (model.evaluate(everything.rows)[allowed] for model in (first, second))
    for share in (0.2, 0.5):
        high = float(np.quantile(a, share))
        low = float(np.nextafter(b[a <= high].max(), math.inf))
        if low > b.max():
            continue
        with pytest.raises(BudgetError, match="while the other ranges are kept") as caught:
            JointRanges([Range(first, high=high), Range(second, low=low)]).sample()
        assert caught.value.nearest == (a[b >= low].min(), b[a <= high].max())
        assert first._compiled.format(caught.value.nearest[0], 12) in str(caught.value)
        assert f"instead of at least {second._compiled.format(low)}" in str(caught.value)


def test_one_range_out_of_reach_is_told_as_when_it_is_alone() -> None:
    domain = {"a": [1, 2]}
    time = CostModel(domain, [Factor("a", [1.0, 2.0])], unit="ms")
    size = CostModel(domain, [Factor("a", [5.0, 6.0])], unit="bytes")
    with pytest.raises(BudgetError, match="at most 4 bytes: the minimum is 5 bytes") as caught:
        JointRanges([Range(time, high=1), Range(size, high=4)]).sample()
    assert caught.value.nearest == 5.0
    assert JointRanges([Range(time, high=1), Range(size, high=4)]).count().value == 0


def test_costs_that_tie_too_many_labels_together_are_drawn_within_one() -> None:
    rng = np.random.default_rng(0)
    labels = [f"l{i}" for i in range(24)]
    domain = {label: range(4) for label in labels}
    time = CostModel(domain, [Factor(pair, rng.random((4, 4))) for pair in pairwise(labels)])
    crossed = rng.permutation(24)
    pairs = [(labels[i], labels[j]) for i, j in zip(crossed, np.roll(crossed, 7), strict=True)]
    pairs += [(labels[i], labels[j]) for i, j in zip(crossed, np.roll(crossed, 3), strict=True)]
    size = CostModel(domain, [Factor(pair, rng.random((4, 4))) for pair in pairs])
    high = float(np.quantile(time.evaluate(rng.integers(0, 4, (4000, 24))), 0.01))
    joint = JointRanges([Range(time, high=high), Range(size, high=24.0)])
    count = joint.count()
    assert 0 <= count.lower <= count.value <= count.upper <= 4**24
    drawn = joint.sample(50)
    assert (time.evaluate(drawn) <= high).all()
    assert (size.evaluate(drawn) <= 24.0).all()


def test_bad_ranges_are_refused() -> None:
    model = CostModel({"a": [1, 2]}, [Factor("a", [1.0, 2.0])])
    with pytest.raises(ValueError, match="there is no range"):
        JointRanges([])
    with pytest.raises(ValueError, match="low <= high"):
        JointRanges([Range(model), Range(model, 2, 1)]).sample()


def test_whole_numbers_need_no_rejection(monkeypatch: pytest.MonkeyPatch, enumerate_model: Enumerate) -> None:
    monkeypatch.setattr("hwnas.cost.draws.Draws._list", lambda *_: False)
    rng = np.random.default_rng(5)
    domain = {f"l{i}": range(4) for i in range(6)}
    time, size = (
        CostModel(domain, [Factor(pair, rng.integers(0, 6, (4, 4))) for pair in pairwise(domain)]) for _ in range(2)
    )
    everything = enumerate_model(time)
    a, b = (float(np.quantile(model.evaluate(everything.rows), 0.2)) for model in (time, size))
    for ranges in ([Range(time, high=a), Range(size, high=b)], [Range(time, low=a + 3), Range(size, b, b + 9)]):
        assert _check(ranges, everything).acceptance == 1.0


def test_costs_that_grow_against_each_other(enumerate_model: Enumerate) -> None:
    # No member is near both limits, yet many are within both.
    domain = {"a": range(10), "b": range(10)}
    time = CostModel(domain, [Factor(label, np.arange(10.0)) for label in domain])
    size = CostModel(domain, [Factor(label, np.arange(10.0)[::-1]) for label in domain])
    everything = enumerate_model(time)
    _check([Range(time, high=14), Range(size, high=14)], everything)
    _check([Range(time, low=4), Range(size, low=4)], everything)
    with pytest.raises(BudgetError, match="10 instead of at most 9, or 9 instead of at most 8") as caught:
        JointRanges([Range(time, high=9), Range(size, high=8)]).sample()
    assert caught.value.nearest == (10, 9)
