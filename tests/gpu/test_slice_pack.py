from __future__ import annotations

import pytest
import torch

from hwnas.kernels import native, slice_pack, slice_unpack
from hwnas.kernels.slice_pack import unsupported_reason

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)
if (reason := native.unavailable_reason(torch.device("cuda"))) is not None:
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.gpu

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
CASES = [
    ((7, 5), (4, 3)),
    ((6, 4, 7), (5, 4, 4)),
    ((6, 4, 5, 7), (3, 2, 3, 3)),
    ((960, 1, 7, 7), (640, 1, 3, 3)),
    ((300, 70, 1, 1), (201, 55, 1, 1)),
    ((130, 70, 3, 3), (129, 70, 3, 3)),
    ((5, 4, 3, 5, 7), (3, 3, 1, 4, 3)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize(("shape", "size"), CASES)
@pytest.mark.parametrize("last", [False, True])
def test_every_element_and_every_gradient(
    shape: tuple[int, ...], size: tuple[int, ...], last: bool, dtype: torch.dtype
) -> None:
    memory_format = LAST.get(len(shape), torch.contiguous_format) if last else torch.contiguous_format
    weight = torch.randn(shape, device="cuda").to(dtype).to(memory_format=memory_format).requires_grad_()
    assert unsupported_reason(weight) is None
    starts = [(whole - part) // 2 if d > 1 else 0 for d, (whole, part) in enumerate(zip(shape, size, strict=True))]
    inside = tuple(slice(start, start + part) for start, part in zip(starts, size, strict=True))
    part = slice_pack(weight, size[0], size[1], size[2:])
    grad = torch.randn(size, device="cuda").to(dtype)
    (found,) = torch.autograd.grad(part, [weight], grad)
    expected = torch.zeros(shape, device="cuda", dtype=dtype)
    expected[inside] = grad
    assert torch.equal(part, weight[inside])
    assert torch.equal(found, expected)
    assert torch.equal(slice_unpack(grad, shape, memory_format), expected)
    assert part.is_contiguous(memory_format=memory_format)
    assert found.is_contiguous(memory_format=memory_format)


def test_in_a_cuda_graph() -> None:
    weight = torch.randn(8, 8, device="cuda")
    slice_pack(weight, 4, 4)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        part = slice_pack(weight, 4, 4)
    weight.mul_(2)
    graph.replay()
    assert torch.equal(part, weight[:4, :4])
