from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hwnas.kernels import mixed_sum, native
from hwnas.kernels.mixed_sum import unsupported_reason

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)
if (reason := native.unavailable_reason(torch.device("cuda"))) is not None:
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-13}


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(float(expected.abs().max()), 1.0)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 65, 7), (2, 8, 128, 64), (1_000_003,)])
@pytest.mark.parametrize("count", [1, 2, 8, 128])
@pytest.mark.parametrize("aligned", [True, False])
def test_against_float64(count: int, shape: tuple[int, ...], dtype: torch.dtype, aligned: bool) -> None:
    if count == 128 and len(shape) == 1 and shape[0] > 1000:
        shape = (10_007,)
    size = torch.Size(shape).numel()
    w = torch.softmax(torch.randn(count, device="cuda", dtype=native.accumulator(dtype)), 0).requires_grad_()
    # One element further, the addresses allow no 16-byte access.
    first = 0 if aligned else 1
    stores = [torch.randn(size + 1, device="cuda").to(dtype) for _ in range(count)]
    xs = [store[first : first + size].view(shape).requires_grad_() for store in stores]
    assert unsupported_reason(w, xs) is None
    grad = torch.randn(shape, device="cuda").to(dtype)
    out = mixed_sum(w, xs)
    grads = torch.autograd.grad(out, [w, *xs], grad)
    wide = torch.stack([x.detach().double() for x in xs])
    close(out, torch.einsum("k,k...->...", w.detach().double(), wide), TOLERANCE[dtype])
    tolerance = TOLERANCE[torch.float64 if dtype == torch.float64 else torch.float32]
    close(grads[0], torch.einsum("k...,...->k", wide, grad.double()), 10 * tolerance)
    for k in range(count):
        close(grads[1 + k], w[k].detach().double() * grad.double(), TOLERANCE[dtype])


def test_runs_are_equal_to_the_bit() -> None:
    w = torch.rand(4, device="cuda", requires_grad=True)
    xs = [torch.randn(3, 100_003, device="cuda", requires_grad=True) for _ in range(4)]
    grad = torch.randn(3, 100_003, device="cuda")
    runs = [torch.autograd.grad(mixed_sum(w, xs), [w, *xs], grad) for _ in range(3)]
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            assert torch.equal(a, b)


def test_the_current_stream_is_used() -> None:
    w = torch.tensor([0.5, 2.0], device="cuda")
    xs = [torch.zeros(1 << 24, device="cuda") for _ in range(2)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for x in xs:
            x.fill_(1)
        out = mixed_sum(w, xs)
    stream.synchronize()
    assert torch.equal(out, torch.full_like(out, 2.5))


def test_in_a_cuda_graph() -> None:
    w = torch.tensor([0.5, 2.0], device="cuda")
    xs = [torch.ones(1000, device="cuda") for _ in range(2)]
    mixed_sum(w, xs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mixed_sum(w, xs)
    xs[0].fill_(3)
    graph.replay()
    torch.testing.assert_close(out, torch.full_like(out, 3.5))


def test_more_tensors_than_the_kernel_takes() -> None:
    w = torch.rand(129, device="cuda")
    xs = [torch.ones(3, device="cuda")] * 129
    assert "at most 128" in (unsupported_reason(w, xs) or "")
    torch.testing.assert_close(mixed_sum(w, xs), w.sum().expand(3))
