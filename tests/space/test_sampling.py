from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import SampleError
from hwnas.space import (
    Categorical,
    CategoricalMultiple,
    ExpressionConstraint,
    MutableList,
    Numerical,
    counting,
    sampling,
    to_int,
)
from hwnas.space.walk import Structure


def tight(n: int = 6) -> MutableList:
    """Return a space in which one point in n**3 is valid."""
    parts = [Categorical(range(n), label=name) for name in "abc"]
    return MutableList([*parts, ExpressionConstraint(parts[0] + parts[1] + parts[2] == 3 * (n - 1))])


def test_default_ignores_constraints_and_memo_wins() -> None:
    space = tight()
    assert space.default() == {"a": 0, "b": 0, "c": 0}
    memo: dict[str, Any] = {"b": 3, "other": 1}
    assert space.default(memo) == {"a": 0, "b": 3, "c": 0}
    assert memo == {"a": 0, "b": 3, "c": 0, "other": 1}


def test_results_and_memo_share_no_list() -> None:
    space = CategoricalMultiple([1, 2], label="m")
    for use in (space.default, space.random, space.robust_default):
        memo: dict[str, Any] = {}
        sample = use(memo)
        assert memo == sample
        sample["m"].append(7)
        assert memo["m"] != sample["m"]
        assert use(memo)["m"] is not memo["m"]


def test_robust_default() -> None:
    loose = MutableList([a := Categorical([1, 2, 3], default=2, label="a"), ExpressionConstraint(a >= 2)])
    assert loose.robust_default() == {"a": 2}
    space = tight()
    assert space.robust_default() == {"a": 5, "b": 5, "c": 5}
    assert space.robust_default(tries=0) == {"a": 5, "b": 5, "c": 5}
    many = MutableList([b := Categorical(range(50), label="b"), ExpressionConstraint(b > 10)])
    assert many.robust_default(seed=3) == many.robust_default(seed=3)
    assert len({many.robust_default(seed=seed)["b"] for seed in range(10)}) > 3
    with pytest.raises(SampleError, match=r"no sample of positive weight .*\{a\} \+ \{b\}"):
        space.robust_default({"a": 0}, tries=3)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(0, 2**31), st.sampled_from([0, 100]))
def test_random_samples_are_complete_and_valid(
    toys: SimpleNamespace, data: st.DataObject, seed: int, tries: int
) -> None:
    spec = data.draw(toys.specs)
    space = toys.build(spec)
    points = toys.all_points(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "FIRST_TRIES", tries)
        if not points:
            with pytest.raises(SampleError, match="no sample of positive weight satisfies"):
                space.random(random_state=seed)
            with pytest.raises(SampleError, match="no sample of positive weight satisfies"):
                space.robust_default(seed=seed)
            return
        sample = space.random(random_state=seed)
        assert sample in points
        assert list(sample) == list(toys.domains(spec))
        assert space.random(random_state=seed) == sample
        assert space.robust_default(seed=seed) in points


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_exact_probability_of_the_constraints_is_that_of_brute_force(
    toys: SimpleNamespace, data: st.DataObject
) -> None:
    spec = data.draw(toys.specs)
    structure = Structure(toys.build(spec))
    total = math.prod(len(values) for values in toys.domains(spec).values())
    mass = counting._Recursion(structure, weighted=True).mass([structure.root], counting.Partial())
    assert mass == pytest.approx(len(toys.all_points(spec)) / total)


