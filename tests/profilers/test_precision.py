"""Everything that is measured under int8 is quantised: parts, whole members, the canary, what goes to other devices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.profilers import LatencyStore, OnnxRuntimeLatencyProfiler, OrtTarget, Workload, measure, prepare_folder
from hwnas.profilers.canary import canary_model, identity_model
from hwnas.profilers.precision import in_precision, references_for

X = torch.zeros(1, 3, 8, 8)
INT8 = OrtTarget(precision="int8")


class Net(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer = nn.LayerChoice([nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)], label="layer")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.stem(x).relu())


def is_quantised(model: bytes) -> bool:
    operators = {node.op_type for node in onnx.load_from_string(model).graph.node}
    return {"QuantizeLinear", "DequantizeLinear"} <= operators


def test_models_in_the_precision_of_a_target() -> None:
    assert in_precision(canary_model(), OrtTarget()) == canary_model()
    assert is_quantised(in_precision(canary_model(), INT8))
    assert references_for(OrtTarget()).canary == canary_model()
    assert is_quantised(references_for(INT8).canary)
    assert references_for(INT8).identity == identity_model()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Workload]:
    """What profilers give to be measured."""
    seen: list[Workload] = []

    def watched(workloads: Sequence[Workload], target: OrtTarget, **options: Any) -> Any:
        seen.extend(workloads)
        return measure(workloads, target, **{**options, "budget_s": 0.5})

    monkeypatch.setattr("hwnas.profilers.latency.measure", watched)
    return seen


def test_parts_and_members_of_a_profiler(measured: list[Workload]) -> None:
    with LatencyStore() as store:
        profiler = OnnxRuntimeLatencyProfiler(Net(), X, INT8, store=store, calibration=2)
        assert len(measured) >= 5
        assert all(is_quantised(workload.model) for workload in measured if "relu" not in workload.name)
        assert profiler.target.key == INT8.key != OrtTarget().key
        rows = [workload.key for workload in measured]
        assert len(store.lookup(rows, profiler.device.key, INT8.key)) == len(rows)
        # The error of predictions is what confidence levels count with.
        for member in ({"layer": 0}, {"layer": 1}):
            assert profiler.stderr(member) == profiler.predict(member).stderr_ms
            least = profiler.least_relative_stderr * profiler.profile(member)
            assert 0 < least <= profiler.stderr(member) * (1 + 1e-9)
        # fp32 is another target, of which nothing is known yet.
        assert not store.lookup(rows, profiler.device.key, OrtTarget().key)
        measured.clear()
        OnnxRuntimeLatencyProfiler(Net(), X, OrtTarget(), store=store, calibration=2)
        assert measured
        assert not any(is_quantised(workload.model) for workload in measured)


def test_batch_size_and_threads_are_part_of_what_is_measured(measured: list[Workload]) -> None:
    with LatencyStore() as store:
        OnnxRuntimeLatencyProfiler(Net(), X, store=store, calibration=0)
        first = {workload.key for workload in measured}
        measured.clear()
        OnnxRuntimeLatencyProfiler(Net(), torch.zeros(2, 3, 8, 8), store=store, calibration=0)
        assert measured
        assert not first & {workload.key for workload in measured}
        measured.clear()
        OnnxRuntimeLatencyProfiler(Net(), X, OrtTarget(intra_op_threads=2), store=store, calibration=0)
        assert first == {workload.key for workload in measured}


def test_models_for_another_device(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "folder", Net(), X, INT8, calibration=1, held_out=1)
    plan = json.loads((tmp_path / "folder" / "plan.json").read_text())
    assert plan["target"]["precision"] == "int8"
    names = {entry["key"]: entry["name"] for entry in plan["workloads"]}
    models = {path.stem: path.read_bytes() for path in (tmp_path / "folder" / "models").iterdir()}
    assert set(models) == set(names)
    assert all(is_quantised(model) for key, model in models.items() if "relu" not in names[key])
    assert is_quantised((tmp_path / "folder" / "canary.onnx").read_bytes())
