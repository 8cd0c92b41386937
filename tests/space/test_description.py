from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.space import (
    Categorical,
    CategoricalMultiple,
    Constraint,
    ExpressionConstraint,
    Mutable,
    MutableDict,
    MutableList,
    Numerical,
    SpaceError,
    condition,
    length,
    space_from_json,
    space_to_json,
    switch_case,
)


def through_json(space: Mutable) -> Mutable:
    return space_from_json(json.loads(json.dumps(space_to_json(space), allow_nan=False)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_space_comes_back_with_its_conditions_and_constraints(toys: SimpleNamespace, data: st.DataObject) -> None:
    spec = data.draw(toys.specs)
    space = toys.build(spec)
    restored = through_json(space)
    assert space_to_json(restored) == space_to_json(space)
    assert list(restored.simplify()) == list(space.simplify())
    assert list(restored.grid()) == list(space.grid())
    # As sets: which inactive dimension is decided first is not part of a space.
    assert {frozenset(point.items()) for point in restored.grid(active_only=True)} == {
        frozenset(point) for point in toys.active_points(spec)
    }
    if space.size():
        seed = data.draw(st.integers(0, 100))
        assert restored.random(random_state=seed) == space.random(random_state=seed)


def test_every_kind_of_dimension_and_expression_comes_back() -> None:
    a = Categorical([1, (2, 3), None], weights=[0.25, 0.5, 0.25], default=(2, 3), label="a")
    m = CategoricalMultiple("xyz", None, weights=[0.1, 0.2, 0.3], label="m")
    x = Numerical(mu=0, sigma=1, low=-1, label="x")
    q = Numerical(1, 100, log_distributed=True, quantize=2, label="q")
    k = Categorical([0, 1, 2], label="k")
    cases = switch_case(k, {0: 1, 1: x < 0}, 2)
    limits = [
        ExpressionConstraint(x < 0, label="negative"),
        ExpressionConstraint((length(m) + k**2 > 1) | (m[0] == "x")),
        ExpressionConstraint(condition(k > 0, cases, (1, k, "t")[1] + k) != -(5 // (k + 1))),
        ExpressionConstraint(m[slice(0, k)] != [1]),
    ]
    space = MutableDict({"parts": MutableList([a, m, x, q, k]), "limits": MutableList(limits)})
    restored = through_json(space)
    assert {label: d.describe() for label, d in restored.simplify().items()} == {
        label: d.describe() for label, d in space.simplify().items()
    }
    for seed in range(30):
        sample = space.random(random_state=seed)
        assert restored.random(random_state=seed) == sample
        broken = {**sample, "x": 0.5}
        assert restored.contains(sample)
        assert str(restored.check_contains(broken)) == space.check_contains(broken).message


def test_a_described_space_freezes_to_what_is_active(toys: SimpleNamespace) -> None:
    inner = [Categorical([1, 2], label="b"), Categorical([3, 4], label="c")]
    space = MutableList([toys.Branch("pick", inner), toys.Prefix("depth", [Categorical([(5, 5)], label="d")])])
    restored = through_json(space)
    assert restored.freeze({"pick": 1, "b": 2, "c": 4, "depth": 0}) == {"pick": 1, "c": 4, "depth": 0}
    assert restored.freeze({"pick": 0, "b": 2, "depth": 1, "d": (5, 5)}) == {"pick": 0, "b": 2, "depth": 1, "d": (5, 5)}
    assert restored.size(active_only=True) == space.size(active_only=True) == 8


def test_the_description_is_readable(toys: SimpleNamespace) -> None:
    a = Categorical([1, (2, 3)], weights=[0.25, 0.75], default=(2, 3), label="a")
    space = toys.Branch("pick", [MutableList([a]), MutableList([ExpressionConstraint(a[0] > 2, label="big")])])
    assert space_to_json(space) == {
        "schema_version": 1,
        "labels": {
            "pick": {"kind": "categorical", "values": [0, 1], "weights": None, "default": 0},
            "a": {"kind": "categorical", "values": [1, [2, 3]], "weights": [0.25, 0.75], "default": [2, 3]},
        },
        "active": [
            {
                "switch": "pick",
                "cases": [
                    [0, ["pick", "a"]],
                    [
                        1,
                        [
                            "pick",
                            {
                                "constraint": {
                                    "operator": ">",
                                    "operands": [{"operator": "getitem", "operands": [{"label": "a"}, 0]}, 2],
                                },
                                "name": "big",
                            },
                        ],
                    ],
                ],
            }
        ],
    }


def test_what_has_no_description_is_an_error() -> None:
    class Odd(Constraint):
        def violation(self, sample: Any) -> str | None:
            return None

    with pytest.raises(SpaceError, match="Python code, which has no description"):
        space_to_json(MutableList([Odd()]))

    x = Numerical(0, 1, label="x")

    class Threshold(Mutable):
        def sub_mutables(self, sample: Any = None) -> Any:
            yield x
            if sample is None or sample["x"] > 0.5:
                yield Categorical([1, 2], label="a")

        def freeze(self, sample: Any) -> Any:
            return None

    with pytest.raises(SpaceError, match="what is active depends on 'x'"):
        space_to_json(Threshold())
    constant = Categorical([1], label="a") == object()
    with pytest.raises(SpaceError, match="is no JSON value"):
        space_to_json(MutableList([ExpressionConstraint(constant)]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "expected an object"),
        ({"labels": {}}, "expected an object"),
        ({"schema_version": 2, "labels": {}, "active": []}, "schema version 2"),
        ({"schema_version": 1, "labels": {}, "active": ["a"]}, "damaged: KeyError"),
        ({"schema_version": 1, "labels": {"a": {"kind": "odd"}}, "active": []}, "unknown kind 'odd'"),
        ({"schema_version": 1, "labels": {"a": 3}, "active": []}, "damaged"),
        ({"schema_version": 1, "labels": {}, "active": [{"constraint": {"operator": "exec", "operands": []}}]}, "exec"),
    ],
)
def test_damaged_descriptions_are_refused(data: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        space_from_json(data)
