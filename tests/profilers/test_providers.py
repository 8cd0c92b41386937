"""Execution providers other than the CPU: what they leave to the CPU is told, not measured in silence."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections import Counter
from typing import Any

import onnxruntime
import pytest

from hwnas.errors import HwnasError
from hwnas.profilers import OrtTarget, Workload, measure
from hwnas.profilers import runner as runner_module
from hwnas.profilers.canary import canary_model
from hwnas.profilers.elsewhere import _session as read_session

AZURE = "AzureExecutionProvider"  # part of every build of ONNX Runtime, and without operators for models like these
needs_azure = pytest.mark.skipif(AZURE not in onnxruntime.get_available_providers(), reason=f"{AZURE} is not installed")


@needs_azure
def test_a_provider_that_runs_nothing_is_refused() -> None:
    with pytest.raises(HwnasError, match=r"AzureExecutionProvider runs no node.*all run on CPUExecutionProvider"):
        measure([], OrtTarget(provider=AZURE), budget_s=0.1)


@needs_azure
def test_what_the_provider_lacks_is_told_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {"x": Counter({(AZURE, "Conv"): 2})}  # by output name of a model; what is not here is the canary
    nodes["y"] = Counter({(AZURE, "Conv"): 3, ("CPUExecutionProvider", "Softmax"): 2})
    real = runner_module._assigned

    def assigned(session: Any) -> Counter[tuple[str, str]]:
        assert {provider for provider, _ in real(session)} == {"CPUExecutionProvider"}
        return next(made)

    # Identity and canary come first, then the models.
    made = iter([Counter(), nodes["x"], nodes["x"], nodes["y"]])
    monkeypatch.setattr(runner_module, "_assigned", assigned)
    workloads = [Workload(key, canary_model()) for key in "ab"]
    with pytest.warns(UserWarning, match=r"lacks operators in 1 of 2 models.*Softmax \(2\)$"):
        result = measure(workloads, OrtTarget(provider=AZURE), budget_s=0.1)
    (left,) = result.on_cpu.values()
    assert left == {"Softmax": 2}
    again = read_session(json.loads(json.dumps(dataclasses.asdict(result))))
    assert again.on_cpu == result.on_cpu


def test_nothing_is_said_on_the_cpu() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = measure([Workload("a", canary_model())], OrtTarget(), budget_s=0.1)
    assert result.on_cpu == {}


def test_an_old_version_that_cannot_tell() -> None:
    assert runner_module._assigned(object()) == Counter()
