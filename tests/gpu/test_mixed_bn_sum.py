"""`mixed_bn_sum` on a CUDA device, against plain PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.kernels import mixed_bn_sum, native
from hwnas.kernels.mixed_bn_sum import unsupported_reason

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(native.CUDA is None, reason="the CUDA kernels are not built"),
]

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float64: 1e-11}
KINDS = [True, False, True]
EPS = [1e-5, 0.0, 1e-3]


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = max(float(expected.abs().max()), 1.0)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype] * scale)


def arguments(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, last: bool = False, mean: float = 1.0
) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    accumulator = native.accumulator(dtype)
    memory_format = torch.channels_last if last else torch.contiguous_format

    def image(shift: float) -> Tensor:
        return (torch.randn(shape, device="cuda") + shift).to(dtype).to(memory_format=memory_format)

    w = torch.softmax(torch.randn(3, device="cuda", dtype=accumulator), 0).requires_grad_()
    gamma, beta = (torch.rand(3, shape[1], device="cuda", dtype=accumulator).requires_grad_() for _ in range(2))
    return w, [image(mean).requires_grad_() for _ in range(3)], gamma, beta, image(0.3)


def truth(w: Tensor, ys: list[Tensor], gamma: Tensor, beta: Tensor, grad: Tensor) -> tuple[Tensor, list[Tensor]]:
    inputs = [x.detach().double().requires_grad_() for x in (w, *ys, gamma, beta)]
    wide_w, *wide, wide_gamma, wide_beta = inputs
    out = wide_w[1] * wide[1]
    for k in (0, 2):
        unit = F.batch_norm(wide[k], None, None, wide_gamma[k], wide_beta[k], training=True, eps=EPS[k])
        out = out + wide_w[k] * unit
    return out.detach(), list(torch.autograd.grad(out, inputs, grad.double()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (4, 6, 5, 7),
        (32, 16, 32, 32),
        (2, 3, 33, 65),
        (70, 9, 8, 8),
        (5, 8, 1, 1),
        (3, 5),
        (3, 1100, 2, 1),
        (300, 4, 4, 4),
    ],
)
def test_against_float64(shape: tuple[int, ...], last: bool, dtype: torch.dtype) -> None:
    if last and len(shape) != 4:
        pytest.skip("channels_last needs images")
    w, ys, gamma, beta, grad = arguments(shape, dtype, last)
    assert unsupported_reason(w, ys, gamma, beta) is None
    found = mixed_bn_sum(w, ys, KINDS, eps=EPS, gamma=gamma, beta=beta)
    out, grads = truth(w, ys, gamma, beta, grad)
    close(found.out, out, dtype)
    inputs = [w, *ys, gamma, beta]
    for x, actual, expected in zip(inputs, torch.autograd.grad(found.out, inputs, grad), grads, strict=True):
        assert actual.dtype == x.dtype
        close(actual, expected, x.dtype)


@pytest.mark.parametrize("last", [False, True])
def test_a_mean_far_larger_than_the_deviation(last: bool) -> None:
    w, ys, *_ = arguments((16, 8, 20, 20), last=last, mean=1e3)
    found = mixed_bn_sum(w, ys, [True] * 3, eps=EPS)
    variance = torch.stack([y.detach().double().var((0, 2, 3), unbiased=False) for y in ys])
    torch.testing.assert_close(found.variances, variance, rtol=1e-5, atol=0)


def test_only_the_gradients_that_are_wanted() -> None:
    w, ys, gamma, beta, grad = arguments((4, 6, 5, 7))
    _, expected = truth(w, ys, gamma, beta, grad)
    inputs = [w, *ys, gamma, beta]
    for wanted in ([0], [1, 2, 3], [2], [4], [5]):
        for k, x in enumerate(inputs):
            x.requires_grad_(k in wanted)
        out = mixed_bn_sum(w, ys, KINDS, eps=EPS, gamma=gamma, beta=beta).out
        for k, actual in zip(wanted, torch.autograd.grad(out, [inputs[k] for k in wanted], grad), strict=True):
            close(actual, expected[k], torch.float32)


@pytest.mark.parametrize("last", [False, True])
def test_runs_are_equal_to_the_bit(last: bool) -> None:
    w, ys, gamma, beta, grad = arguments((33, 24, 17, 16), last=last)
    inputs = [w, *ys, gamma, beta]
    runs = []
    for _ in range(3):
        found = mixed_bn_sum(w, ys, KINDS, eps=EPS, gamma=gamma, beta=beta)
        runs.append((*found, *torch.autograd.grad(found.out, inputs, grad)))
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            assert torch.equal(a, b)


def test_in_a_cuda_graph() -> None:
    w, ys, *_ = arguments((4, 6, 5, 7))
    w, ys = w.detach(), [y.detach() for y in ys]
    mixed_bn_sum(w, ys, KINDS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mixed_bn_sum(w, ys, KINDS).out
    ys[0].mul_(3).add_(1)
    ys[1].fill_(2)
    graph.replay()
    torch.testing.assert_close(out, mixed_bn_sum(w, ys, KINDS).out)


def test_more_tensors_than_the_kernel_takes() -> None:
    w = torch.rand(33, device="cuda")
    ys = [torch.rand(3, 2, 4, device="cuda")] * 33
    assert "at most 32" in (unsupported_reason(w, ys) or "")
    expected = w.sum() * F.batch_norm(ys[0], None, None, training=True)
    torch.testing.assert_close(mixed_bn_sum(w, ys, [True] * 33).out, expected, rtol=1e-4, atol=1e-4)
