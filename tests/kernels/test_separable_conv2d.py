from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from hwnas.errors import UnsupportedError
from hwnas.kernels import native
from hwnas.kernels.separable_conv2d import separable_conv2d, separable_conv2d_reference, unsupported_reason

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LAYOUTS = pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())

# Kernel, stride, padding, dilation.
OPTIONS: dict[str, tuple[Any, Any, Any, Any]] = {
    "3": (3, 1, 1, 1),
    "5, dilated": (5, 1, 4, 2),
    "5, stride 2": (5, 2, 2, 1),
    "3, dilated by its stride": (3, 2, 2, 2),
    "rectangular": ((1, 7), (1, 2), (0, 3), 1),
    "even": ((4, 2), (3, 2), (5, 0), (1, 3)),
    "point, stride 3": (1, 3, 0, 1),
    "wide padding": ((3, 3), 1, (0, 5), 1),
    "13 taps in a row": ((2, 13), (2, 1), (1, 6), (2, 1)),
}
# Images and channels of the output: fewer and more than a vector has lanes, whole vectors, several groups of them.
SHAPES = [((1, 1, 13, 14), 1), ((2, 5, 8, 14), 16), ((3, 20, 11, 33), 7), ((40, 3, 9, 14), 32), ((2, 70, 14, 16), 67)]


