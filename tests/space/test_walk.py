from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
