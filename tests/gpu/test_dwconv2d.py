from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.kernels import native
from hwnas.kernels.dwconv2d import dwconv2d, unsupported_reason

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)
if (reason := native.unavailable_reason(torch.device("cuda"))) is not None:
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-13}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

# Kernel, stride, padding, dilation.
OPTIONS: dict[str, tuple[Any, Any, Any, Any]] = {
    "3": ((3, 3), 1, 1, 1),
    "5, dilated": ((5, 5), 1, 4, 2),
    "5, stride 2": ((5, 5), 2, 2, 1),
    "7": ((7, 7), 1, 3, 1),
    "rectangular": ((1, 7), (1, 2), (0, 3), 1),
    "even": ((4, 2), (3, 2), (5, 0), (1, 3)),
}


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(float(expected.abs().max()), 1.0)
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=0, atol=tolerance * scale)


def arguments(
    shape: tuple[int, int, int, int], kernel: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> tuple[Tensor, Tensor, Tensor]:
    channels = shape[1] + 3
    x = torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=memory_format)
    weight = torch.randn(channels, 1, kernel[0] + 3, kernel[1] + 2, device="cuda").to(dtype)
    bias = torch.randn(channels, device="cuda").to(dtype)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pre_relu", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 13, 14), (3, 20, 11, 33), (70, 65, 9, 14), (2, 33, 120, 131)])
@pytest.mark.parametrize("name", OPTIONS)
def test_against_float64(
    name: str, shape: tuple[int, int, int, int], pre_relu: bool, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    kernel, stride, padding, dilation = OPTIONS[name]
    leaves = arguments(shape, kernel, dtype, memory_format)
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    assert unsupported_reason(*leaves, kernel_size=kernel, **options) is None
    out = dwconv2d(*leaves, kernel_size=kernel, pre_relu=pre_relu, **options)
    grad = torch.randn(out.shape, device="cuda").to(dtype)
    grads = torch.autograd.grad(out, leaves, grad)

    x, weight, bias = (leaf.detach().double().cpu().requires_grad_() for leaf in leaves)
    (top, left), channels = [(full - k) // 2 for full, k in zip(weight.shape[2:], kernel, strict=True)], shape[1]
    part = weight[:channels, :, top : top + kernel[0], left : left + kernel[1]]
    expected = F.conv2d(x.relu() if pre_relu else x, part, bias[:channels], **options, groups=channels)
    wanted = torch.autograd.grad(expected, (x, weight, bias), grad.double().cpu())
    assert out.is_contiguous(memory_format=memory_format)
    close(out, expected.detach(), TOLERANCE[dtype])
    for actual, right in zip(grads, wanted, strict=True):
        close(actual, right, TOLERANCE[dtype])


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2)])
def test_only_the_gradients_that_are_wanted(wanted: tuple[int, ...]) -> None:
    leaves = arguments((3, 20, 11, 33), (5, 5), torch.float32, torch.contiguous_format)
    out = dwconv2d(*leaves, pre_relu=True)
    every = torch.autograd.grad(out.sum(), leaves)
    for k, leaf in enumerate(leaves):
        leaf.requires_grad_(k in wanted)
    some = torch.autograd.grad(dwconv2d(*leaves, pre_relu=True).sum(), [leaves[k] for k in wanted])
    for k, actual in zip(wanted, some, strict=True):
        torch.testing.assert_close(actual, every[k])


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
def test_runs_are_equal_to_the_bit(memory_format: torch.memory_format) -> None:
    leaves = arguments((64, 40, 16, 16), (5, 5), torch.float32, memory_format)
    runs = [torch.autograd.grad(dwconv2d(*leaves, pre_relu=True).sum(), leaves) for _ in range(3)]
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            assert torch.equal(a, b)


def test_the_current_stream_is_used() -> None:
    x = torch.zeros(8, 16, 512, 512, device="cuda")
    weight = torch.ones(16, 1, 1, 1, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.fill_(2)
        out = dwconv2d(x, weight)
    stream.synchronize()
    assert torch.equal(out, x)


def test_in_a_cuda_graph() -> None:
    x, weight = torch.ones(2, 4, 8, 8, device="cuda"), torch.ones(4, 1, 1, 1, device="cuda")
    dwconv2d(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = dwconv2d(x, weight)
    x.fill_(3)
    graph.replay()
    assert torch.equal(out, torch.full_like(out, 3))