def truth(tensors: tuple[Tensor, ...], grad: Tensor, options: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients in float64, by patches."""
    x, depthwise, pointwise = (tensor.detach().double() for tensor in tensors)
    options = dict(options)
    closed = x <= 0 if options.pop("pre_relu", False) else torch.zeros_like(x, dtype=torch.bool)
    channels, size = x.shape[1], depthwise.shape[2:]
    kernels, mix = depthwise.flatten(1), pointwise.flatten(1)
    patches = F.unfold(x.masked_fill(closed, 0), size, **options).unflatten(1, (channels, -1))
    between = torch.einsum("nckl,ck->ncl", patches, kernels)
    g = grad.double().flatten(2)
    out = torch.einsum("ncl,dc->ndl", between, mix).unflatten(2, grad.shape[2:])
    grad_between = torch.einsum("ndl,dc->ncl", g, mix)
    folded = torch.einsum("ncl,ck->nckl", grad_between, kernels).flatten(1, 2)
    return out, [
        F.fold(folded, x.shape[2:], size, **options).masked_fill(closed, 0),
        torch.einsum("nckl,ncl->ck", patches, grad_between).reshape(depthwise.shape),
        torch.einsum("ndl,ncl->dc", g, between).reshape(pointwise.shape),
    ]


def close(actual: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5 * max(scale, 1.0))


def arguments(
    shape: tuple[int, int, int, int] = (2, 5, 8, 14),
    outputs: int = 7,
    kernel: Any = 3,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return leaves: the images and both weights."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    depthwise, pointwise = torch.randn(shape[1], 1, height, width), torch.randn(outputs, shape[1], 1, 1)
    return x.requires_grad_(), depthwise.requires_grad_(), pointwise.requires_grad_()


def check(
    leaves: tuple[Tensor, ...],
    operation: Callable[..., Tensor] = separable_conv2d,
    memory_format: torch.memory_format = torch.contiguous_format,
    **options: Any,
) -> None:
    options = {"stride": 1, "padding": 0, "dilation": 1} | options
    out = operation(*leaves, **options)
    grad = torch.randn(out.shape).contiguous(memory_format=memory_format)
    expected, expected_grads = truth(leaves, grad, options)
    close(out, expected)
    for actual, leaf, wanted in zip(torch.autograd.grad(out, leaves, grad), leaves, expected_grads, strict=True):
        assert (actual.dtype, actual.shape) == (leaf.dtype, leaf.shape)
        close(actual, wanted)


@LAYOUTS
@pytest.mark.parametrize("name", OPTIONS)
def test_against_float64(isa: str, name: str, memory_format: torch.memory_format) -> None:
    kernel, stride, padding, dilation = OPTIONS[name]
    for number, (shape, outputs) in enumerate(SHAPES):
        leaves = arguments(shape, outputs, kernel, memory_format)
        options = {"stride": stride, "padding": padding, "dilation": dilation, "pre_relu": number % 2 == 0}
        assert unsupported_reason(*leaves, **options) is None
        check(leaves, memory_format=memory_format, **options)


@LAYOUTS
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 3)])
def test_images_that_are_worked_on_in_bands(
    isa: str, stride: int, dilation: int, memory_format: torch.memory_format
) -> None:
    leaves = arguments((2, 18, 60, 151), 9, 5, memory_format)
    check(leaves, stride=stride, padding=2, dilation=dilation, pre_relu=True)


@LAYOUTS
@pytest.mark.parametrize("shape", [(3, 21, 2, 3), (19, 3, 1, 1), (5, 33, 7, 7), (2, 64, 8, 8)], ids=str)
def test_small_images_with_large_kernels(
    isa: str, shape: tuple[int, int, int, int], memory_format: torch.memory_format
) -> None:
    for kernel, stride, padding, dilation in ((7, 1, 3, 1), (5, 1, 4, 2), (5, 2, 2, 1), (3, 3, 4, 4)):
        leaves = arguments(shape, 48, kernel, memory_format)
        check(leaves, stride=stride, padding=padding, dilation=dilation, pre_relu=kernel < 7)


@LAYOUTS
def test_one_call_leaves_nothing_behind_for_the_next(memory_format: torch.memory_format) -> None:
    # Memory is used again: what a larger image left there is not padding of a smaller one.
    for size in (40, 5, 21):
        check(arguments((2, 9, size, size), 9, 5, memory_format), padding=3, pre_relu=True)


def test_the_reference_means_the_same() -> None:
    for pre_relu in (False, True):
        check(arguments(), separable_conv2d_reference, padding=1, pre_relu=pre_relu)


@LAYOUTS
def test_a_layout_is_kept(memory_format: torch.memory_format) -> None:
    for size in (8, 40):
        x, *weights = arguments((2, 5, size, size), 7, 5, memory_format)
        out = separable_conv2d(x, *weights, padding=2)
        assert out.is_contiguous(memory_format=memory_format)
        (grad,) = torch.autograd.grad(out.sum(), [x])
        assert grad.is_contiguous(memory_format=memory_format)


def test_strides_of_every_kind() -> None:
    x, depthwise, pointwise = (leaf.detach() for leaf in arguments())
    odd = x.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    turned = depthwise.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    mixed = pointwise.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    check((odd, turned, mixed), padding=1, pre_relu=True)


@LAYOUTS
def test_gradients_of_other_strides(memory_format: torch.memory_format) -> None:
    leaves = arguments(memory_format=memory_format)
    options: dict[str, Any] = {"stride": 1, "padding": 1, "dilation": 1}
    out = separable_conv2d(*leaves, **options)
    for grad in (
        torch.tensor(0.5).expand(out.shape),
        torch.randn(2, 1, 8, 1).expand(out.shape),
        torch.randn(out.shape),
        torch.randn(out.shape).contiguous(memory_format=torch.channels_last),
        torch._neg_view(torch.randn(out.shape)),
    ):
        actual = torch.autograd.grad(out, leaves, grad, retain_graph=True)
        _, expected = truth(leaves, grad, options)
        for a, b in zip(actual, expected, strict=True):
            close(a, b)


@pytest.mark.parametrize("pre_relu", [False, True])
@pytest.mark.parametrize("wanted", [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_only_the_gradients_that_are_wanted(wanted: tuple[int, ...], pre_relu: bool) -> None:
    for memory_format in FORMATS.values():
        leaves = arguments((2, 20, 8, 14), 18, memory_format=memory_format)
        for k, leaf in enumerate(leaves):
            leaf.requires_grad_(k in wanted)
        options: dict[str, Any] = {"stride": 1, "padding": 1, "dilation": 1, "pre_relu": pre_relu}
        out = separable_conv2d(*leaves, **options)
        assert out.requires_grad == bool(wanted)
        grad = torch.randn(out.shape)
        expected_out, expected = truth(leaves, grad, options)
        close(out, expected_out)
        if wanted:
            out.backward(grad)
        for k, leaf in enumerate(leaves):
            assert (leaf.grad is not None) == (k in wanted)
            if leaf.grad is not None:
                close(leaf.grad, expected[k])


def test_only_the_input_is_kept() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    leaves = arguments()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        separable_conv2d(*leaves, padding=1, pre_relu=True)
    assert [tensor.data_ptr() for tensor in kept] == [leaf.data_ptr() for leaf in leaves]


@LAYOUTS
def test_results_do_not_depend_on_the_number_of_threads(isa: str, memory_format: torch.memory_format) -> None:
    for shape in ((37, 24, 17, 18), (1, 20, 160, 160)):  # several images a piece, and bands of one image
        leaves = arguments(shape, 20, 5, memory_format)
        grad = torch.randn(shape[0], 20, *shape[2:])
        results = []
        before = torch.get_num_threads()
        try:
            for threads in (1, 2, 3, 1):
                torch.set_num_threads(threads)
                out = separable_conv2d(*leaves, padding=4, dilation=2, pre_relu=True)
                results.append((out, *torch.autograd.grad(out, leaves, grad)))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b)


@LAYOUTS
def test_values_that_are_not_finite_stay_in_their_place(isa: str, memory_format: torch.memory_format) -> None:
    x, depthwise, pointwise = arguments((2, 20, 9, 10), 18, memory_format=memory_format)
    with torch.no_grad():
        x[0, 1, 4, 4], x[1, 2, 0, 9], x[0, 3, 8, 0] = float("nan"), float("inf"), -float("inf")
    for pre_relu in (False, True):
        options: dict[str, Any] = {"padding": 1, "pre_relu": pre_relu}
        out = separable_conv2d(x, depthwise, pointwise, **options)
        expected = separable_conv2d_reference(x, depthwise, pointwise, **options)
        assert torch.equal(out.isfinite(), expected.isfinite())
        assert torch.equal(out.isnan(), expected.isnan())
        grad, grad_depthwise = torch.autograd.grad(out.sum(), [x, depthwise])
        wanted, wanted_depthwise = torch.autograd.grad(expected.sum(), [x, depthwise])
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-4)
        # Those of other channels, which share vectors with these.
        torch.testing.assert_close(grad_depthwise[4:20], wanted_depthwise[4:20], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("pre_relu", [False, True])
def test_gradcheck_of_first_and_second_order(pre_relu: bool) -> None:
    leaves = [leaf.detach().double().requires_grad_() for leaf in arguments((2, 2, 4, 5), 3, 2)]

    def operation(*leaves: Tensor) -> Tensor:
        return separable_conv2d(*leaves, stride=(1, 2), padding=1, dilation=2, pre_relu=pre_relu)

    assert torch.autograd.gradcheck(operation, leaves)
    assert torch.autograd.gradgradcheck(operation, leaves)


@LAYOUTS
@pytest.mark.parametrize("pre_relu", [False, True])
def test_gradients_of_gradients(memory_format: torch.memory_format, pre_relu: bool) -> None:
    leaves = arguments(memory_format=memory_format)
    grad = torch.randn(2, 7, 8, 14)
    options: dict[str, Any] = {"padding": 1, "pre_relu": pre_relu}
    found = []
    for operation in (separable_conv2d, separable_conv2d_reference):
        out = operation(*leaves, **options)
        first = torch.autograd.grad(out, leaves, grad, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found.append([g.detach() for g in (*first, *second)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-4)
    assert found[0][0].is_contiguous(memory_format=memory_format)


def test_an_image_that_changed_after_the_forward_pass_is_noticed() -> None:
    x, *weights = arguments()
    y = x * 1
    out = separable_conv2d(y, *weights)
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_an_empty_batch() -> None:
    _, *weights = arguments()
    x = torch.randn(0, 5, 8, 14, requires_grad=True)
    out = separable_conv2d(x, *weights, padding=2)
    assert out.shape == (0, 7, 10, 16)
    grads = torch.autograd.grad(out.sum(), [x, *weights])
    assert [grad.abs().sum().item() for grad in grads] == [0, 0, 0]


def test_images_without_a_batch() -> None:
    x, *weights = arguments()
    alone, batch = separable_conv2d(x[0], *weights, pre_relu=True), separable_conv2d(x[:1], *weights, pre_relu=True)
    torch.testing.assert_close(alone, batch[0])


def test_autocast_casts_as_conv2d_does() -> None:
    leaves = arguments()
    x, depthwise, pointwise = leaves
    with torch.autocast("cpu", torch.bfloat16):
        reason = unsupported_reason(*leaves)
        out = separable_conv2d(*leaves, padding=1, pre_relu=True)
        expected = F.conv2d(F.conv2d(x.relu(), depthwise, padding=1, groups=5), pointwise)
    assert reason is not None
    assert "autocast" in reason
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, atol=0.2, rtol=0.05)
    assert {grad.dtype for grad in torch.autograd.grad(out.sum(), leaves)} == {torch.float32}


def images(*shape: int) -> Tensor:
    return torch.rand(shape)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, UnsupportedError, "x is a list"),
        ({"x": torch.ones(1, 2, 4, 4).long()}, UnsupportedError, "x is torch.int64"),
        ({"depthwise": None}, UnsupportedError, "depthwise is a NoneType"),
        ({"pointwise": 1.0}, UnsupportedError, "pointwise is a float"),
        ({"x": images(2, 2)}, ValueError, r"x has shape \(2, 2\)"),
        ({"depthwise": images(2, 2, 3, 3)}, ValueError, r"depthwise has shape \(2, 2, 3, 3\), expected \(2, 1,"),
        ({"depthwise": images(3, 1, 3, 3)}, ValueError, r"depthwise has shape \(3, 1, 3, 3\)"),
        ({"depthwise": images(2, 1, 3)}, ValueError, r"depthwise has shape \(2, 1, 3\)"),
        ({"pointwise": images(4, 3, 1, 1)}, ValueError, r"pointwise has shape \(4, 3, 1, 1\)"),
        ({"pointwise": images(4, 2, 1, 2)}, ValueError, r"pointwise has shape \(4, 2, 1, 2\)"),
        ({"pointwise": images(4, 2)}, ValueError, r"pointwise has shape \(4, 2\)"),
        ({"stride": (1, 0)}, ValueError, r"stride is \(1, 0\)"),
        ({"padding": -1}, ValueError, "padding is -1"),
        ({"padding": "same"}, ValueError, "padding is 'same'"),
        ({"dilation": (1, 2, 3)}, ValueError, r"dilation is \(1, 2, 3\)"),
        ({"x": images(1, 2, 2, 2)}, RuntimeError, "Kernel size can't be greater"),
        ({"depthwise": images(2, 1, 3, 3).double()}, RuntimeError, "type"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {
        "x": images(1, 2, 4, 4),
        "depthwise": images(2, 1, 3, 3),
        "pointwise": images(4, 2, 1, 1),
    }
    with pytest.raises(error, match=message):
        separable_conv2d(**good | change)


class Subclass(Tensor):
    pass


def test_what_the_kernel_cannot_take_runs_as_two_convolutions() -> None:
    x, depthwise, pointwise = (leaf.detach() for leaf in arguments())
    cases = {
        "float64": (x.double(), depthwise.double(), pointwise.double()),
        "bfloat16": (x.bfloat16(), depthwise.bfloat16(), pointwise.bfloat16()),
        "Subclass": (x.as_subclass(Subclass), depthwise, pointwise),
        "negated": (x, depthwise, torch._neg_view(pointwise)),
        "dimensions": (x[0], depthwise, pointwise),
        "type 'meta'": (x.to("meta"), depthwise.to("meta"), pointwise.to("meta")),
        "device": (x, depthwise, pointwise.to("meta")),
        "larger": (x[:, :, :2], depthwise, pointwise),
        "no channels": (x, depthwise, pointwise[:0]),
    }
    for word, tensors in cases.items():
        reason = unsupported_reason(*tensors)
        assert reason is not None
        assert word in reason
        if word not in ("device", "larger", "no channels"):  # errors of PyTorch
            out, expected = separable_conv2d(*tensors), separable_conv2d_reference(*tensors)
            assert out.shape == expected.shape
            if out.device.type == "cpu":
                tolerance = 0.1 if word == "bfloat16" else 1e-4
                torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)


def test_kernels_that_are_switched_off() -> None:
    leaves = arguments()
    with native.disabled():
        reason = unsupported_reason(*leaves)
        off = separable_conv2d(*leaves, padding=1)
        assert off.grad_fn is not None
        assert off.grad_fn.name() == "ConvolutionBackward0"
    assert reason is not None
    on = separable_conv2d(*leaves, padding=1)
    assert on.grad_fn is not None
    assert on.grad_fn.name() == "_SeparableConv2dBackward"
    torch.testing.assert_close(on, off, atol=1e-4, rtol=1e-4)


def test_the_backward_pass_follows_when_kernels_are_switched_off_in_between() -> None:
    leaves = arguments()
    out = separable_conv2d(*leaves, padding=1, pre_relu=True)
    grad = torch.randn_like(out)
    with native.disabled():
        off = torch.autograd.grad(out, leaves, grad, retain_graph=True)
    for a, b in zip(off, torch.autograd.grad(out, leaves, grad), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_torch_func() -> None:
    x, depthwise, pointwise = (leaf.detach() for leaf in arguments())
    expected = torch.autograd.functional.jacobian(
        lambda w: separable_conv2d_reference(x, w, pointwise).sum(), depthwise
    )
    found = torch.func.grad(lambda w: separable_conv2d(x, w, pointwise).sum())(depthwise)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    _, tangent = torch.func.jvp(lambda x: separable_conv2d(x, depthwise, pointwise), (x,), (x,))
    torch.testing.assert_close(tangent, separable_conv2d_reference(x, depthwise, pointwise), atol=1e-4, rtol=1e-4)


def test_forward_mode() -> None:
    x, depthwise, pointwise = (leaf.detach() for leaf in arguments())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(pointwise, pointwise)
        tangent = torch.autograd.forward_ad.unpack_dual(separable_conv2d(x, depthwise, dual)).tangent
    torch.testing.assert_close(tangent, separable_conv2d_reference(x, depthwise, pointwise))


def test_fake_tensors() -> None:
    with FakeTensorMode():
        tensors = torch.empty(2, 5, 8, 14), torch.empty(5, 1, 3, 3), torch.empty(9, 5, 1, 1)
        assert separable_conv2d(*tensors, stride=2, padding=1).shape == (2, 9, 4, 7)


@LAYOUTS
def test_opcheck(memory_format: torch.memory_format) -> None:
    leaves = arguments(memory_format=memory_format)
    options = ([2, 1], [1, 1], [1, 2], True)
    torch.library.opcheck(torch.ops.hwnas.separable_conv2d.default, (*leaves, *options))
    tensors = [leaf.detach() for leaf in leaves]
    grad = torch.randn_like(torch.ops.hwnas.separable_conv2d(*tensors, *options))
    for wanted in ([True, True, True], [False, True, False]):
        torch.library.opcheck(torch.ops.hwnas.separable_conv2d_backward.default, (grad, *tensors, wanted, *options))


@pytest.mark.slow
@LAYOUTS
def test_compiled_in_one_graph(memory_format: torch.memory_format) -> None:
    def run(*leaves: Tensor) -> Tensor:
        return separable_conv2d(*leaves, padding=1, pre_relu=True) * 2

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    leaves = arguments(memory_format=memory_format)
    expected, actual = run(*leaves), compiled(*leaves)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(
        torch.autograd.grad(actual.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_an_exported_program_knows_only_pytorch() -> None:
    class Convolve(torch.nn.Module):
        def forward(self, x: Tensor, depthwise: Tensor, pointwise: Tensor) -> Tensor:
            return separable_conv2d(x, depthwise, pointwise, pre_relu=True)

    program = torch.export.export(Convolve(), (images(1, 2, 5, 5), images(2, 1, 3, 3), images(3, 2, 1, 1)))
    assert not any("hwnas" in str(node.target) for node in program.graph.nodes)


GOOD: tuple[Any, ...] = (0, False, False, (1, 2, 4, 4), (2, 3, 3), (3, 3), (1, 1), (0, 0), (1, 1))


def changed(place: int, value: Any) -> tuple[Any, ...]:
    return (*GOOD[:place], value, *GOOD[place + 1 :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arguments": changed(0, 9)}, "dtype is 9"),
        ({"arguments": changed(0, 2)}, "dtype is not 0"),
        ({"arguments": changed(3, (1, 0, 4, 4))}, r"size\[1\] is 0"),
        ({"arguments": changed(3, (1, 2, 4, 2))}, "larger than the padded image in dimension 3"),
        ({"arguments": changed(5, (3, 1))}, "kernel is only a part"),
        ({"arguments": changed(5, (1, 3))}, "kernel is only a part"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"x": 0}, "x is a null address"),
        ({"depthwise": 2}, "depthwise is not aligned to 4 bytes"),
        ({"pointwise": 0}, "pointwise is a null address"),
        ({"y": 0}, "y is a null address"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_the_binding_checks_what_it_is_given(change: dict[str, Any], message: str) -> None:
    shared = {"arguments": GOOD, "out_channels": 3, "x": 64, "depthwise": 64, "pointwise": 64, "threads": 1}
    assert native.CPU is not None
    with pytest.raises(ValueError, match=f"separable_conv2d: .*{message}"):
        native.CPU.separable_conv2d(**shared | {"y": 64} | change)
    if "y" in change:
        return
    gradients = {"grad": 64, "grad_x": 64, "grad_depthwise": 64, "grad_pointwise": 64}
    with pytest.raises(ValueError, match=message):
        native.CPU.separable_conv2d_backward(**shared | gradients | change)


@pytest.mark.parametrize("name", ["grad", "grad_x", "grad_depthwise", "grad_pointwise"])
def test_the_binding_checks_gradients(name: str) -> None:
    good: dict[str, Any] = {"arguments": GOOD, "out_channels": 3, "x": 64, "depthwise": 64, "pointwise": 64}
    good |= {"grad": 64, "grad_x": 64, "grad_depthwise": 64, "grad_pointwise": 64, "threads": 1}
    assert native.CPU is not None
    with pytest.raises(ValueError, match=f"{name} is not aligned"):
        native.CPU.separable_conv2d_backward(**good | {name: 66})


def test_a_compiled_module_that_is_older_than_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[separable_conv2d.__module__], "_OLDER", "the compiled module is older")
    leaves = arguments()
    assert unsupported_reason(*leaves) == "the compiled module is older"
    torch.testing.assert_close(separable_conv2d(*leaves), separable_conv2d_reference(*leaves), atol=1e-4, rtol=1e-4)


def test_what_is_remembered_of_an_integer_is_not_taken_for_a_float() -> None:
    x, depthwise, pointwise = torch.rand(1, 2, 6, 6), torch.rand(2, 1, 3, 3), torch.rand(3, 2, 1, 1)
    separable_conv2d(x, depthwise, pointwise, stride=2)
    with pytest.raises(TypeError):
        separable_conv2d(x, depthwise, pointwise, stride=2.0)  # type: ignore[arg-type]
