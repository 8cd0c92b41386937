from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import SampleError
from hwnas.space import Categorical, Mutable, MutableList, Sample


def test_simplify_is_ordered_and_without_repetition() -> None:
    space = MutableList([Categorical([1], label="b"), Categorical([1, 2], label="a"), Categorical([1], label="b")])
    found = space.simplify()
    assert list(found) == ["b", "a"]
    assert found["b"] is space[0]


def test_two_mutables_of_one_label_must_be_equal() -> None:
    space = MutableList([Categorical([1, 2], label="a"), Categorical([1, 3], label="a")])
    for use in (
        space.simplify,
        space.default,
        space.size,
        lambda: list(space.grid()),
        lambda: space.random(),
    ):
        with pytest.raises(ValueError, match=r"'a': Categorical\(\[1, 2\], .*Categorical\(\[1, 3\], "):
            use()


def test_simplify_stops_at_leaves(toys: SimpleNamespace) -> None:
    inner = Categorical([1, 2], label="inner")
    branch = toys.Branch("pick", [inner, MutableList()])
    space = MutableList([branch, Categorical([1], label="last")])
    assert list(space.simplify()) == ["pick", "inner", "last"]
    assert list(space.simplify(lambda mutable: mutable is branch)) == ["last"]
    assert list(space.simplify(lambda mutable: isinstance(mutable, Categorical))) == ["pick", "inner", "last"]


def test_only_the_chosen_part_is_checked(toys: SimpleNamespace) -> None:
    space = toys.Branch("pick", [Categorical([1, 2], label="a"), Categorical([1, 2], label="b")])
    assert space.contains({"pick": 0, "a": 1})
    assert space.contains({"pick": 0, "a": 1, "b": 99, "unknown": None})
    with pytest.raises(SampleError, match=r"^part1 > b: the sample has no value"):
        space.validate({"pick": 1, "a": 1})
    with pytest.raises(SampleError, match=r"^pick: 7 is not one of the values \[0, 1\]"):
        space.validate({"pick": 7})
    with pytest.raises(SampleError, match=r"^pick: the sample has no value for this label"):
        space.validate({})


def test_only_the_first_parts_are_checked(toys: SimpleNamespace) -> None:
    space = toys.Prefix("depth", [Categorical([1, 2], label=name) for name in "abc"])
    assert space.freeze({"depth": 2, "a": 1, "b": 2}) == [1, 2]
    assert space.freeze({"depth": 0}) == []
    assert not space.contains({"depth": 3, "a": 1, "b": 2})


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_contains_agrees_with_brute_force(toys: SimpleNamespace, data: st.DataObject) -> None:
    spec = data.draw(toys.specs)
    space = toys.build(spec)
    assert {label: d.values for label, d in space.simplify().items()} == toys.domains(spec)  # type: ignore[attr-defined]
    sample = {label: data.draw(st.sampled_from(values)) for label, values in toys.domains(spec).items()}
    active, holds = toys.activity(spec, sample)
    assert space.contains({"extra": 1, **sample}) == holds
    if holds:
        space.freeze({label: sample[label] for label in active})
    for label in active:
        assert not space.contains({other: value for other, value in sample.items() if other != label})


def test_it_is_a_light_base() -> None:
    class Other:
        def __init__(self) -> None:
            self.ready = True

    class Both(Other, Mutable):
        def freeze(self, sample: Sample) -> int:
            return 1

    both = Both()
    assert both.ready
    assert both.simplify() == {}
    assert list(both.grid()) == [{}]
    assert both.size() == both.size(active_only=True) == 1
    assert both.default() == both.random() == both.robust_default() == {}
    assert both == both
    assert hash(both) == object.__hash__(both)


def test_no_name_is_taken_from_modules() -> None:
    torch = pytest.importorskip("torch")
    ours = {name for name in dir(Categorical) if not name.startswith("_")}
    theirs = {name for cls in (torch.nn.Module, torch.nn.Sequential, torch.nn.Conv2d) for name in dir(cls)}
    assert not ours & theirs

    class Module(Mutable, torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.width = Categorical([1, 2], label="width")

        def sub_mutables(self, sample=None):  # type: ignore[no-untyped-def]
            yield self.width

        def freeze(self, sample: Sample) -> int:
            return 1

    assert Module().size() == 2


def test_a_label_that_is_read_but_not_yielded_is_reported() -> None:
    class Hidden(Mutable):
        def sub_mutables(self, sample=None):  # type: ignore[no-untyped-def]
            if sample is not None:
                sample["secret"]
            yield Categorical([1, 2], label="a")

        def freeze(self, sample: Sample) -> None:
            return None

    with pytest.raises(LookupError, match=r"reads label 'secret' .* does not yield it"):
        Hidden().size(active_only=True)
    with pytest.raises(LookupError, match="reads label 'secret'"):
        list(Hidden().grid(active_only=True))