@pytest.mark.parametrize("tries", [0, 1000])
def test_draws_follow_the_weights_given_the_constraints(
    toys: SimpleNamespace, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rejection and enumeration give the same distribution, which is known by brute force."""
    pick = [0.7, 0.3]
    weights = {"a": [0.1, 0.2, 0.7], "b": [0.5, 0.25, 0.25], "m": None}
    a, b = (Categorical([0, 1, 2], weights=weights[name], label=name) for name in "ab")
    m = CategoricalMultiple([0, 1], label="m")
    branch = toys.Branch("pick", [ExpressionConstraint(a + b <= 1), ExpressionConstraint(a > b)], pick)
    space = MutableList([branch, a, b, m])
    expected: dict[Any, float] = {}
    for p, x, y in np.ndindex(2, 3, 3):
        if x + y <= 1 if p == 0 else x > y:
            for chosen in ((0,), (1,), (0, 1)):
                expected[p, x, y, chosen] = pick[p] * weights["a"][x] * weights["b"][y] / 3
    total = sum(expected.values())
    monkeypatch.setattr(sampling, "FIRST_TRIES", tries)
    rng = np.random.default_rng(1)
    n = 3000
    counts: Counter[Any] = Counter()
    for _ in range(n):
        s = space.random(random_state=rng)
        counts[s["pick"], s["a"], s["b"], tuple(s["m"])] += 1
    assert set(counts) <= set(expected)
    statistic = sum((counts[k] - n * v / total) ** 2 / (n * v / total) for k, v in expected.items())
    # 17 degrees of freedom: the upper 1e-6 quantile is 60.
    assert len(expected) == 18
    assert statistic < 60


def test_one_valid_point_among_many_is_found() -> None:
    for seed in range(3):
        assert set(tight(25).random(random_state=seed).values()) == {24}


def test_many_independent_tight_parts_are_no_obstacle() -> None:
    parts = []
    for i in range(30):
        a, b = Categorical(range(5), label=f"a{i}"), Categorical(range(5), label=f"b{i}")
        parts += [a, b, ExpressionConstraint(a + b == 8)]
    space = MutableList([*parts, Categorical(range(10), label="free")])
    sample = space.random(random_state=0)
    free = sample.pop("free")
    assert set(sample.values()) == {4}
    assert 0 <= free < 10


def test_a_stepped_number_may_be_constrained_tightly() -> None:
    x = Numerical(0, 1000, quantize=1, label="x")
    space = MutableList([x, ExpressionConstraint(x == 777)])
    assert space.random(random_state=0) == {"x": 777}


def test_a_continuous_number_is_drawn_by_rejection() -> None:
    x = Numerical(0, 1, label="x")
    space = MutableList([x, ExpressionConstraint(x > 0.999)])
    assert space.random(random_state=0)["x"] > 0.999
    hopeless = MutableList([x, ExpressionConstraint(x > 1 - 1e-9)])
    with pytest.raises(SampleError, match=r"none of 10100 random samples .*'x' is continuous"):
        hopeless.random(random_state=0)


def test_weight_zero_is_never_drawn() -> None:
    a = Categorical([0, 1, 2], weights=[1, 0, 0], label="a")
    assert {a.random(random_state=seed)["a"] for seed in range(20)} == {0}
    with pytest.raises(SampleError, match="no sample of positive weight"):
        MutableList([a, ExpressionConstraint(a > 0)]).random(random_state=0)


def test_memo_is_honoured_filled_and_checked() -> None:
    space = tight()
    memo: dict[str, Any] = {"a": 5}
    assert space.random(memo, 0) == {"a": 5, "b": 5, "c": 5} == memo
    other = MutableList([Categorical(range(6), label="a"), Categorical("xy", label="z")])
    assert other.random(memo, 0)["a"] == 5
    assert set(memo) == {"a", "b", "c", "z"}
    failing: dict[str, Any] = {"a": 0}
    with pytest.raises(SampleError, match=r"with \{'a': 0\} given"):
        space.random(failing, 0)
    assert failing == {"a": 0}
    with pytest.raises(SampleError, match=r"^a: the value given in memo is wrong: 9 is not one"):
        space.random({"a": 9})


def test_a_generator_is_advanced_and_a_seed_is_not() -> None:
    space = MutableList([Categorical(range(1000), label=name) for name in "abc"])
    rng = np.random.default_rng(0)
    assert space.random(random_state=rng) != space.random(random_state=rng)
    assert space.random(random_state=4) == space.random(random_state=4)


def test_a_faulty_constraint_is_not_taken_for_a_hopeless_one() -> None:
    a = Categorical(["x", "y"], label="a")
    with pytest.raises(ValueError, match="invalid literal"):
        MutableList([a, ExpressionConstraint(to_int(a) > 0)]).random(random_state=0)
