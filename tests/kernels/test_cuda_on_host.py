"""The CUDA kernels, compiled for the CPU with the stand-in for the CUDA runtime in `cuda_host`.

The operators are called as users call them, with tensors that say that they are on a CUDA device.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hwnas.kernels import bn_clamp, mask_scale, mixed_bn_sum, mixed_sum, native, slice_pack
from hwnas.kernels.dwconv2d import dwconv2d
from hwnas.kernels.mixed_bn_sum import unsupported_reason as mixed_bn_sum_reason
from hwnas.kernels.mixed_sum import unsupported_reason as mixed_sum_reason

ROOT = Path(__file__).parents[2]
HOST = Path(__file__).parent / "cuda_host"
CUDA = torch.device("cuda", 0)

pytestmark = [pytest.mark.slow]

LAUNCH = re.compile(r"([\w:]+(?:<[^;(){}]*?>)?)<<<([^;]*?)>>>\(([^;]*)\);", re.DOTALL)


def for_the_host(source: str) -> str:
    """Turn every launch of a kernel into a call of `launch`, in the lines where it stands."""

    def call(found: re.Match[str]) -> str:
        kernel, configuration, arguments = found.groups()
        return f"::cuda_host::launch({configuration}, [&] {{ {kernel}({arguments}); }});"

    return LAUNCH.sub(call, source)


def build(folder: Path) -> Path:
    """Compile the module of the CUDA kernels, and the host's scheduler into it."""
    import pybind11

    sources = [HOST / "scheduler.cpp", *(ROOT / "csrc" / "bindings").glob("*.cpp")]
    for source in (ROOT / "csrc" / "cuda").glob("*.cu"):
        sources.append(folder / f"{source.name}.cpp")
        sources[-1].write_text(f'#line 1 "{source}"\n{for_the_host(source.read_text())}')
    includes = [
        HOST,
        ROOT / "csrc" / "include",
        ROOT / "csrc" / "cuda",
        pybind11.get_include(),
        sysconfig.get_paths()["include"],
    ]
    options = ["-std=c++17", "-fPIC", "-fno-strict-aliasing", "-w", "-DHWNAS_WITH_CUDA"]
    options += [f"-I{path}" for path in includes]

    def compiled(source: Path) -> str:
        target = folder / f"{source.name}.o"
        # Bindings hold no arithmetic and take long to compile.
        level = "-O0" if source.parent.name == "bindings" else "-O1"
        subprocess.run(["g++", *options, level, "-c", source, "-o", target], check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run(["g++", "-shared", "-o", folder / "_cuda.so", *objects], check=True)
    return folder / "_cuda.so"


class Host:
    """The module of the kernels, and what the scheduler of the host tells and can be told."""

    def __init__(self, path: Path) -> None:
        loader = importlib.machinery.ExtensionFileLoader("_cuda", str(path))
        spec = importlib.util.spec_from_file_location("_cuda", path, loader=loader)
        assert spec is not None
        self.module = importlib.util.module_from_spec(spec)
        loader.exec_module(self.module)
        self.scheduler = ctypes.CDLL(str(path))

    @property
    def launches(self) -> int:
        return int(self.scheduler.cuda_host_launches())


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    pytest.importorskip("pybind11")
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to compile the kernels for the host")
    return Host(build(tmp_path_factory.mktemp("cuda_host")))


class OnHost(Tensor):
    """A tensor on the CPU that says that it is on a CUDA device."""

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]


def empty_on_host(*args: Any, empty: Callable[..., Tensor] = torch.empty, **kwargs: Any) -> Tensor:
    """As torch.empty, but what is made on the CUDA device is such a tensor."""
    if kwargs.get("device") != CUDA:
        return empty(*args, **kwargs)
    return empty(*args, **kwargs | {"device": "cpu"}).as_subclass(OnHost)


