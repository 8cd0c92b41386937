from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.space import Categorical, Mutable, Sample
from hwnas.space.walk import Partial, Structure, Undecided


def test_reading_an_undecided_label_is_a_signal_however_it_is_read() -> None:
    partial = Partial(a=1)
    assert (partial["a"], partial.get("a"), "a" in partial, partial.has("a")) == (1, 1, True, True)
    assert not partial.has("b")
    for read in (lambda: partial["b"], lambda: partial.get("b"), lambda: "b" in partial):
        with pytest.raises(Undecided, match="'b'") as caught:
            read()
        assert caught.value.label == "b"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_verdict_on_a_part_holds_for_all_completions(toys: SimpleNamespace, data: st.DataObject) -> None:
    spec = data.draw(toys.specs)
    structure = Structure(toys.build(spec))
    domains = toys.domains(spec)
    decided = data.draw(st.sets(st.sampled_from(sorted(domains)))) if domains else set()
    partial = Partial({label: data.draw(st.sampled_from(domains[label])) for label in sorted(decided)})
    verdict = structure.verdict(partial)
    known = dict(partial)
    for _ in range(10):
        full = {label: known.get(label, data.draw(st.sampled_from(values))) for label, values in domains.items()}
        holds = toys.activity(spec, full)[1]
        if isinstance(verdict, bool):
            assert holds == verdict
        else:
            assert verdict not in known
        assert structure.verdict(full) is holds


def test_what_is_active_is_asked_once_for_each_combination_of_what_is_read() -> None:
    asked = []
    depth, extra = Categorical([0, 1, 2], label="depth"), Categorical([True, False], label="extra")
    parts = [Categorical([i], label=f"part{i}") for i in range(3)]

    class Tower(Mutable):
        def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
            asked.append(sample)
            yield from (depth, extra)
            yield from parts[:2] if sample is None else parts[: sample["depth"]]
            if sample is None or (sample["depth"] > 0 and sample["extra"]):
                yield parts[2]

        def freeze(self, sample: Sample) -> None:
            return None

    tower = Tower()
    structure = Structure(tower)
    asked.clear()
    for _ in range(3):
        for sample in ({"depth": d, "extra": e} for d in (0, 1, 2) for e in (True, False)):
            expected = [
                depth,
                extra,
                *parts[: sample["depth"]],
                *([parts[2]] if sample["depth"] and sample["extra"] else []),
            ]
            found = structure.active(tower, sample)
            assert len(found) == len(expected)
            assert all(one is other for one, other in zip(found, expected, strict=True))
    assert len([sample for sample in asked if sample is not None]) == 5  # at depth 0 nothing depends on the other label
    assert structure.deciders(tower) == {"depth", "extra"}


def test_what_asks_for_the_presence_of_a_label_is_asked_every_time() -> None:
    part = Categorical([1], label="part")

    class Odd(Mutable):
        def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
            if sample is None or "flag" in sample or sample.get("other", False):
                yield part

        def freeze(self, sample: Sample) -> None:
            return None

    odd = Odd()
    structure = Structure(odd)
    for _ in range(2):
        assert structure.active(odd, {}) == ()
        assert len(structure.active(odd, {"flag": 0})) == 1
        assert len(structure.active(odd, {"other": True})) == 1
        assert structure.active(odd, {"other": False}) == ()
