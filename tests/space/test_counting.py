from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.space import Categorical, CategoricalMultiple, ExpressionConstraint, MutableList, counting


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_sizes_are_those_of_brute_force(toys: SimpleNamespace, data: st.DataObject) -> None:
    spec = data.draw(toys.specs)
    space = toys.build(spec)
    assert space.size() == len(toys.all_points(spec))
    assert space.size(active_only=True) == len(toys.active_points(spec))


def test_large_spaces_are_counted_by_their_structure(toys: SimpleNamespace) -> None:
    def block(name: str) -> MutableList:
        parts = [Categorical(range(5), label=f"{name}/{i}") for i in range(4)]
        limit = ExpressionConstraint(parts[0] + parts[1] <= 3)
        return MutableList([*parts, limit])

    space = MutableList(
        [
            toys.Prefix(
                f"depth{i}",
                [toys.Branch(f"op{i}{j}", [block(f"{i}{j}0"), block(f"{i}{j}1")]) for j in range(4)],
            )
            for i in range(10)
        ]
    )
    # 10 pairs of 0..4 sum to at most 3.
    one = 2 * 10 * 25
    assert space.size(active_only=True) == sum(one**depth for depth in range(5)) ** 10
    wide = MutableList([CategoricalMultiple(range(20), label=f"m{i}") for i in range(30)])
    assert wide.size() == wide.size(active_only=True) == (2**20 - 1) ** 30
    assert isinstance(space.size(active_only=True), int)


def test_a_full_size_with_constraints_is_exact_beyond_floating_point() -> None:
    parts = [Categorical(range(7), label=f"x{i}") for i in range(40)]
    space = MutableList([*parts, ExpressionConstraint(parts[0] != parts[1])])
    assert space.size() == 7**38 * (7 * 6)


def test_labels_shared_between_branches_count_once(toys: SimpleNamespace) -> None:
    shared = Categorical([1, 2, 3], label="a")
    space = toys.Branch("pick", [shared, MutableList([shared, Categorical([1, 2], label="b")])])
    assert space.size() == 2 * 3 * 2
    assert space.size(active_only=True) == 3 + 3 * 2
    both = MutableList([space, shared])
    assert both.size(active_only=True) == 3 + 3 * 2


def test_a_label_may_decide_in_two_places(toys: SimpleNamespace) -> None:
    space = MutableList(
        [
            toys.Branch("pick", [Categorical([1, 2], label="a"), MutableList()]),
            toys.Branch("pick", [MutableList(), Categorical([1, 2, 3], label="b")]),
        ]
    )
    assert space.size(active_only=True) == 2 + 3
    assert space.size() == 2 * 2 * 3


def test_too_much_to_enumerate_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MAX_BRANCHES", 1000)
    parts = [Categorical(range(10), label=f"x{i}") for i in range(4)]
    space = MutableList([*parts, ExpressionConstraint(sum(parts[1:], parts[0]) > math.pi)])
    with pytest.raises(ValueError, match="more than 1000 combinations of labels hang together"):
        space.size()


def test_a_label_may_have_parts_of_its_own() -> None:
    class Owner(Categorical):
        def sub_mutables(self, sample=None):  # type: ignore[no-untyped-def]
            yield Categorical([1, 2, 3], label="part")
            if sample is None or sample[self.label] == 1:
                yield Categorical([1, 2, 3, 4], label="rare")

    class Plain(Categorical):
        def sub_mutables(self, sample=None):  # type: ignore[no-untyped-def]
            yield Categorical([1, 2, 3], label="part")

    for space, active in ((Owner([0, 1], label="own"), 3 + 3 * 4), (Plain([0, 1], label="own"), 2 * 3)):
        assert space.size(active_only=True) == len(list(space.grid(active_only=True))) == active
        assert space.size() == len(list(space.grid()))
