"""`bn_clamp` against the definitions of batch normalisation and of a clamp in float64, its gradients too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.errors import UnsupportedError
from hwnas.kernels import bn_clamp, bn_clamp_reference, native
from hwnas.kernels.bn_clamp import unsupported_reason

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float64: 1e-11}
LAST = torch.channels_last
PLAIN = torch.contiguous_format
BOUNDS = [(0.0, math.inf), (0.0, 6.0), (-0.5, 0.7), (-math.inf, 0.3), (-math.inf, math.inf)]


class Case:
    """Arguments, a gradient, and what is expected of them."""

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = PLAIN,
        bounds: tuple[float, float] = (0.0, 0.8),
        mean: float = 1.0,
        affine: bool = True,
    ) -> None:
        accumulator = native.accumulator(dtype)
        self.low, self.high = bounds
        self.x = (torch.randn(shape) + mean).to(dtype).to(memory_format=memory_format).requires_grad_()
        self.gamma = (torch.rand(shape[1], dtype=accumulator) + 0.5).requires_grad_() if affine else None
        self.beta = torch.randn(shape[1], dtype=accumulator).requires_grad_() if affine else None
        self.grad = (torch.randn(shape) + 0.3).to(dtype).to(memory_format=memory_format)

    @property
    def inputs(self) -> list[Tensor]:
        return [x for x in (self.x, self.gamma, self.beta) if x is not None]

    def run(self, operation: Any = bn_clamp) -> Any:
        return operation(self.x, self.gamma, self.beta, eps=1e-3, low=self.low, high=self.high)

    def truth(self) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
        """Output, gradients, mean, variance by textbook formulas; which elements are very near a bound."""
        g = self.grad.double()
        channels = g.shape[1]
        as_image = [channels, g.shape[0], *g.shape[2:]]
        rows = self.x.detach().double().transpose(0, 1).reshape(channels, -1)
        flat = g.transpose(0, 1).reshape(channels, -1)
        n = rows.shape[1]
        gamma, beta = (
            torch.full((channels,), default).double() if each is None else each.detach().double()
            for each, default in ((self.gamma, 1.0), (self.beta, 0.0))
        )
        mean = rows.sum(1) / n
        variance = ((rows - mean[:, None]) ** 2).sum(1) / n
        deviation = (variance + 1e-3) ** 0.5
        unit = (rows - mean[:, None]) / deviation[:, None]
        scaled = gamma[:, None] * unit + beta[:, None]
        near = torch.zeros_like(scaled, dtype=torch.bool)
        for bound in (self.low, self.high):
            near |= (scaled - bound).abs() < 1e-5
        flat = torch.where((scaled > self.low) & (scaled < self.high), flat, 0.0)
        inner = n * flat - flat.sum(1, keepdim=True) - unit * (flat * unit).sum(1, keepdim=True)
        grad_x = ((gamma / deviation / n)[:, None] * inner).reshape(as_image).transpose(0, 1)
        out = scaled.clip(self.low, self.high).reshape(as_image).transpose(0, 1)
        grads = [grad_x, (flat * unit).sum(1), flat.sum(1)][: len(self.inputs)]
        return out, grads, mean, variance, near.reshape(as_image).transpose(0, 1)

    def check(self, operation: Any = bn_clamp) -> None:
        dtype = self.x.dtype
        found = self.run(operation)
        # Rounding decides on which side of a bound these are.
        self.grad = self.grad.masked_fill(self.truth()[4], 0.0)
        out, grads, mean, variance, _ = self.truth()
        assert found.out.dtype == dtype
        assert not found.mean.requires_grad
        close(found.out, out, dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        close(found.mean, mean, wide)
        close(found.variance, variance, wide)
        actual = torch.autograd.grad(found.out, self.inputs, self.grad)
        for k, (a, b, x) in enumerate(zip(actual, grads, self.inputs, strict=True)):
            assert a.dtype == x.dtype, k
            close(a, b, x.dtype)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1.0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_is_the_definition(isa: str, normed_shape: Sequence[int], bounds: tuple[float, float]) -> None:
    if normed_shape == (5, 7, 1, 1) and bounds == BOUNDS[-1]:
        Case(normed_shape, bounds=bounds, affine=False).check()
    Case(normed_shape, bounds=bounds).check()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("memory_format", [PLAIN, LAST])
@pytest.mark.parametrize("affine", [True, False])
def test_types_and_layouts(isa: str, dtype: torch.dtype, memory_format: torch.memory_format, affine: bool) -> None:
    case = Case((3, 5, 6, 7), dtype, memory_format, affine=affine)
    case.check()
    assert case.run().out.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("operation", [bn_clamp_reference])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_the_reference_is_the_definition(operation: Any, bounds: tuple[float, float]) -> None:
    Case((4, 6, 5, 7), bounds=bounds).check(operation)


def test_a_mean_far_larger_than_the_deviation() -> None:
    case = Case((8, 3, 16, 16), mean=3000.0)
    found = case.run()
    out, _, _, variance, _ = case.truth()
    torch.testing.assert_close(found.variance, variance, rtol=1e-4, atol=0)
    # A mean rounded to float32 would be off by a tenth of a thousandth.
    close(found.out, out, torch.float32)


def test_no_gradient_of_what_is_at_a_bound() -> None:
    for at in (0.0, 6.0):
        gamma, beta = torch.zeros(3), torch.full((3,), at, requires_grad=True)
        out = bn_clamp(torch.randn(4, 3, 5), gamma, beta, low=0.0, high=6.0).out
        assert bool((out == at).all())
        (grad,) = torch.autograd.grad(out.sum(), beta)
        assert not grad.any()


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0)])
def test_is_what_the_modules_of_pytorch_compute(low: float, high: float) -> None:
    norm = torch.nn.BatchNorm2d(5)
    torch.nn.init.uniform_(norm.weight, 0.5, 3.0)
    torch.nn.init.uniform_(norm.bias, -1.0, 3.0)
    activation = {(0.0, math.inf): torch.nn.ReLU(), (0.0, 6.0): torch.nn.ReLU6()}.get((low, high), torch.nn.Hardtanh())
    x = torch.randn(4, 5, 8, 8, requires_grad=True)
    grad = torch.randn(4, 5, 8, 8)
    inputs = (x, norm.weight, norm.bias)
    expected = activation(norm(x))
    found = bn_clamp(*inputs, low=low, high=high)
    torch.testing.assert_close(found.out, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(found.out, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_are_zero_exactly_where_the_result_is_clamped() -> None:
    # The backward pass finds out again where that is: an element that rounds to a bound is not inside.
    beta = torch.zeros(3, requires_grad=True)
    out = bn_clamp(torch.randn(64, 3, 16, 16), None, beta, eps=0.0, low=0.0, high=0.5).out
    (number,) = torch.autograd.grad(out.sum(), beta)
    assert torch.equal(number, ((out > 0.0) & (out < 0.5)).sum((0, 2, 3)).float())


@pytest.mark.parametrize("memory_format", [PLAIN, LAST])
def test_nan_passes_and_so_does_its_gradient(memory_format: torch.memory_format) -> None:
    x = torch.randn(4, 3, 5, 5).to(memory_format=memory_format)
    x[1, 2, 3, 4] = math.nan
    x.requires_grad_()
    out = bn_clamp(x, low=0.0).out
    assert out[:, 2].isnan().all()
    assert not out[:, :2].isnan().any()
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert grad[:, 2].isnan().all()
    assert not grad[:, :2].isnan().any()


@pytest.mark.parametrize("memory_format", [PLAIN, LAST])
def test_equal_to_the_bit_for_every_number_of_threads(memory_format: torch.memory_format) -> None:
    case = Case((16, 24, 20, 20), memory_format=memory_format, bounds=(0.0, 6.0))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            found = case.run()
            results.append(
                [found.out, found.mean, found.variance, *torch.autograd.grad(found.out, case.inputs, case.grad)]
            )
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("grad", ["expanded", "other layout", "transposed"])
def test_gradients_may_lie_in_memory_as_they_like(grad: str) -> None:
    case = Case((4, 6, 5, 5))
    case.grad = {
        "expanded": torch.full((), 0.7).expand(4, 6, 5, 5),
        "other layout": case.grad.to(memory_format=LAST),
        "transposed": case.grad.transpose(2, 3),
    }[grad]
    case.check()


def test_only_wanted_gradients() -> None:
    case = Case((4, 6, 5, 5))
    _, (of_x, of_gamma, of_beta), *_ = case.truth()
    for wanted, expected in ((0, of_x), (1, of_gamma), (2, of_beta)):
        for k, each in enumerate(case.inputs):
            each.requires_grad_(k == wanted)
        (found,) = torch.autograd.grad(case.run().out, case.inputs[wanted], case.grad)
        close(found, expected, torch.float32)


def test_gradients_and_gradients_of_gradients() -> None:
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    gamma = torch.rand(2, dtype=torch.float64, requires_grad=True)
    beta = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def of(*inputs: Tensor) -> Tensor:
        return bn_clamp(*inputs, low=-0.3, high=0.4).out

    assert torch.autograd.gradcheck(of, (x, gamma, beta))
    assert torch.autograd.gradgradcheck(of, (x, gamma, beta))


def test_a_compiler_sees_plain_pytorch() -> None:
    case = Case((4, 6, 5, 5))
    compiled = torch.compile(lambda x: bn_clamp(x, low=0.0, high=0.8).out, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(case.x.detach()), bn_clamp(case.x.detach(), low=0.0, high=0.8).out)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda x: x.half(), "no kernel for torch.float16"),
        (lambda x: x[:0], "empty"),
        (lambda x: torch._neg_view(x), "negated"),
    ],
)
def test_says_why_not(make: Any, reason: str) -> None:
    assert reason in str(unsupported_reason(make(torch.randn(2, 3, 4))))


def test_without_the_kernel_plain_pytorch() -> None:
    with native.disabled():
        Case((4, 6, 5, 7)).check()
    half = torch.randn(4, 3, 5).half()
    expected = F.relu(F.batch_norm(half.float(), None, None, training=True)).half()
    torch.testing.assert_close(bn_clamp(half, low=0.0).out, expected)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.ones(2, 3).int(),), {}, UnsupportedError, "x is torch.int32"),
        (([1.0],), {}, UnsupportedError, "x is a list"),
        ((torch.ones(3),), {}, ValueError, r"x has shape \(3,\)"),
        ((torch.ones(1, 3),), {}, ValueError, "one value for each channel"),
        ((torch.ones(2, 3), torch.ones(2)), {}, ValueError, r"gamma has shape \(2,\), expected \(3,\)"),
        ((torch.ones(2, 3), None, torch.ones(3).long()), {}, UnsupportedError, "beta is torch.int64"),
        ((torch.ones(2, 3), torch.ones(3, device="meta")), {}, ValueError, "gamma is on meta"),
        ((torch.ones(2, 3),), {"eps": -1.0}, ValueError, "eps is -1.0"),
        ((torch.ones(2, 3),), {"low": 2.0, "high": 1.0}, ValueError, "low is 2.0 and high 1.0"),
    ],
)
def test_errors_name_what_is_wrong(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bn_clamp(*arguments, **options)


def test_a_backward_pass_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case((3, 5, 6, 7))
    out = case.run().out
    expected = torch.autograd.grad(out, case.inputs, case.grad, retain_graph=True)
    monkeypatch.setattr(native.CPU, "mixed_bn_sum_backward", None)
    with native.disabled():
        found = torch.autograd.grad(out, case.inputs, case.grad)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_reference_accumulates_in_float32() -> None:
    x = (torch.randn(4, 3, 5, 5) + 100).bfloat16()
    found, wide = bn_clamp_reference(x, eps=1e-3), bn_clamp_reference(x.float(), eps=1e-3)
    assert torch.equal(found.out, wide.out.bfloat16())
    assert torch.equal(found.mean, wide.mean)


def test_no_variance_is_negative() -> None:
    for eps in torch.logspace(-6, 0, 50).tolist():
        for operation in (bn_clamp, bn_clamp_reference):
            assert float(operation(torch.full((3, 2, 2), 3.0), eps=eps).variance.min()) >= 0
