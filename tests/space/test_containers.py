from __future__ import annotations

import pytest

from hwnas.errors import SampleError
from hwnas.space import Categorical, CategoricalMultiple, MutableDict, MutableList


def test_they_freeze_to_plain_containers() -> None:
    a, m = Categorical([1, 2], label="a"), CategoricalMultiple("xyz", 2, label="m")
    space = MutableDict({"first": MutableList([a, a + 1]), "second": m})
    assert space.freeze({"a": 2, "m": ["x", "z"]}) == {"first": [2, 3], "second": ["x", "z"]}
    assert MutableList().freeze({}) == []
    assert MutableDict().freeze({}) == {}


def test_reading_them() -> None:
    a = Categorical([1, 2], label="a")
    items = MutableList([a, a + 1])
    assert len(items) == 2
    assert items[0] is a
    assert next(iter(items)) is a
    table = MutableDict({"x": a})
    assert (len(table), list(table), table["x"] is a) == (1, ["x"], True)
    assert "label='a'" in repr(items)
    assert "label='a'" in repr(table)


def test_errors_carry_the_path() -> None:
    space = MutableDict({"net": MutableDict({"stem": MutableList([Categorical([1], label="act")])})})
    with pytest.raises(SampleError) as caught:
        space.validate({"act": 5})
    assert caught.value.path == ("net", "stem", "0", "act")
    assert str(caught.value) == "net > stem > 0 > act: 5 is not one of the values [1]"
    with pytest.raises(SampleError, match=r"^net > stem > 0 > act"):
        space.freeze({"act": 5})


def test_only_mutables_are_taken() -> None:
    with pytest.raises(TypeError, match="item '1' must be a Mutable, got 3 of type int"):
        MutableList([Categorical([1], label="a"), 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="item 'k' must be a Mutable"):
        MutableDict({"k": None})  # type: ignore[dict-item]
