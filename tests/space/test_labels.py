from __future__ import annotations

import copy
import pickle
import threading

import pytest

from hwnas.space import (
    Categorical,
    Label,
    auto_label,
    check_label,
    current_scope,
    label_scope,
    resolve_label,
    root_scope,
)


@pytest.mark.parametrize("label", ["", "/", "/a", "a/", "a//b"])
def test_empty_labels_and_stray_slashes_are_refused(label: str) -> None:
    with pytest.raises(ValueError, match=r"is empty|stray '/'"):
        check_label(label)
    with pytest.raises(ValueError, match=r"is empty|stray '/'"):
        Categorical([1], label=label)
    with pytest.raises(ValueError, match=r"is empty|stray '/'"), label_scope(label):
        pass


def test_a_label_is_a_string() -> None:
    with pytest.raises(TypeError, match="must be a string, got 3"):
        Categorical([1], label=3)  # type: ignore[arg-type]


def test_scopes_nest_and_end() -> None:
    with label_scope("net") as outer:
        assert resolve_label("act", "x") == "net/act"
        with label_scope("stem") as inner:
            assert (outer, inner) == ("net", "net/stem")
            assert current_scope() == "net/stem"
            assert Categorical([1], label="act").label == "net/stem/act"
        assert resolve_label("act", "x") == "net/act"
    assert current_scope() == ""
    assert resolve_label("act", "x") == "act"


def test_automatic_labels_count_by_kind_and_restart_at_every_entry() -> None:
    def build() -> list[str]:
        with label_scope("net"):
            return [auto_label("layer"), auto_label("input"), auto_label("layer")]

    assert build() == build() == ["net/layer_1", "net/input_1", "net/layer_2"]


def test_an_inner_scope_does_not_disturb_the_counter_outside() -> None:
    with label_scope("net"):
        first = auto_label("layer")
        with label_scope("block"):
            assert auto_label("layer") == "net/block/layer_1"
        assert [first, auto_label("layer")] == ["net/layer_1", "net/layer_2"]


def test_automatic_labels_outside_scopes_differ() -> None:
    assert auto_label("layer") != auto_label("layer")


def test_a_full_label_gets_no_prefix() -> None:
    with label_scope("net"):
        first = Categorical([1, 2], label="width")
        with label_scope("head"):
            second = Categorical([1, 2], label=first.label)
            with label_scope(Label("net/cell")):
                assert resolve_label("op", "x") == "net/cell/op"
    assert second.label == first.label == "net/width"


def test_the_scope_ends_after_an_error() -> None:
    with pytest.raises(RuntimeError), label_scope("net"):
        raise RuntimeError
    assert current_scope() == ""


def test_root_scope_without_name_restarts_the_counters_but_not_when_nested() -> None:
    def build() -> list[str]:
        with root_scope():
            first = auto_label("layer")
            with root_scope():
                nested = auto_label("layer")
            with root_scope("part"):
                named = auto_label("layer")
            return [first, nested, named, auto_label("layer")]

    assert build() == build() == ["layer_1", "layer_2", "part/layer_1", "layer_3"]
    assert current_scope() == ""


def test_threads_have_scopes_of_their_own() -> None:
    seen: list[str] = []
    with label_scope("net"):
        thread = threading.Thread(target=lambda: seen.append(current_scope()))
        thread.start()
        thread.join()
    assert seen == [""]


def test_labels_survive_copying_and_pickling() -> None:
    label = Label("net/act")
    for same in (copy.deepcopy(label), pickle.loads(pickle.dumps(label))):
        assert same == label
        assert type(same) is Label
