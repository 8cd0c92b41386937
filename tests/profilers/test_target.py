"""OrtTarget: validation with reasons, provenance and keys."""

from __future__ import annotations

import json
from typing import Any

import onnxruntime
import pytest

from hwnas.errors import HwnasError, UnsupportedError
from hwnas.profilers.target import OPTIMIZATION_LEVELS, OrtTarget, hash_of


def test_unknown_provider_names_the_installed_ones() -> None:
    with pytest.raises(HwnasError, match="NoSuchProvider") as caught:
        OrtTarget(provider="NoSuchProvider")
    for name in onnxruntime.get_available_providers():
        assert name in str(caught.value)


def test_fp16_on_cpu_is_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedError, match=r"fp16.*casts"):
        OrtTarget(precision="fp16")


def test_fp16_elsewhere_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnsupportedError, match=r"fp16.*not built.*trt_fp16_enable"):
        OrtTarget(provider="TensorrtExecutionProvider", precision="fp16", elsewhere=True)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"precision": "fp8"}, "fp8"),
        ({"optimization": "most"}, "most"),
        ({"intra_op_threads": 0}, "0"),
        ({"intra_op_threads": True}, "True"),
        ({"intra_op_threads": 1.5}, "1.5"),
        ({"provider_options": {"a": [1]}}, r"\[1\]"),
    ],
)
def test_bad_values_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(HwnasError, match=named):
        OrtTarget(**arguments)


def test_to_dict_is_json_with_versions() -> None:
    data = json.loads(json.dumps(OrtTarget().to_dict()))
    assert data["onnxruntime"] == onnxruntime.__version__
    assert data["provider"] == "CPUExecutionProvider"
    assert data["protocol"] >= 1


def test_key_depends_on_every_field_and_not_on_the_order_of_options() -> None:
    targets = [
        OrtTarget(),
        OrtTarget(intra_op_threads=2),
        OrtTarget(optimization="basic"),
        OrtTarget(precision="int8"),
        OrtTarget(provider_options={"a": 1}),
        OrtTarget(provider_options={"a": 2}),
    ]
    assert len({target.key for target in targets}) == len(targets)
    one, two = OrtTarget(provider_options={"a": 1, "b": 2}), OrtTarget(provider_options={"b": 2, "a": 1})
    assert one.key == two.key


def test_key_changes_with_the_version_of_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    before = OrtTarget().key
    monkeypatch.setattr(onnxruntime, "__version__", "0.0.1")
    assert OrtTarget().key != before


def test_options_are_copied() -> None:
    options = {"a": 1}
    target = OrtTarget(provider_options=options)
    key = target.key
    options["a"] = 2
    assert target.key == key


def test_session_options_follow_the_target() -> None:
    for name, level in OPTIMIZATION_LEVELS.items():
        options = OrtTarget(optimization=name, intra_op_threads=2).session_options()
        assert options.graph_optimization_level == level
        assert options.intra_op_num_threads == 2
        assert options.inter_op_num_threads == 1


def test_hash_ignores_the_order_of_keys() -> None:
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1}) != hash_of({"a": 2, "b": 1})
