from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hwnas.kernels import describe, native

ROOT = Path(__file__).parents[2]


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("HWNAS_NATIVE", "HWNAS_CPU_ISA")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment | variables, capture_output=True, text=True
    )


USE = """
import warnings, torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from hwnas.kernels import describe, mixed_sum
    for _ in range(3):
        out = mixed_sum(torch.tensor([0.5, 2.0]), [torch.ones(3), torch.ones(3)])
assert out.tolist() == [2.5] * 3
compiled = torch.ops.hwnas.mixed_sum(torch.tensor([0.5, 2.0]), [torch.ones(3), torch.ones(3)])
assert compiled.tolist() == [2.5] * 3
cpu = describe()["cpu"]
print(len(caught), cpu["usable"], cpu["reason"], *(str(w.message) for w in caught))
"""


def test_without_the_compiled_modules_there_is_one_warning() -> None:
    hidden = "import sys; sys.modules['hwnas._cpu'] = sys.modules['hwnas._cuda'] = None"
    result = python(hidden + USE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1 False the compiled module hwnas._cpu is not installed")
    assert "plain PyTorch in place of its CPU kernels" in result.stdout


def test_switched_off_there_is_none() -> None:
    result = python(USE, HWNAS_NATIVE="0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("0 False the compiled kernels are switched off by HWNAS_NATIVE=0")


def test_the_instruction_set_is_chosen_by_the_environment() -> None:
    result = python("from hwnas.kernels import describe; print(describe()['cpu']['isa'])", HWNAS_CPU_ISA="base")
    assert result.stdout.split() == ["base"], result.stderr


def test_an_unknown_instruction_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.CPU is not None
    monkeypatch.setenv("HWNAS_CPU_ISA", "sse9")
    with pytest.raises(ValueError, match="HWNAS_CPU_ISA: instruction set 'sse9' is unknown or not supported"):
        native._select_isa(native.CPU)


def test_an_unclear_switch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_NATIVE", "no")
    with pytest.raises(ValueError, match="HWNAS_NATIVE is 'no', expected '0'"):
        native._enabled()


def test_describe() -> None:
    report = describe()
    assert report["enabled"] is True
    assert report["cpu"]["usable"] is True
    assert report["cpu"]["reason"] is None
    assert report["cpu"]["isa"] in report["cpu"]["supported_isas"]
    assert report["cpu"]["threads"] == torch.get_num_threads()
    assert report["cuda"]["usable"] == (report["cuda"]["reason"] is None)


def test_the_fastest_instruction_set_is_taken() -> None:
    assert native.CPU is not None
    assert native.CPU.current_isa() == native.CPU.supported_isas()[-1]


def test_other_devices_have_no_kernels() -> None:
    assert native.unavailable_reason(torch.device("meta")) == "there are no compiled kernels for device type 'meta'"
