"""`bn_clamp` on a CUDA device, against plain PyTorch in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.kernels import bn_clamp, native
from hwnas.kernels.bn_clamp import unsupported_reason

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(native.CUDA is None, reason="the CUDA kernels are not built"),
]

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float64: 1e-11}


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = max(float(expected.abs().max()), 1.0)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("bounds", [(0.0, math.inf), (0.0, 6.0), (-math.inf, math.inf)])
@pytest.mark.parametrize("shape", [(4, 6, 5, 7), (32, 96, 28, 28), (64, 1100, 2, 1), (5, 7, 1, 1)])
def test_against_float64(shape: tuple[int, ...], bounds: tuple[float, float], last: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    memory_format = torch.channels_last if last else torch.contiguous_format
    x, grad = ((torch.randn(shape, device="cuda") + 0.5).to(dtype).to(memory_format=memory_format) for _ in range(2))
    gamma, beta = (torch.rand(shape[1], device="cuda", dtype=native.accumulator(dtype)) for _ in range(2))
    wide = [each.double().requires_grad_() for each in (x, gamma, beta)]
    normalised = F.batch_norm(wide[0], None, None, wide[1], wide[2], training=True)
    # Rounding decides on which side of a bound these are.
    near = sum(((normalised - bound).abs() < 1e-4) for bound in bounds).bool()  # type: ignore[union-attr]
    grad = grad.masked_fill(near, 0.0)
    expected = F.hardtanh(normalised, *bounds)
    inputs = [each.requires_grad_() for each in (x, gamma, beta)]
    assert unsupported_reason(*inputs) is None
    found = bn_clamp(*inputs, low=bounds[0], high=bounds[1]).out
    close(found, expected.detach(), dtype)
    actual = torch.autograd.grad(found, inputs, grad)
    for a, b in zip(actual, torch.autograd.grad(expected, wide, grad.double()), strict=True):
        close(a, b, a.dtype)
    again = torch.autograd.grad(bn_clamp(*inputs, low=bounds[0], high=bounds[1]).out, inputs, grad)
    assert all(torch.equal(a, b) for a, b in zip(again, actual, strict=True))
