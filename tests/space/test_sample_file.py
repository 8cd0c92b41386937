from __future__ import annotations

import json
import math
from pathlib import Path
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
    MutableList,
    Numerical,
    dump_sample,
    load_sample,
    sample_from_json,
    sample_to_json,
)


def space() -> MutableList:
    kernel = Categorical([3, (1, 3), (3, (1, 1))], label="stem/kernel")
    flag = Categorical([True, None, "relu", 2.5], label="flag")
    inputs = CategoricalMultiple([(0, 1), 2, "x"], label="inputs")
    rate = Numerical(0, 1, label="rate")
    return MutableList([kernel, flag, inputs, rate])


_values = st.recursive(
    st.one_of(st.booleans(), st.integers(-5, 5), st.floats(-5, 5), st.none(), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(_values, min_size=1, max_size=5, unique=True), st.data())
def test_values_of_every_type_come_back(values: list[Any], data: st.DataObject) -> None:
    one = Categorical(values, label="one")
    several = CategoricalMultiple(values, label="several")
    both = MutableList([one, several])
    sample = both.random(random_state=data.draw(st.integers(0, 1000)))
    restored = sample_from_json(json.loads(json.dumps(sample_to_json(sample), allow_nan=False)), both)
    assert restored == sample
    assert repr(restored) == repr(sample)


def test_files_round_trip(tmp_path: Path) -> None:
    for seed in range(10):
        sample = space().random(random_state=seed)
        dump_sample(sample, tmp_path / "deep" / "sample.json")
        assert load_sample(tmp_path / "deep" / "sample.json", space()) == sample
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["sample.json"]


def test_inactive_labels_may_be_absent_and_foreign_ones_are_left_out(toys: SimpleNamespace) -> None:
    branch = toys.Branch("pick", [Categorical([(1,)], label="a"), Categorical([2], label="b")])
    data = {"schema_version": 1, "sample": {"pick": 0, "a": [1], "foreign": [3]}}
    assert sample_from_json(data, branch) == {"pick": 0, "a": (1,)}


def test_numpy_values_are_written_as_plain_ones() -> None:
    written = sample_to_json({"a": np.int64(3), "b": [np.float64(0.5), (np.bool_(True),)]})
    assert json.dumps(written) == '{"schema_version": 1, "sample": {"a": 3, "b": [0.5, [true]]}}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [1, (math.nan,)], np.float32("inf")])
def test_numbers_that_are_not_finite_are_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"^x: .* not finite"):
        sample_to_json({"x": value})
    with pytest.raises(SampleError):
        dump_sample({"x": value}, tmp_path / "s.json")
    assert not list(tmp_path.iterdir())


def test_other_objects_are_refused() -> None:
    with pytest.raises(SampleError, match="of type object cannot be stored"):
        sample_to_json({"x": object()})


@pytest.mark.parametrize("text", ['{"schema_version": 1, "sample": {"rate": NaN}}', "{", "", '{"a": Infinity}'])
def test_files_that_are_not_json_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(SampleError, match=r"s\.json does not hold a sample in JSON"):
        load_sample(tmp_path / "s.json", space())


@pytest.mark.parametrize("version", [2, 0, None, "1", True, 1.0])
def test_other_schema_versions_are_refused(version: Any) -> None:
    with pytest.raises(SampleError, match=r"schema version .*, this version of hwnas reads 1; .*read it with"):
        sample_from_json({"schema_version": version, "sample": {}}, MutableList())


@pytest.mark.parametrize("data", [None, [], {}, {"schema_version": 1}, {"schema_version": 1, "sample": []}])
def test_other_objects_in_json_are_refused(data: Any) -> None:
    with pytest.raises(SampleError, match="expected an object with 'schema_version' and 'sample'"):
        sample_from_json(data, MutableList())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem/kernel": [1, 4]}, r"0 > stem/kernel: \[1, 4\] is not one of"),
        ({"inputs": [2, [0, 1]]}, r"2 > inputs: .*order of the values; write \[\(0, 1\), 2\]"),
        ({"inputs": 2}, "2 > inputs: 2 is not a list"),
        ({"rate": "fast"}, "3 > rate: 'fast' of type str is not a number"),
    ],
)
def test_wrong_samples_are_explained(changes: dict[str, Any], message: str) -> None:
    data = sample_to_json({**space().default(), **changes})
    with pytest.raises(SampleError, match=message):
        sample_from_json(data, space())


def test_equal_values_are_taken_for_those_of_the_space() -> None:
    data = sample_to_json({**space().default(), "flag": 1, "rate": 1})
    restored = sample_from_json(data, space())
    assert restored["flag"] is True
    assert isinstance(restored["rate"], float)


def test_a_missing_label_is_explained() -> None:
    data = sample_to_json(space().default())
    del data["sample"]["flag"]
    with pytest.raises(SampleError, match="1 > flag: the sample has no value"):
        sample_from_json(data, space())
