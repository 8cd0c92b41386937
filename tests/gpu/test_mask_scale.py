from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from hwnas.kernels import mask_scale, native
from hwnas.kernels.mask_scale import unsupported_reason

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)
if (reason := native.unavailable_reason(torch.device("cuda"))) is not None:
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-12}
SHAPES = [(1, 1), (7, 5), (70, 1100), (33, 7, 3, 3), (960, 1, 7, 7), (9, 130, 3, 3), (512, 300, 3, 3), (4, 3, 2, 3, 3)]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def arguments(shape: tuple[int, ...], dtype: torch.dtype, last: bool = False) -> tuple[Tensor, list[Tensor]]:
    weight = torch.randn(shape, device="cuda").to(dtype)
    if last and len(shape) in LAST:
        weight = weight.to(memory_format=LAST[len(shape)])
    kind = native.accumulator(dtype)
    masks = [torch.rand(size, device="cuda", dtype=kind) for size in (shape[:1], shape[1:2], shape[2:])]
    return weight.requires_grad_(), [mask.requires_grad_() for mask in masks]


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(float(expected.abs().max()), 1.0)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance * scale)


def truth(weight: Tensor, masks: list[Tensor], grad: Tensor) -> list[Tensor]:
    w, g = (x.detach().double().reshape(*x.shape[:2], -1) for x in (weight, grad))
    o, i, k = (mask.detach().double().reshape(-1) for mask in masks)
    product = torch.einsum("o,i,k->oik", o, i, k)
    found = [
        product * w,
        product * g,
        torch.einsum("oik,oik,i,k->o", w, g, i, k),
        torch.einsum("oik,oik,o,k->i", w, g, o, k),
        torch.einsum("oik,oik,o,i->k", w, g, o, i),
    ]
    return [x.reshape(like.shape) for x, like in zip(found, [weight, weight, *masks], strict=True)]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [False, True])
def test_against_float64(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> None:
    weight, masks = arguments(shape, dtype, last)
    assert unsupported_reason(weight, masks) is None
    grad = torch.randn(shape, device="cuda").to(dtype)
    out = mask_scale(weight, *masks)
    expected = truth(weight, masks, grad)
    found = [out, *torch.autograd.grad(out, [weight, *masks], grad)]
    of_sums = 10 * TOLERANCE[torch.float64 if dtype == torch.float64 else torch.float32]
    for actual, right, tolerance in zip(found, expected, [TOLERANCE[dtype]] * 2 + [of_sums] * 3, strict=True):
        close(actual, right, tolerance)


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=4)))
def test_only_the_gradients_that_are_wanted(needed: tuple[bool, ...]) -> None:
    weight, masks = arguments((35, 5, 3, 3), torch.float32)
    inputs = [x.detach().requires_grad_(need) for x, need in zip([weight, *masks], needed, strict=True)]
    grad = torch.randn(35, 5, 3, 3, device="cuda")
    out = mask_scale(*inputs)
    if any(needed):
        out.backward(grad)
    for x, need, right in zip(inputs, needed, truth(weight, masks, grad)[1:], strict=True):
        if need:
            assert x.grad is not None
            close(x.grad, right, 1e-5)
        else:
            assert x.grad is None


def test_masks_that_are_left_out_are_ones() -> None:
    weight, (out_mask, _, _) = arguments((35, 5, 3, 3), torch.float32)
    torch.testing.assert_close(mask_scale(weight, out_mask), weight * out_mask.view(-1, 1, 1, 1))
    torch.testing.assert_close(mask_scale(weight), weight)


def test_runs_are_equal_to_the_bit() -> None:
    weight, masks = arguments((300, 70, 3, 3), torch.float32)
    grad = torch.randn(300, 70, 3, 3, device="cuda")
    runs = [torch.autograd.grad(mask_scale(weight, *masks), [weight, *masks], grad) for _ in range(3)]
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            assert torch.equal(a, b)


def test_in_a_cuda_graph() -> None:
    weight, masks = arguments((8, 8, 3, 3), torch.float32)
    weight, masks = weight.detach(), [mask.detach() for mask in masks]
    mask_scale(weight, *masks)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mask_scale(weight, *masks)
    weight.mul_(2)
    expected = mask_scale(weight, *masks)
    graph.replay()
    torch.testing.assert_close(out, expected)
