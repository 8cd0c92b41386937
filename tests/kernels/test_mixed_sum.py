from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils.flop_counter import FlopCounterMode

from hwnas.errors import UnsupportedError
from hwnas.kernels import mixed_sum, mixed_sum_reference, native
from hwnas.kernels.mixed_sum import unsupported_reason

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-13}

Operation = Callable[[Tensor, list[Tensor]], Tensor]


def spread(w: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
    """The same function with the signature that gradcheck wants."""
    return mixed_sum(w, tensors)


def truth(w: Tensor, xs: list[Tensor], grad: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output and gradients in float64, by formulas that share no code with the library."""
    w, grad, wide = w.detach().double(), grad.double(), [x.detach().double() for x in xs]
    out = torch.einsum("k,k...->...", w, torch.stack(wide))
    grad_w = torch.einsum("k...,...->k", torch.stack(wide), grad)
    return out, grad_w, [w[k] * grad for k in range(len(xs))]


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1.0))


def arguments(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor]]:
    w = torch.softmax(torch.randn(count, dtype=native.accumulator(dtype)), 0).requires_grad_()
    return w, [torch.randn(shape).to(dtype).requires_grad_() for _ in range(count)]


def check(w: Tensor, xs: list[Tensor], grad: Tensor, operation: Operation = mixed_sum) -> None:
    dtype = xs[0].dtype
    out = operation(w, xs)
    grads = torch.autograd.grad(out, [w, *xs], grad)
    expected, expected_w, expected_x = truth(w, xs, grad)
    assert out.dtype == dtype
    close(out, expected, dtype)
    # Every term of a sum over n elements is rounded once in the data type, never in the accumulator.
    close(grads[0], expected_w, torch.float64 if dtype == torch.float64 else torch.float32)
    for actual, wanted in zip(grads[1:], expected_x, strict=True):
        assert actual.dtype == dtype
        close(actual, wanted, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 65, 7), (2, 3, 128, 67), (70001,)])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_against_float64(isa: str, count: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w, xs = arguments(count, shape, dtype)
    assert unsupported_reason(w, xs) is None
    check(w, xs, torch.randn(shape).to(dtype))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_without_the_quick_look(memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    w, xs = arguments(3, (2, 3, 4, 5))
    ys = [x.detach().to(memory_format=memory_format).requires_grad_() for x in xs]
    grad = torch.randn(2, 3, 4, 5)
    quick = mixed_sum(w, ys)
    # Torch before 2.10 has no interface for it.
    monkeypatch.setattr(native, "LOOKS", False)
    check(w, ys, grad)
    closer = mixed_sum(w, ys)
    assert torch.equal(quick, closer)
    assert quick.stride() == closer.stride()


def test_the_usual_arguments_take_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    w, xs = arguments(3, (2, 3, 4, 5))
    assert native.CPU is not None
    at_once = native.CPU.mixed_sum_of
    found: list[Tensor | None] = []

    def observed(*given: Any) -> Tensor | None:
        found.append(at_once(*given))
        return found[-1]

    monkeypatch.setattr(native.CPU, "mixed_sum_of", observed)
    monkeypatch.setattr(native.CPU, "mixed_sum", None)
    out = mixed_sum(w, xs)
    assert [type(each) for each in found] == [Tensor]
    assert out.requires_grad
    with torch.no_grad():
        assert not mixed_sum(w, xs).requires_grad
    assert not mixed_sum(w.detach(), [x.detach() for x in xs]).requires_grad
    assert mixed_sum(w, [x.detach() for x in xs]).requires_grad
    assert len(found) == 4
    with native.disabled():
        torch.testing.assert_close(mixed_sum(w, xs), out)
    with FlopCounterMode(display=False):
        torch.testing.assert_close(mixed_sum(w, xs), out)
    assert len(found) == 4
    with pytest.raises(ValueError, match="one for each tensor"):
        mixed_sum(w[:2], xs)
    assert found[4:] == [None]


def test_the_binding_that_looks_checks_the_number_of_threads() -> None:
    w, xs = arguments(3, (5,))
    assert native.CPU is not None
    with pytest.raises(ValueError, match="threads is 0"):
        native.CPU.mixed_sum_of(tuple(xs), w, torch.empty_like, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_reference_means_the_same(dtype: torch.dtype) -> None:
    w, xs = arguments(3, (4, 5), dtype)
    check(w, xs, torch.randn(4, 5).to(dtype), mixed_sum_reference)


@pytest.mark.parametrize(
    ("memory_format", "shape"),
    [
        (torch.contiguous_format, (2, 5, 6, 7)),
        (torch.channels_last, (2, 5, 6, 7)),
        (torch.channels_last_3d, (2, 5, 3, 6, 7)),
    ],
)
def test_a_layout_is_kept(memory_format: torch.memory_format, shape: tuple[int, ...]) -> None:
    w, xs = arguments(3, shape)
    ys = [x.detach().to(memory_format=memory_format).requires_grad_() for x in xs]
    check(w, ys, torch.randn(shape))
    out = mixed_sum(w, ys)
    assert out.is_contiguous(memory_format=memory_format)
    (grad,) = torch.autograd.grad(out.sum(), ys[:1])
    assert grad.is_contiguous(memory_format=memory_format)


def test_gradients_lie_as_their_tensors_do() -> None:
    xs = [torch.randn(2, 5, 6, 7).to(memory_format=torch.channels_last).requires_grad_() for _ in range(2)]
    # Only the gradient of the output is looked at here, and it lies in memory in another order.
    grads = torch.autograd.grad(mixed_sum(torch.rand(2), xs), xs, torch.randn(2, 5, 6, 7))
    assert all(grad.is_contiguous(memory_format=torch.channels_last) for grad in grads)


def test_strides_of_every_kind() -> None:
    shape = (2, 4, 6, 8)
    w, (a, b, c, d) = arguments(4, shape)
    xs = [
        a.detach().to(memory_format=torch.channels_last).requires_grad_(),
        b,
        c.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_(),
        torch.randn(4, 1, 8).expand(shape),
    ]
    check(w, [x.detach().requires_grad_() for x in xs], torch.randn(shape))
    check(w, [x.detach().requires_grad_() for x in reversed(xs)], torch.randn(shape))
    check(w, [a, b, c, d[:, :, ::1]], torch.randn(shape).to(memory_format=torch.channels_last))


def test_an_expanded_gradient() -> None:
    w, xs = arguments(3, (4, 50))
    check(w, xs, torch.tensor(0.5).expand(4, 50))
    check(w, xs, torch.randn(4, 1).expand(4, 50))


@pytest.mark.parametrize("wanted", ["weights", "tensors", "second", "none"])
def test_only_the_gradients_that_are_wanted(wanted: str) -> None:
    w, xs = arguments(3, (40, 50))
    if wanted in ("tensors", "second", "none"):
        w = w.detach()
    for k, x in enumerate(xs):
        x.requires_grad_(wanted == "tensors" or (wanted == "second" and k == 1))
    out = mixed_sum(w, xs)
    grad = torch.randn(40, 50)
    _, expected_w, expected_x = truth(w, xs, grad)
    assert out.requires_grad == (wanted != "none")
    if out.requires_grad:
        out.backward(grad)
    if wanted == "weights":
        assert w.grad is not None
        close(w.grad, expected_w, torch.float32)
    else:
        assert w.grad is None
    for k, x in enumerate(xs):
        if x.requires_grad:
            assert x.grad is not None
            close(x.grad, expected_x[k], torch.float32)
        else:
            assert x.grad is None


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_another_type(weight_dtype: torch.dtype) -> None:
    _, xs = arguments(3, (7, 9))
    w = torch.rand(3).to(weight_dtype).requires_grad_()
    out = mixed_sum(w, xs)
    grad_w, *_ = torch.autograd.grad(out, [w, *xs], torch.ones(7, 9))
    expected, expected_w, _ = truth(w, xs, torch.ones(7, 9))
    close(out, expected, torch.float32)
    assert grad_w.dtype == weight_dtype
    close(grad_w, expected_w, torch.bfloat16 if weight_dtype == torch.bfloat16 else torch.float32)


def test_weights_that_are_not_contiguous() -> None:
    table = torch.rand(3, 4, requires_grad=True)
    _, xs = arguments(3, (7, 9))
    out = mixed_sum(table[:, 1], xs)
    (grad,) = torch.autograd.grad(out, [table], torch.ones(7, 9))
    expected, expected_w, _ = truth(table[:, 1], xs, torch.ones(7, 9))
    close(out, expected, torch.float32)
    close(grad[:, 1], expected_w, torch.float32)
    assert grad[:, [0, 2, 3]].abs().max() == 0


def test_types_are_promoted() -> None:
    w, (a, b) = arguments(2, (7, 9))
    reason = unsupported_reason(w, [a, b.bfloat16()])
    assert reason is not None
    assert "types" in reason
    out = mixed_sum(w, [a.bfloat16(), b])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, w[0] * a.bfloat16().float() + w[1] * b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite_propagate(isa: str, dtype: torch.dtype) -> None:
    values = torch.tensor([float("inf"), float("-inf"), float("nan"), 3e38, -0.0, 1e-40] * 20)
    xs = [values.to(dtype), torch.ones(120, dtype=dtype)]
    w = torch.tensor([1.0, 0.25])
    torch.testing.assert_close(mixed_sum(w, xs), mixed_sum_reference(w, xs), equal_nan=True, rtol=0, atol=0)
    zero = mixed_sum(torch.tensor([0.0, 1.0]), xs)
    assert zero[:3].isnan().all()


def test_bfloat16_is_rounded_as_torch_does(isa: str) -> None:
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    every = bits.view(torch.bfloat16)
    every = every[every.isfinite()]
    # Times 1 + 2**-8 an odd mantissa falls halfway between two values.
    for weight in (1.0, 1.00390625, 0.7):
        w = torch.tensor([weight])
        expected = (every.float() * weight).bfloat16()
        torch.testing.assert_close(mixed_sum(w, [every]), expected, rtol=0, atol=0)


def test_gradcheck_of_first_and_second_order() -> None:
    w = torch.rand(2, dtype=torch.float64, requires_grad=True)
    xs = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda w, *xs: mixed_sum(w, xs), (w, *xs))
    assert torch.autograd.gradgradcheck(lambda w, *xs: mixed_sum(w, xs), (w, *xs))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_create_graph_gives_the_same_gradients(memory_format: torch.memory_format) -> None:
    w, xs = arguments(3, (2, 3, 4, 5))
    ys = [x.detach().to(memory_format=memory_format).requires_grad_() for x in xs]
    grad = torch.randn(2, 3, 4, 5)
    with_graph = torch.autograd.grad(mixed_sum(w, ys), [w, *ys], grad, create_graph=True)
    without = torch.autograd.grad(mixed_sum(w, ys), [w, *ys], grad)
    for a, b in zip(with_graph, without, strict=True):
        torch.testing.assert_close(a, b)
        assert a.stride() == b.stride()


def test_gradients_do_not_depend_on_the_number_of_threads() -> None:
    w, xs = arguments(3, (5, 40_007))
    grad = torch.randn(5, 40_007)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = mixed_sum(w, xs)
            results.append((out, *torch.autograd.grad(out, [w, *xs], grad)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_a_tensor_that_changed_after_the_forward_pass_is_noticed() -> None:
    w, xs = arguments(2, (3,))
    ys = [x * 1 for x in xs]
    out = mixed_sum(w, ys)
    with torch.no_grad():
        ys[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_one_tensor_twice() -> None:
    w, (x,) = torch.tensor([0.25, 0.5], requires_grad=True), [torch.randn(9, requires_grad=True)]
    out = mixed_sum(w, [x, x])
    grad_w, grad_x = torch.autograd.grad(out.sum(), [w, x])
    torch.testing.assert_close(out, 0.75 * x)
    torch.testing.assert_close(grad_x, torch.full((9,), 0.75))
    torch.testing.assert_close(grad_w, x.sum().detach().expand(2))


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3)])
def test_empty_tensors(shape: tuple[int, ...]) -> None:
    w, xs = arguments(3, shape)
    out = mixed_sum(w, xs)
    assert out.shape == shape
    grads = torch.autograd.grad(out.sum(), [w, *xs])
    assert grads[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("w", "xs", "error", "message"),
    [
        (torch.rand(0), [], ValueError, "tensors is empty"),
        (torch.rand(3), [torch.rand(2)] * 2, ValueError, r"weights has shape \(3,\), expected \(2,\)"),
        (torch.rand(2, 1), [torch.rand(2)] * 2, ValueError, r"weights has shape \(2, 1\)"),
        (torch.rand(2), [torch.rand(2), torch.rand(3)], ValueError, r"tensors\[1\] has shape \(3,\)"),
        (torch.rand(2), [torch.rand(2), torch.rand(1, 2)], ValueError, r"tensors\[1\] has shape \(1, 2\)"),
        (
            torch.rand(2),
            [torch.rand(2), torch.ones(2).int()],
            UnsupportedError,
            r"tensors\[1\] is torch.int32",
        ),
        (torch.ones(2).long(), [torch.rand(2)] * 2, UnsupportedError, "weights is torch.int64"),
        (torch.rand(2), [torch.rand(2), 1.0], UnsupportedError, r"tensors\[1\] is a float"),
        ([0.5, 0.5], [torch.rand(2)] * 2, UnsupportedError, "weights is a list"),
        (
            torch.rand(2),
            [torch.rand(2), torch.rand(2, device="meta")],
            ValueError,
            r"tensors\[1\] is on meta and tensors\[0\] on cpu",
        ),
        (torch.rand(2, device="meta"), [torch.rand(2)] * 2, ValueError, "weights is on meta"),
    ],
)
def test_errors_name_the_argument(w: Tensor, xs: list[Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mixed_sum(w, xs)


class Subclass(Tensor):
    pass


def test_what_the_kernel_cannot_take_runs_in_plain_pytorch() -> None:
    w, xs = torch.rand(2), [torch.rand(3, 4), torch.rand(3, 4)]
    cases = {
        "float16": [x.half() for x in xs],
        "Subclass": [xs[0].as_subclass(Subclass), xs[1]],
        "negated": [torch._neg_view(xs[0]), xs[1]],
        "meta": [x.to("meta") for x in xs],
    }
    for word, tensors in cases.items():
        weights = w.to(tensors[0].device)
        reason = unsupported_reason(weights, tensors)
        assert reason is not None
        assert word in reason
        out = mixed_sum(weights, tensors)
        if out.device.type == "cpu":
            torch.testing.assert_close(out, mixed_sum_reference(w, tensors))


def test_torch_func() -> None:
    w, xs = torch.rand(2), [torch.rand(3), torch.rand(3)]
    torch.testing.assert_close(torch.func.grad(lambda w: mixed_sum(w, xs).sum())(w), torch.stack([x.sum() for x in xs]))
    batch = torch.rand(5, 2)
    torch.testing.assert_close(torch.vmap(lambda w: mixed_sum(w, xs))(batch), batch @ torch.stack(xs))
    value, tangent = torch.func.jvp(lambda w: mixed_sum(w, xs), (w,), (torch.tensor([1.0, 0.0]),))
    torch.testing.assert_close(value, w @ torch.stack(xs))
    torch.testing.assert_close(tangent, xs[0])


def test_forward_mode() -> None:
    w, xs = torch.rand(2), [torch.rand(3), torch.rand(3)]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(w, torch.tensor([0.0, 1.0]))
        tangent = torch.autograd.forward_ad.unpack_dual(mixed_sum(dual, xs)).tangent
    torch.testing.assert_close(tangent, xs[1])


def test_symbolic_shapes() -> None:
    shapes = ShapeEnv()
    with FakeTensorMode(shape_env=shapes):
        channels = shapes.create_unspecified_symint_and_symbol(16, ConstantSource("channels"), DimDynamic.DYNAMIC)
        xs = [torch.empty(2, channels, 8, 8) for _ in range(3)]
        out = mixed_sum(torch.empty(3), xs)
        assert out.shape == (2, channels, 8, 8)
        out = torch.ops.hwnas.mixed_sum(torch.empty(3), xs)
        assert out.shape == (2, channels, 8, 8)
    assert isinstance(channels, torch.SymInt)


def test_opcheck() -> None:
    w, xs = arguments(2, (2, 3, 4, 5))
    torch.library.opcheck(torch.ops.hwnas.mixed_sum.default, (w, xs))
    last = [x.detach().to(memory_format=torch.channels_last) for x in xs]
    torch.library.opcheck(torch.ops.hwnas.mixed_sum.default, (w, last))
    for need_weights, need_tensors in ((True, [True, False]), (False, [True, True]), (True, [False, False])):
        torch.library.opcheck(
            torch.ops.hwnas.mixed_sum_backward.default,
            (torch.randn(2, 3, 4, 5), w.detach(), last, need_weights, need_tensors, 1),
        )


@pytest.mark.slow
def test_compiled_in_one_graph() -> None:
    def mix(alpha: Tensor, xs: list[Tensor]) -> Tensor:
        return mixed_sum(torch.softmax(alpha, 0), xs).relu()

    # The backend keeps the graph as it was captured and needs no C++ compiler.
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    alpha, xs = arguments(2, (2, 3, 4, 5))
    expected, actual = mix(alpha, xs), compiled(alpha, xs)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(
        torch.autograd.grad(actual.sum(), [alpha, *xs]),
        torch.autograd.grad(expected.sum(), [alpha, *xs]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_an_exported_program_knows_only_pytorch() -> None:
    class Mix(torch.nn.Module):
        def forward(self, w: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return mixed_sum(w, [a, b])

    program = torch.export.export(Mix(), (torch.rand(2), torch.rand(3), torch.rand(3)))
    assert not any("hwnas" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": 9}, "dtype is 9"),
        ({"weights": 0}, "weights is a null address"),
        ({"weights": 2}, "weights is not aligned to 4 bytes"),
        ({"tensors": []}, "tensors is empty"),
        ({"tensors": [64, 0]}, r"tensors\[1\] is a null address"),
        ({"tensors": [64, 66]}, r"tensors\[1\] is not aligned"),
        ({"out": 0}, "out is a null address"),
        ({"size": 0}, "size is 0"),
        ({"size": -1}, "size is -1"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_the_binding_checks_what_it_is_given(change: dict[str, object], message: str) -> None:
    good = {"dtype": 0, "weights": 64, "tensors": [64, 64], "out": 64, "size": 1, "threads": 1}
    assert native.CPU is not None
    with pytest.raises(ValueError, match=message):
        native.CPU.mixed_sum(**good | change)
    if "out" not in change:
        more = {"grad": 64, "grad_tensors": change.get("tensors", [64, 64]), "grad_weights": 64}
        backward = {k: v for k, v in (good | change | more).items() if k != "out"}
        with pytest.raises(ValueError, match=message):
            native.CPU.mixed_sum_backward(**backward)
