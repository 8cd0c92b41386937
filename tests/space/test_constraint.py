from __future__ import annotations

import pytest

from hwnas.errors import SampleError
from hwnas.space import Categorical, Constraint, ExpressionConstraint, MutableDict, MutableList


def choices() -> tuple[Categorical, Categorical]:
    return Categorical([1, 2, 3], label="a"), Categorical([1, 2, 3], label="b")


def test_a_constraint_has_no_key_in_the_sample() -> None:
    a, b = choices()
    space = MutableList([a, b, ExpressionConstraint(a + b <= 4, label="small")])
    assert list(space.simplify()) == ["a", "b"]
    assert set(space.random(random_state=0)) == {"a", "b"}


def test_its_labels_belong_to_the_space() -> None:
    a, b = choices()
    assert list(MutableList([a, ExpressionConstraint(a < b)]).simplify()) == ["a", "b"]


def test_violations_name_the_constraint_the_values_and_the_place() -> None:
    a, b = choices()
    space = MutableDict({"net": MutableList([a, b, ExpressionConstraint(a + b <= 4, label="small")])})
    assert space.contains({"a": 1, "b": 3})
    with pytest.raises(
        SampleError,
        match=r"^net > 2: the constraint 'small' \(\{a\} \+ \{b\}\) <= 4 does not hold for a=2, b=3$",
    ):
        space.validate({"a": 2, "b": 3})


def test_a_missing_label_is_reported_rather_than_the_constraint() -> None:
    a, b = choices()
    with pytest.raises(SampleError, match=r"^b: the sample has no value for this label; it has \['a'\]"):
        ExpressionConstraint(a + b <= 4).validate({"a": 1})


def test_freeze_checks() -> None:
    a, b = choices()
    assert MutableList([a, ExpressionConstraint(a < b)]).freeze({"a": 1, "b": 2}) == [1, None]
    with pytest.raises(SampleError):
        ExpressionConstraint(a < b).freeze({"a": 2, "b": 1})


@pytest.mark.parametrize("plain", [True, 3, None])
def test_a_plain_value_is_no_constraint(plain: object) -> None:
    with pytest.raises(TypeError, match="needs an expression"):
        ExpressionConstraint(plain)  # type: ignore[arg-type]


def test_constraints_of_ones_own() -> None:
    class AllDifferent(Constraint):
        def __init__(self, *leaves: Categorical) -> None:
            self.leaves = leaves

        def sub_mutables(self, sample=None):  # type: ignore[no-untyped-def]
            yield from self.leaves

        def violation(self, sample):  # type: ignore[no-untyped-def]
            values = [sample[leaf.label] for leaf in self.leaves]
            return None if len(set(values)) == len(values) else f"{values} are not all different"

    a, b = choices()
    space = MutableList([a, b, AllDifferent(a, b)])
    assert space.size() == space.size(active_only=True) == len(list(space.grid())) == 6
    assert all((s := space.random(random_state=seed))["a"] != s["b"] for seed in range(20))
    with pytest.raises(SampleError, match=r"^2: \[1, 1\] are not all different"):
        space.validate({"a": 1, "b": 1})
