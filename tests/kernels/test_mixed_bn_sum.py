"""`mixed_bn_sum` against the definition of batch normalisation in float64, its gradients too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.errors import UnsupportedError
from hwnas.kernels import mixed_bn_sum, mixed_bn_sum_reference, native
from hwnas.kernels.mixed_bn_sum import unsupported_reason

INFINITY = float("inf")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float64: 1e-11}
LAST = torch.channels_last
PLAIN = torch.contiguous_format
KINDS = [True, False, True]


class Case:
    """Arguments, a gradient, and what is expected of them."""

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        kinds: Sequence[bool] = KINDS,
        memory_format: torch.memory_format = PLAIN,
        mean: float = 1.0,
        affine: bool = True,
    ) -> None:
        accumulator = native.accumulator(dtype)
        self.kinds, self.eps = list(kinds), [(1e-5, 1e-3, 1e-2)[k % 3] for k in range(len(kinds))]
        count = len(kinds)
        self.w = torch.softmax(torch.randn(count, dtype=accumulator), 0).requires_grad_()
        self.ys = [
            (torch.randn(shape) + mean * (k + 1)).to(dtype).to(memory_format=memory_format).requires_grad_()
            for k in range(count)
        ]
        self.gamma = (torch.rand(count, shape[1], dtype=accumulator) + 0.5).requires_grad_() if affine else None
        self.beta = torch.randn(count, shape[1], dtype=accumulator).requires_grad_() if affine else None
        self.grad = (torch.randn(shape) + 0.3).to(dtype).to(memory_format=memory_format)

    @property
    def inputs(self) -> list[Tensor]:
        return [self.w, *self.ys, *(x for x in (self.gamma, self.beta) if x is not None)]

    def run(self, operation: Any = mixed_bn_sum) -> Any:
        return operation(self.w, self.ys, self.kinds, eps=self.eps, gamma=self.gamma, beta=self.beta)

    def truth(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Output, gradients in the order of `inputs`, and (mean, variance) of what is normalised: textbook formulas."""
        g, w = self.grad.double(), self.w.detach().double()
        shape = [1, -1] + [1] * (g.dim() - 2)
        n = g.numel() // g.shape[1]
        rows = [y.detach().double().transpose(0, 1).reshape(g.shape[1], -1) for y in self.ys]
        flat = g.transpose(0, 1).reshape(g.shape[1], -1)
        out, grad_w, grad_y, grad_gamma, grad_beta, statistics = torch.zeros_like(g), [], [], [], [], []
        for k, row in enumerate(rows):
            if not self.kinds[k]:
                out += w[k] * self.ys[k].detach().double()
                grad_w.append((flat * row).sum())
                grad_y.append(w[k] * g)
                grad_gamma.append(torch.zeros(g.shape[1]).double())
                grad_beta.append(torch.zeros(g.shape[1]).double())
                continue
            gamma = torch.ones(g.shape[1]).double() if self.gamma is None else self.gamma[k].detach().double()
            beta = torch.zeros(g.shape[1]).double() if self.beta is None else self.beta[k].detach().double()
            mean = row.sum(1) / n
            variance = ((row - mean[:, None]) ** 2).sum(1) / n
            statistics += [mean, variance]
            deviation = (variance + self.eps[k]) ** 0.5
            unit = (row - mean[:, None]) / deviation[:, None]
            scaled = gamma[:, None] * unit + beta[:, None]
            as_image = [g.shape[1], g.shape[0], *g.shape[2:]]
            out += w[k] * scaled.reshape(as_image).transpose(0, 1)
            grad_w.append((flat * scaled).sum())
            grad_gamma.append(w[k] * (flat * unit).sum(1))
            grad_beta.append(w[k] * flat.sum(1))
            inner = n * flat - flat.sum(1, keepdim=True) - unit * (flat * unit).sum(1, keepdim=True)
            grad_y.append((w[k] * gamma / deviation / n).view(shape) * inner.reshape(as_image).transpose(0, 1))
        affine = [] if self.gamma is None else [torch.stack(grad_gamma), torch.stack(grad_beta)]
        return out, [torch.stack(grad_w), *grad_y, *affine], statistics

    def check(self, operation: Any = mixed_bn_sum) -> None:
        dtype = self.ys[0].dtype
        found = self.run(operation)
        out, grads, statistics = self.truth()
        assert found.out.dtype == dtype
        assert not found.means.requires_grad
        close(found.out, out, dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        mean, variance = (table[torch.tensor(self.kinds)].flatten() for table in (found.means, found.variances))
        close(mean, torch.cat([*statistics[::2], mean.new_empty(0)]), wide)
        close(variance, torch.cat([*statistics[1::2], mean.new_empty(0)]), wide)
        assert found.means[~torch.tensor(self.kinds)].abs().sum() == 0
        actual = torch.autograd.grad(found.out, self.inputs, self.grad)
        for k, (a, b, x) in enumerate(zip(actual, grads, self.inputs, strict=True)):
            assert a.dtype == x.dtype, k
            close(a, b, x.dtype)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_against_float64(isa: str, normed_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    formats = {4: [PLAIN, LAST], 5: [PLAIN, torch.channels_last_3d]}.get(len(normed_shape), [PLAIN])
    for memory_format in formats:
        case = Case(normed_shape, dtype, memory_format=memory_format)
        assert unsupported_reason(case.w, case.ys, case.gamma, case.beta) is None
        case.check()
        assert case.run().out.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", [PLAIN, LAST])
@pytest.mark.parametrize("kinds", [[True], [False], [True, True, True, True], [False, True], [False, False]])
def test_kinds(kinds: list[bool], memory_format: torch.memory_format) -> None:
    torch.manual_seed(1)
    for affine in (False, True):
        Case((3, 20, 6, 5), kinds=kinds, memory_format=memory_format, affine=affine).check()


@pytest.mark.parametrize("memory_format", [PLAIN, LAST])
@pytest.mark.parametrize("count", range(2, 10))  # channels last, four tensors are added at a time
def test_any_number_of_tensors(isa: str, count: int, memory_format: torch.memory_format) -> None:
    torch.manual_seed(11)
    Case((3, 5, 9, 7), kinds=[k % 4 != 1 for k in range(count)], memory_format=memory_format).check()


@pytest.mark.parametrize("count", [1, 5])
def test_tensors_of_which_a_cache_keeps_two_or_none(count: int) -> None:
    """Channels last, the backward pass ends with some tensors before it begins with the next ones."""
    torch.manual_seed(12)
    for shape in ((8, 20, 49, 49), (8, 56, 49, 49)):
        Case(shape, kinds=[True, True, False, True, True][:count], memory_format=LAST).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("affine", [False, True])
def test_the_reference_means_the_same(dtype: torch.dtype, affine: bool) -> None:
    torch.manual_seed(2)
    Case((4, 3, 5, 6), dtype, affine=affine).check(mixed_bn_sum_reference)


@pytest.mark.parametrize("memory_format", [PLAIN, LAST])
def test_a_mean_far_larger_than_the_deviation(isa: str, memory_format: torch.memory_format) -> None:
    torch.manual_seed(3)
    for shape in ((16, 4, 20, 20), (16, 4, 3, 3)):
        case = Case(shape, mean=1e3, memory_format=memory_format, kinds=[True, True], affine=False)
        case.check()
        # The samples by which a channel is shifted may lie anywhere.
        with torch.no_grad():
            for y in case.ys:
                y[:, :, 0] -= 1e3
        case.check()


def test_channels_of_no_variance() -> None:
    case = Case((4, 3, 5, 5), affine=False)
    with torch.no_grad():
        for y in case.ys:
            y[:, 1] = 7.25
    found = case.run()
    assert found.variances[0, 1] == 0
    torch.testing.assert_close(found.out[:, 1], (case.w[1] * 7.25).expand(4, 5, 5))
    out, *_ = case.truth()
    close(found.out, out, torch.float32)


def test_values_that_are_not_finite_stay_in_their_channel() -> None:
    for memory_format in (PLAIN, LAST):
        case = Case((4, 3, 5, 5), memory_format=memory_format, affine=False)
        clean = case.run().out
        with torch.no_grad():
            case.ys[0][2, 1, 3, 3] = float("inf")
        found = case.run().out
        assert found[:, 1].isnan().all()
        assert torch.equal(found[:, [0, 2]], clean[:, [0, 2]])


def test_strides_of_every_kind() -> None:
    torch.manual_seed(4)
    case = Case((4, 5, 6, 7))
    case.ys = [
        case.ys[0],
        case.ys[1].detach().to(memory_format=LAST).requires_grad_(),
        torch.randn(4, 5, 7, 6).transpose(2, 3).requires_grad_(),
    ]
    case.check()
    case.ys = case.ys[1:] + case.ys[:1]
    case.check()
    case.grad = torch.randn(4, 5, 1, 1).expand(4, 5, 6, 7)
    case.check()
    case.grad = torch.tensor(0.5).expand(4, 5, 6, 7)
    case.check()
    case.w = torch.rand(3, 4)[:, 1].requires_grad_()
    case.gamma = torch.rand(5, 3).t().requires_grad_()
    case.check()


@pytest.mark.parametrize("memory_format", [PLAIN, LAST])
def test_only_the_gradients_that_are_wanted(memory_format: torch.memory_format) -> None:
    torch.manual_seed(5)
    case = Case((4, 5, 6, 7), memory_format=memory_format)
    _, expected, _ = case.truth()
    inputs = case.inputs
    for wanted in ([0], [1, 2, 3], [3], [2], [4], [5], [0, 2], []):
        for k, x in enumerate(inputs):
            x.requires_grad_(k in wanted)
        out = case.run().out
        assert out.requires_grad == bool(wanted)
        if wanted:
            found = torch.autograd.grad(out, [inputs[k] for k in wanted], case.grad)
            for k, grad in zip(wanted, found, strict=True):
                close(grad, expected[k], torch.float32)


def test_weights_of_another_type() -> None:
    case = Case((4, 5, 6, 7))
    for dtype in (torch.bfloat16, torch.float64):
        w = torch.rand(3).to(dtype).requires_grad_()
        found = mixed_bn_sum(w, case.ys, KINDS)
        reference = mixed_bn_sum_reference(w.detach(), case.ys, KINDS)
        torch.testing.assert_close(found.out, reference.out, rtol=1e-4, atol=1e-4)
        (grad,) = torch.autograd.grad(found.out, [w], case.grad)
        assert grad.dtype == dtype


def test_types_are_promoted() -> None:
    case = Case((4, 5, 6, 7), affine=False)
    ys = [case.ys[0].bfloat16(), *case.ys[1:]]
    assert "types" in (unsupported_reason(case.w, ys) or "")
    found = mixed_bn_sum(case.w, ys, KINDS)
    assert found.out.dtype == torch.float32
    torch.testing.assert_close(found.out, mixed_bn_sum(case.w, [y.float() for y in ys], KINDS).out)


def test_gradcheck_of_first_and_second_order() -> None:
    torch.manual_seed(6)
    case = Case((3, 2, 2, 1), torch.float64, kinds=[True, False])
    assert case.gamma is not None
    assert case.beta is not None

    def run(w: Tensor, gamma: Tensor, beta: Tensor, *ys: Tensor) -> Tensor:
        return mixed_bn_sum(w, ys, [True, False], eps=0.1, gamma=gamma, beta=beta).out

    inputs = (case.w, case.gamma, case.beta, *case.ys)
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("memory_format", [PLAIN, LAST])
def test_create_graph_gives_the_same_gradients(memory_format: torch.memory_format) -> None:
    torch.manual_seed(7)
    case = Case((2, 3, 4, 5), memory_format=memory_format)
    with_graph = torch.autograd.grad(case.run().out, case.inputs, case.grad, create_graph=True)
    without = torch.autograd.grad(case.run().out, case.inputs, case.grad)
    for a, b in zip(with_graph, without, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("memory_format", [PLAIN, LAST])
@pytest.mark.parametrize("shape", [(9, 8, 40, 33), (70, 40, 4, 4), (8, 20, 49, 49)])
def test_results_do_not_depend_on_threads_nor_on_the_run(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    torch.manual_seed(8)
    case = Case(shape, memory_format=memory_format)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            found = case.run()
            results.append((*found, *torch.autograd.grad(found.out, case.inputs, case.grad)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_a_tensor_that_changed_after_the_forward_pass_is_noticed() -> None:
    case = Case((4, 5, 6, 7))
    case.ys = [y * 1 for y in case.ys]
    out = case.run().out
    with torch.no_grad():
        case.ys[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_the_weights_step_keeps_no_tensor_that_it_does_not_read() -> None:
    case = Case((4, 5, 6, 7), affine=False)
    ys = [y * 1 for y in case.ys]
    out = mixed_bn_sum(case.w.detach(), ys, KINDS, eps=case.eps).out
    with torch.no_grad():
        ys[1].add_(1)  # is not normalised, so its gradient does not need it
    _, expected, _ = case.truth()
    for actual, grad in zip(torch.autograd.grad(out, case.ys, case.grad), expected[1:4], strict=True):
        close(actual, grad, torch.float32)


def test_one_tensor_twice() -> None:
    case = Case((4, 5, 6, 7), affine=False)
    y = case.ys[0]
    out = mixed_bn_sum(case.w, [y, y, y], [True, False, True]).out
    (grad,) = torch.autograd.grad(out, [y], case.grad)
    wide = y.detach().double().requires_grad_()
    w = case.w.detach().double()
    (w[1] * wide + (w[0] + w[2]) * F.batch_norm(wide, None, None, training=True)).backward(case.grad.double())
    assert wide.grad is not None
    close(grad, wide.grad, torch.float32)


def test_no_images() -> None:
    w, ys = torch.rand(2, requires_grad=True), [torch.randn(0, 3, 4, 4, requires_grad=True) for _ in range(2)]
    assert "empty" in (unsupported_reason(w, ys) or "")
    out = mixed_bn_sum(w, ys, [False, False]).out
    assert out.shape == (0, 3, 4, 4)
    assert torch.autograd.grad(out.sum(), [w])[0].tolist() == [0, 0]


GOOD: dict[str, Any] = {"weights": torch.rand(2), "tensors": [torch.rand(2, 3, 4)] * 2, "normalised": [True, False]}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tensors": []}, ValueError, "tensors is empty"),
        ({"weights": torch.rand(3)}, ValueError, r"weights has shape \(3,\), expected \(2,\)"),
        ({"weights": torch.rand(2).int()}, UnsupportedError, "weights is torch.int32"),
        ({"tensors": [torch.rand(2, 3), 1.0]}, UnsupportedError, r"tensors\[1\] is a float"),
        ({"tensors": [torch.rand(2, 3), torch.rand(3, 2)]}, ValueError, r"tensors\[1\] has shape \(3, 2\)"),
        ({"tensors": [torch.rand(2)] * 2}, ValueError, r"shape \(2,\), expected \(N, C, ...\)"),
        ({"tensors": [torch.rand(2, 3), torch.rand(2, 3, device="meta")]}, ValueError, r"tensors\[1\] is on meta"),
        ({"tensors": [torch.rand(1, 3, 1)] * 2}, ValueError, "one value for each channel"),
        ({"normalised": [True]}, ValueError, "normalised has 1 entries, expected 2"),
        ({"eps": [0.1, 0.1, 0.1]}, ValueError, "eps has 3 entries, expected 2"),
        ({"eps": -1.0}, ValueError, r"eps of tensors\[0\] is -1.0"),
        ({"gamma": torch.rand(3)}, ValueError, r"gamma has shape \(3,\), expected \(2, 3\)"),
        ({"beta": torch.rand(2, 4)}, ValueError, r"beta has shape \(2, 4\), expected \(2, 3\)"),
        ({"beta": [1.0]}, UnsupportedError, "beta is a list"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mixed_bn_sum(**GOOD | change)


class Subclass(Tensor):
    pass


def test_what_the_kernel_cannot_take_runs_in_plain_pytorch() -> None:
    w, ys = torch.rand(2), [torch.rand(3, 4, 5), torch.rand(3, 4, 5)]
    cases = {
        "float16": [y.half() for y in ys],
        "Subclass": [ys[0].as_subclass(Subclass), ys[1]],
        "negated": [torch._neg_view(ys[0]), ys[1]],
        "meta": [y.to("meta") for y in ys],
    }
    for word, tensors in cases.items():
        weights = w.to(tensors[0].device)
        assert word in (unsupported_reason(weights, tensors) or "")
        found = mixed_bn_sum(weights, tensors, [True, False])
        assert found.out.shape == (3, 4, 5)
        assert found.out.dtype == tensors[0].dtype


def test_without_kernels() -> None:
    torch.manual_seed(9)
    with native.disabled():
        case = Case((4, 5, 6, 7))
        assert "switched off" in (unsupported_reason(case.w, case.ys) or "")
        case.check()


def test_torch_func() -> None:
    w, ys = torch.rand(2), [torch.rand(3, 4, 5), torch.rand(3, 4, 5)]
    units = torch.stack([F.batch_norm(ys[0], None, None, training=True), ys[1]])

    def run(w: Tensor) -> Tensor:
        return mixed_bn_sum(w, ys, [True, False]).out

    torch.testing.assert_close(torch.func.grad(lambda w: run(w).square().sum())(w), (2 * run(w) * units).sum((1, 2, 3)))
    batch = torch.rand(5, 2)
    torch.testing.assert_close(torch.vmap(run)(batch), torch.einsum("bk,k...->b...", batch, units))
    _, tangent = torch.func.jvp(run, (w,), (torch.tensor([1.0, 0.0]),))
    torch.testing.assert_close(tangent, units[0])


def test_opcheck() -> None:
    torch.manual_seed(10)
    for memory_format in (PLAIN, LAST):
        case = Case((2, 3, 4, 5), memory_format=memory_format)
        arguments = (case.w, case.ys, KINDS, case.eps, case.gamma, case.beta)
        torch.library.opcheck(torch.ops.hwnas.mixed_bn_sum.default, arguments)
        plain = (case.w, case.ys, KINDS, case.eps, None, None)
        torch.library.opcheck(torch.ops.hwnas.mixed_bn_sum.default, plain)
        _, means, variances = case.run()
        w, ys = case.w.detach(), [y.detach() for y in case.ys]
        assert case.gamma is not None
        norms = (KINDS, case.eps, case.gamma.detach(), None)
        for wanted in ((True, [True, False, True], True, False), (False, [False, True, False], False, False)):
            torch.library.opcheck(
                torch.ops.hwnas.mixed_bn_sum_backward.default,
                (case.grad, w, ys, means, variances, *norms, *wanted, int(memory_format is LAST)),
            )


@pytest.mark.slow
def test_compiled_in_one_graph() -> None:
    torch.manual_seed(11)
    case = Case((2, 3, 4, 5))

    def mix(alpha: Tensor, ys: list[Tensor], gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        found = mixed_bn_sum(torch.softmax(alpha, 0), ys, KINDS, gamma=gamma, beta=beta)
        return found.out.relu(), found.means

    # The backend keeps the graph as it was captured and needs no C++ compiler.
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    arguments = (case.w, case.ys, case.gamma, case.beta)
    expected, actual = mix(*arguments), compiled(*arguments)  # type: ignore[arg-type]
    torch.testing.assert_close(actual, expected)
    for a, b in zip(
        torch.autograd.grad(actual[0].sum(), case.inputs),
        torch.autograd.grad(expected[0].sum(), case.inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_an_exported_program_knows_only_pytorch() -> None:
    class Mix(torch.nn.Module):
        def forward(self, w: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return mixed_bn_sum(w, [a, b], [True, False]).out

    program = torch.export.export(Mix(), (torch.rand(2), torch.rand(3, 2, 4), torch.rand(3, 2, 4)))
    assert not any("hwnas" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": 9}, "dtype is 9"),
        ({"weights": 0}, "weights is a null address"),
        ({"tensors": [], "normalised": [], "eps": []}, "tensors is empty"),
        ({"tensors": [64, 0]}, r"tensors\[1\] is a null address"),
        ({"tensors": [64, 66]}, r"tensors\[1\] is not aligned"),
        ({"normalised": [True]}, "normalised has 1 entries"),
        ({"eps": [0.1]}, "eps has 1 entries"),
        ({"eps": [0.1, float("nan")]}, r"eps\[1\] is nan"),
        ({"gamma": 2}, "gamma is not aligned"),
        ({"beta": 2}, "beta is not aligned"),
        ({"shape": [1, 2]}, "shape has 2 entries"),
        ({"shape": [1, 0, 2]}, "shape holds 0"),
        ({"shape": [1 << 30, 1 << 30, 1 << 30]}, "shape is too large"),
        ({"low": 1.0, "high": 1.0}, "expected low < high"),
        ({"low": 0.0}, "need one tensor, normalised; got 2"),
        ({"means": 4}, "means is not aligned to 8"),
        ({"variances": 0}, "variances is a null address"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_the_binding_checks_what_it_is_given(change: dict[str, object], message: str) -> None:
    both = {
        "dtype": 0,
        "weights": 64,
        "tensors": [64, 64],
        "normalised": [True, True],
        "eps": [0.1, 0.1],
        "gamma": 0,
        "beta": 0,
        "shape": [1, 1, 1],
        "low": -INFINITY,
        "high": INFINITY,
        "means": 64,
        "variances": 64,
        "threads": 1,
    }
    assert native.CPU is not None
    with pytest.raises(ValueError, match=message):
        native.CPU.mixed_bn_sum(**both | {"out": 64} | change)
    more = {"grad": 64, "grad_tensors": change.get("tensors", [64, 64]), "grad_weights": 64}
    with pytest.raises(ValueError, match=message):
        native.CPU.mixed_bn_sum_backward(**both | more | {"grad_gamma": 0, "grad_beta": 0} | change)
