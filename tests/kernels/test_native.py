from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from hwnas.kernels import describe, mixed_sum, native
from hwnas.kernels.mixed_sum import unsupported_reason

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
    assert list(report["operators"]) == list(native.OPERATORS)
    for name, reasons in report["operators"].items():
        on_cuda = report["cuda"]["reason"]
        if name == "separable_conv2d":
            on_cuda = "there is no CUDA kernel: its pointwise convolution is that of PyTorch's libraries there"
        assert reasons == {"cpu": None, "cuda": on_cuda}


def test_the_fastest_instruction_set_is_taken() -> None:
    assert native.CPU is not None
    assert native.CPU.current_isa() == native.CPU.supported_isas()[-1]


def test_other_devices_have_no_kernels() -> None:
    assert native.unavailable_reason(torch.device("meta")) == "there are no compiled kernels for device type 'meta'"


def test_disabled_for_a_while() -> None:
    w, xs = torch.rand(2, requires_grad=True), [torch.rand(3), torch.rand(3)]
    with native.disabled():
        with native.disabled():
            assert unsupported_reason(w, xs) == "the compiled kernels are switched off by native.disabled()"
        assert describe()["cpu"] | {"path": None} == describe()["cpu"] | {"usable": False, "path": None}
        # Warnings are errors here: nobody is told to install what is switched off on purpose.
        plain = mixed_sum(w, xs)
    assert unsupported_reason(w, xs) is None
    torch.testing.assert_close(mixed_sum(w, xs), plain)
    # The kernel is one node of the graph.
    assert "MixedSum" not in type(plain.grad_fn).__name__
    assert "MixedSum" in type(mixed_sum(w, xs).grad_fn).__name__


def test_disabled_holds_for_every_thread_and_ends_by_an_error() -> None:
    cpu, seen = torch.device("cpu"), []

    def in_a_thread() -> None:
        thread = threading.Thread(target=lambda: seen.append(native.unavailable_reason(cpu)))
        thread.start()
        thread.join()
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), native.disabled():
        in_a_thread()
    assert seen == ["the compiled kernels are switched off by native.disabled()"]
    assert native.unavailable_reason(cpu) is None


def test_disabled_reaches_a_compiled_program() -> None:
    program = torch.compile(lambda w, xs: mixed_sum(w, xs), fullgraph=True, backend="aot_eager")
    w, xs = torch.rand(2), [torch.rand(3), torch.rand(3)]
    with torch.profiler.profile() as before:
        program(w, xs)
    with native.disabled(), torch.profiler.profile() as inside:
        program(w, xs)
    names = [{event.key for event in profile.key_averages()} for profile in (before, inside)]
    assert ["hwnas::mixed_sum" in found for found in names] == [True, False]