@pytest.fixture
def on_host(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(native, "CUDA", host.module)
    monkeypatch.setattr(native, "PLAIN", native.PLAIN | {OnHost})
    monkeypatch.setattr(native, "_cuda_unusable", lambda device: "")
    monkeypatch.setattr(native, "where", lambda device: (host.module, (0, 0)))
    monkeypatch.setattr(torch, "empty", empty_on_host)
    return host


def mixture(w: Tensor, *xs: Tensor) -> Tensor:
    return mixed_sum(w, xs)


def normalised_mixture(w: Tensor, gamma: Tensor, beta: Tensor, *xs: Tensor) -> Tensor:
    return mixed_bn_sum(w, xs, [k % 2 == 0 for k in range(len(xs))], gamma=gamma, beta=beta).out


def clamped(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return bn_clamp(x, gamma, beta, low=-0.4, high=0.6).out


def dilated(x: Tensor, w: Tensor) -> Tensor:
    return dwconv2d(x, w, padding=4, dilation=2, pre_relu=True)


def strided(x: Tensor, w: Tensor) -> Tensor:
    return dwconv2d(x, w, kernel_size=3, stride=2, padding=1)


def upper_corner(w: Tensor) -> Tensor:
    return slice_pack(w, 5, 7, (3, 3))


# A function of tensors for each operator, and the shapes of the tensors.
CASES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "mixed_sum, a few": (mixture, [(2,), (5,), (5,)]),
    "mixed_sum, whole tiles": (mixture, [(2,), (2, 4096), (2, 4096)]),
    "mixed_sum, tiles and a rest": (mixture, [(3,), *[(3, 3001)] * 3]),
    "mixed_sum, more than 32": (mixture, [(33,), *[(1100,)] * 33]),
    "mixed_sum, as many as there may be": (mixture, [(128,), *[(3, 7)] * 128]),
    "mixed_bn_sum, more than 32": (normalised_mixture, [(33,), (33, 5), (33, 5), *[(3, 5, 4)] * 33]),
    "mixed_bn_sum, as many as there may be": (normalised_mixture, [(128,), (128, 3), (128, 3), *[(2, 3, 6, 6)] * 128]),
    "mixed_bn_sum": (normalised_mixture, [(3,), (3, 5), (3, 5), *[(4, 5, 7, 6)] * 3]),
    "bn_clamp": (clamped, [(4, 5, 7, 6), (5,), (5,)]),
    "bn_clamp, tiny images": (clamped, [(40, 37, 2), (37,), (37,)]),
    "dwconv2d, dilated": (dilated, [(2, 5, 11, 9), (5, 1, 5, 5)]),
    "dwconv2d, strided": (strided, [(2, 5, 11, 9), (7, 1, 5, 5)]),
    "mask_scale": (mask_scale, [(70, 33, 3, 3), (70,), (33,), (3, 3)]),
    "slice_pack": (upper_corner, [(9, 11, 5, 5)]),
}


def results(f: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, host: Host | None = None) -> list[Tensor]:
    """The result and the gradients, which take launches of the host each."""
    inputs = [x.requires_grad_() for x in inputs]
    launches = [host.launches if host else 0]
    out = f(*inputs)
    launches.append(host.launches if host else 1)
    gradients = torch.autograd.grad(out, inputs, grad.to(out.dtype))
    launches.append(host.launches if host else 2)
    assert launches[0] < launches[1] < launches[2], "the kernels were not called"
    return [out.detach(), *gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_against_float64(case: str, dtype: torch.dtype, on_host: Host) -> None:
    f, shapes = CASES[case]
    given = [torch.randn(shape).to(dtype) for shape in shapes]
    with native.disabled():
        expected_out = f(*(x.double() for x in given))
        grad = torch.randn_like(expected_out).to(dtype)
        expected = results(f, [x.double() for x in given], grad.double())
    runs = []
    for backwards in (False, True):
        on_host.scheduler.cuda_host_run_backwards(backwards)
        inputs = [x.clone().as_subclass(OnHost) for x in given]
        runs.append(results(f, inputs, grad.as_subclass(OnHost), on_host))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-12}[dtype]
    for forwards, backwards_, wanted in zip(*runs, expected, strict=True):
        # What depends on the order of the threads depends on a missing __syncthreads.
        assert torch.equal(forwards, backwards_)
        scale = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(
            forwards.as_subclass(Tensor).double(), wanted, rtol=0, atol=tolerance * scale, check_device=False
        )


@pytest.mark.parametrize("operator", ["mixed_sum", "mixed_bn_sum"])
def test_more_tensors_than_there_may_be(operator: str, on_host: Host) -> None:
    most = getattr(on_host.module, f"{operator.upper()}_MAX_COUNT")
    assert most == 128, "the cases above go up to this number"
    xs = [torch.randn(2, 3, 2).as_subclass(OnHost) for _ in range(most + 1)]
    w = torch.randn(most + 1).as_subclass(OnHost)
    reason = {"mixed_sum": mixed_sum_reason, "mixed_bn_sum": mixed_bn_sum_reason}[operator]
    assert reason(w[:most], xs[:most]) is None
    assert reason(w, xs) == f"the CUDA kernel takes at most 128 tensors, got {most + 1}"
    with pytest.raises(ValueError, match="tensors has 129 entries, the CUDA kernel takes at most 128"):
        getattr(on_host.module, operator)(0, 64, [64] * (most + 1))
