from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import SampleError
from hwnas.space import Categorical, CategoricalMultiple, ExpressionConstraint, MutableList, Numerical


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_points_are_those_of_brute_force_in_order(toys: SimpleNamespace, data: st.DataObject) -> None:
    spec = data.draw(toys.specs)
    assert list(toys.build(spec).grid()) == toys.all_points(spec)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_active_points_are_those_of_brute_force(toys: SimpleNamespace, data: st.DataObject) -> None:
    spec = data.draw(toys.specs)
    found = [tuple(sorted(point.items())) for point in toys.build(spec).grid(active_only=True)]
    assert len(set(found)) == len(found)
    assert set(found) == toys.active_points(spec)


@pytest.mark.parametrize("active_only", [False, True])
def test_every_point_is_a_new_dict_with_new_lists(active_only: bool) -> None:
    space = MutableList([CategoricalMultiple([1, 2], label="m"), Categorical([1, 2], label="a")])
    points = list(space.grid(active_only=active_only))
    assert len({id(point) for point in points}) == len({id(point["m"]) for point in points}) == 6
    walk = space.grid(active_only=active_only)
    first = next(walk)
    first["m"].append(5)
    first["a"] = 9
    assert list(walk) == points[1:]


@pytest.mark.parametrize("active_only", [False, True])
def test_the_grid_is_lazy(active_only: bool) -> None:
    space = MutableList([Categorical(range(10), label=f"x{i}") for i in range(100)])
    first = list(itertools.islice(space.grid(active_only=active_only), 12))
    assert first[11]["x99"] == 1
    assert first[11]["x98"] == 1
    assert first[11]["x97"] == 0


def test_a_constraint_cuts_before_the_product_is_run_through() -> None:
    labels = [Categorical(range(10), label=f"x{i}") for i in range(40)]
    pairs = [ExpressionConstraint(a + b == 0) for a, b in itertools.pairwise(labels)]
    space = MutableList([*labels, *pairs])
    for active_only in (False, True):
        assert [set(point.values()) for point in space.grid(active_only=active_only)] == [{0}]


def test_memo_fixes_labels_and_is_left_alone() -> None:
    space = MutableList([Categorical([1, 2], label="a"), Categorical([1, 2], label="b")])
    memo = {"a": 2, "elsewhere": 0}
    assert list(space.grid(memo)) == list(space.grid(memo, active_only=True)) == [{"a": 2, "b": 1}, {"a": 2, "b": 2}]
    assert memo == {"a": 2, "elsewhere": 0}
    with pytest.raises(SampleError, match=r"^a: the value given in memo is wrong"):
        list(space.grid({"a": 5}))


def test_inactive_memo_labels_are_left_out(toys: SimpleNamespace) -> None:
    space = toys.Branch("pick", [Categorical([1, 2], label="a"), Categorical([3], label="b")])
    assert list(space.grid({"a": 2}, active_only=True)) == [{"pick": 0, "a": 2}, {"pick": 1, "b": 3}]


def test_granularity() -> None:
    space = MutableList([Categorical([1, 2], label="a"), Numerical(0, 1, label="x")])
    assert [tuple(point.values()) for point in space.grid(granularity=3)] == list(
        itertools.product([1, 2], [0, 0.5, 1])
    )
    with pytest.raises(ValueError, match="'x' is continuous"):
        list(space.grid())


def test_no_point_is_valid() -> None:
    a = Categorical([1, 2], label="a")
    space = MutableList([a, ExpressionConstraint(a > 5)])
    assert list(space.grid()) == list(space.grid(active_only=True)) == []
    assert space.size() == space.size(active_only=True) == 0
