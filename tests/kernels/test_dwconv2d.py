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
from hwnas.kernels.dwconv2d import dwconv2d, dwconv2d_reference, unsupported_reason

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-13}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

# Kernel, stride, padding, dilation.
module = sys.modules[dwconv2d.__module__]  # the package has a function of its name

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
SHAPES = [(1, 1, 13, 14), (2, 5, 8, 14), (3, 20, 11, 33), (40, 3, 9, 14), (2, 70, 14, 16)]


def truth(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients in float64, by patches."""
    wide, taps = x.detach().double(), weight.detach().double()
    if options.pop("pre_relu", False):
        closed, wide = wide <= 0, wide.clamp(min=0)
    else:
        closed = torch.zeros_like(wide, dtype=torch.bool)
    channels, size = x.shape[1], options.pop("kernel_size", weight.shape[2:])
    size = (size, size) if isinstance(size, int) else size
    corner = [(full - k) // 2 for full, k in zip(weight.shape[2:], size, strict=True)]
    part = (slice(channels), 0, *(slice(c, c + k) for c, k in zip(corner, size, strict=True)))
    kernels = taps[part].reshape(channels, -1)
    patches = F.unfold(wide, size, **options).unflatten(1, (channels, -1))
    start = torch.zeros(channels).double() if bias is None else bias.detach().double()[:channels]
    flat = torch.einsum("nckl,ck->ncl", patches, kernels) + start[:, None]
    pairs = {k: (v, v) if isinstance(v, int) else v for k, v in options.items()}
    height, width = (
        (full + 2 * p - d * (k - 1) - 1) // s + 1
        for full, k, s, p, d in zip(
            x.shape[2:], size, pairs["stride"], pairs["padding"], pairs["dilation"], strict=True
        )
    )
    out = flat.unflatten(2, (height, width))
    if grad is None:
        return out, []
    g = grad.double().flatten(2)
    grad_x = F.fold(torch.einsum("ncl,ck->nckl", g, kernels).flatten(1, 2), x.shape[2:], size, **options)
    grad_weight = torch.zeros_like(taps)
    grad_weight[part] = torch.einsum("nckl,ncl->ck", patches, g).unflatten(1, size)
    grad_bias = torch.zeros(weight.shape[0]).double()
    grad_bias[:channels] = g.sum((0, 2))
    return out, [grad_x.masked_fill(closed, 0), grad_weight, grad_bias]


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1.0))


def arguments(
    shape: tuple[int, int, int, int] = (2, 5, 8, 14),
    kernel: Any = 3,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    larger: tuple[int, int, int] = (3, 3, 2),
) -> tuple[Tensor, Tensor, Tensor]:
    """Return leaves: the images, a weight that is larger than needed, and its bias."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    channels = shape[1] + larger[0]
    x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    weight = torch.randn(channels, 1, height + larger[1], width + larger[2]).to(dtype)
    return x.requires_grad_(), weight.requires_grad_(), torch.randn(channels).to(dtype).requires_grad_()


def check(
    leaves: tuple[Tensor, Tensor, Tensor],
    operation: Callable[..., Tensor] = dwconv2d,
    memory_format: torch.memory_format = torch.contiguous_format,
    **options: Any,
) -> None:
    options = {"stride": 1, "padding": 0, "dilation": 1} | options
    x, _, _ = leaves
    out = operation(*leaves, **options)
    grad = torch.randn(out.shape).to(x.dtype).contiguous(memory_format=memory_format)
    grads = torch.autograd.grad(out, leaves, grad)
    expected, expected_grads = truth(*leaves, grad, dict(options))
    assert out.dtype == x.dtype
    close(out, expected, x.dtype)
    for actual, leaf, wanted in zip(grads, leaves, expected_grads, strict=True):
        assert (actual.dtype, actual.shape) == (leaf.dtype, leaf.shape)
        close(actual, wanted, x.dtype)
        assert bool((actual[wanted == 0] == 0).all())


@pytest.fixture(autouse=True)
def always_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the compiled kernels where PyTorch would be the faster one, too."""
    monkeypatch.setattr(module, "_forward_in_torch", lambda *_: False)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", OPTIONS)
def test_against_float64(isa: str, name: str, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    kernel, stride, padding, dilation = OPTIONS[name]
    for number, shape in enumerate(SHAPES):
        leaves = arguments(shape, kernel, dtype, memory_format)
        options = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        assert unsupported_reason(*leaves, **options) is None
        check(leaves, memory_format=memory_format, pre_relu=number % 2 == 0, **options)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 3)])
def test_images_that_are_worked_on_in_bands(
    isa: str, stride: int, dilation: int, memory_format: torch.memory_format
) -> None:
    leaves = arguments((2, 3, 400, 151), 5, memory_format=memory_format)
    check(leaves, kernel_size=5, stride=stride, padding=2, dilation=dilation, pre_relu=True)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("shape", [(3, 21, 2, 3), (19, 3, 1, 1), (5, 33, 7, 7), (2, 64, 8, 8)], ids=str)
def test_small_images_with_large_kernels(
    isa: str, shape: tuple[int, int, int, int], memory_format: torch.memory_format
) -> None:
    for kernel, stride, padding, dilation in ((7, 1, 3, 1), (5, 1, 4, 2), (5, 2, 2, 1), (3, 3, 4, 4)):
        leaves = arguments(shape, kernel, memory_format=memory_format)
        check(leaves, kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, pre_relu=kernel < 7)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
def test_one_call_leaves_nothing_behind_for_the_next(memory_format: torch.memory_format) -> None:
    # Memory is used again: what a larger image left there is not padding of a smaller one.
    for size in (40, 5, 21):
        check(arguments((2, 9, size, size), 5, memory_format=memory_format), kernel_size=5, padding=3, pre_relu=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_reference_means_the_same(dtype: torch.dtype) -> None:
    for pre_relu in (False, True):
        check(arguments(dtype=dtype), dwconv2d_reference, kernel_size=3, padding=1, pre_relu=pre_relu)


# The shape of the images, and whether the compiled kernel is the faster one, channels last and without a ReLU.
FASTER: dict[str, tuple[tuple[int, int, int, int], bool]] = {
    "many": ((1, 16, 128, 129), False),
    "just not many": ((1, 16, 128, 128), True),
    "few": ((2, 5, 8, 8), True),
}


@pytest.mark.parametrize("pre_relu", [False, True])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", FASTER)
def test_pytorch_does_what_it_is_faster_at(
    name: str, layout: str, pre_relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert native.CPU is not None
    forward = native.CPU.dwconv2d
    calls: list[None] = []
    monkeypatch.setattr(native.CPU, "dwconv2d", lambda *a: calls.append(forward(*a)))
    shape, faster = FASTER[name]
    leaves = arguments(shape, memory_format=FORMATS[layout])
    check(leaves, kernel_size=3, padding=4, pre_relu=pre_relu)
    assert len(calls) == (1 if layout == "contiguous" or pre_relu or faster else 0)
    assert dwconv2d(*leaves, padding=4, pre_relu=pre_relu).is_contiguous(memory_format=FORMATS[layout])


def test_padding_by_name_with_a_stride_is_refused_as_by_conv2d() -> None:
    x, weight, _ = arguments(larger=(0, 0, 0))
    for operation in (dwconv2d, lambda x, w, **given: F.conv2d(x, w, groups=5, **given)):
        with pytest.raises(RuntimeError, match="strided"):
            operation(x, weight, stride=2, padding="same")


def test_options_of_other_kinds_are_not_mistaken_for_known_ones() -> None:
    x, weight, bias = arguments(larger=(0, 0, 0))
    expected = dwconv2d(x, weight, bias, padding=1, stride=2)
    assert torch.equal(dwconv2d(x, weight, bias, padding=[1, 1], stride=[2, 2]), expected)
    assert torch.equal(dwconv2d(x, weight, bias, padding=(1, 1), stride=(2, 2)), expected)
    with pytest.raises(ValueError, match="x has 5 channels"):
        dwconv2d(x, weight[:4], bias[:4], padding=1, stride=2)
    with pytest.raises(ValueError, match="bias has shape"):
        dwconv2d(x, weight, bias[:4], padding=1, stride=2)
    assert dwconv2d(x, weight, None, padding=1, stride=2).shape == expected.shape
    assert dwconv2d(x[0], weight, bias, padding=1, stride=2).shape == expected.shape[1:]


def test_the_whole_weight_by_default() -> None:
    x, weight, _ = arguments(larger=(0, 0, 0))
    torch.testing.assert_close(dwconv2d(x, weight), F.conv2d(x, weight, groups=5))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [3, (2, 4)])
def test_padding_by_name(kernel: Any, padding: str) -> None:
    x, weight, bias = arguments(kernel=kernel, larger=(0, 0, 0))
    expected = F.conv2d(x, weight, bias, padding=padding, dilation=2, groups=5)
    torch.testing.assert_close(dwconv2d(x, weight, bias, padding=padding, dilation=2), expected)
    options: dict[str, Any] = {"padding": padding, "dilation": (1, 1)}
    reason = unsupported_reason(x, weight, **options)
    assert (reason is not None) == (kernel == (2, 4) and padding == "same")


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
def test_a_layout_is_kept(memory_format: torch.memory_format) -> None:
    for size in (8, 40):
        x, weight, _ = arguments((2, 5, size, size), 5, memory_format=memory_format)
        out = dwconv2d(x, weight, kernel_size=5, padding=2)
        assert out.is_contiguous(memory_format=memory_format)
        (grad,) = torch.autograd.grad(out.sum(), [x])
        assert grad.is_contiguous(memory_format=memory_format)


def test_strides_of_every_kind() -> None:
    x, weight, bias = (leaf.detach() for leaf in arguments((2, 5, 8, 14)))
    odd = x.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    turned = weight.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    check((odd, turned, bias.requires_grad_()), kernel_size=3, padding=1, pre_relu=True)
    row = torch.randn(2, 5, 1, 14).expand(2, 5, 8, 14)
    every_second = torch.randn(16)[::2].requires_grad_()
    out = dwconv2d(row, weight, every_second, kernel_size=3, padding=1)
    expected, _ = truth(row, weight, every_second, None, {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1})
    close(out, expected, torch.float32)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
def test_gradients_of_other_strides(memory_format: torch.memory_format) -> None:
    leaves = arguments(memory_format=memory_format)
    options: dict[str, Any] = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}
    out = dwconv2d(*leaves, **options)
    for grad in (
        torch.tensor(0.5).expand(out.shape),
        torch.randn(2, 1, 8, 1).expand(out.shape),
        torch.randn(out.shape),
        torch.randn(out.shape).contiguous(memory_format=torch.channels_last),
    ):
        actual = torch.autograd.grad(out, leaves, grad, retain_graph=True)
        _, expected = truth(*leaves, grad, dict(options))
        for a, b in zip(actual, expected, strict=True):
            close(a, b, torch.float32)


@pytest.mark.parametrize("pre_relu", [False, True])
@pytest.mark.parametrize("wanted", [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_only_the_gradients_that_are_wanted(wanted: tuple[int, ...], pre_relu: bool) -> None:
    leaves = arguments()
    for k, leaf in enumerate(leaves):
        leaf.requires_grad_(k in wanted)
    options: dict[str, Any] = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1, "pre_relu": pre_relu}
    out = dwconv2d(*leaves, **options)
    assert out.requires_grad == bool(wanted)
    grad = torch.randn(out.shape)
    if wanted:
        out.backward(grad)
    _, expected = truth(*leaves, grad, dict(options))
    for k, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (k in wanted)
        if leaf.grad is not None:
            close(leaf.grad, expected[k], torch.float32)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
def test_results_do_not_depend_on_the_number_of_threads(memory_format: torch.memory_format) -> None:
    leaves = arguments((37, 24, 17, 18), 5, memory_format=memory_format)
    grad = torch.randn(37, 24, 17, 18)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            out = dwconv2d(*leaves, kernel_size=5, padding=4, dilation=2, pre_relu=True)
            results.append((out, *torch.autograd.grad(out, leaves, grad)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
def test_values_that_are_not_finite_stay_in_their_place(isa: str, memory_format: torch.memory_format) -> None:
    x, weight, _ = arguments((2, 20, 9, 10), memory_format=memory_format)
    with torch.no_grad():
        x[0, 1, 4, 4], x[1, 2, 0, 9], x[0, 3, 8, 0] = float("nan"), float("inf"), -float("inf")
    for pre_relu in (False, True):
        options: dict[str, Any] = {"kernel_size": 3, "padding": 1, "pre_relu": pre_relu}
        out, expected = dwconv2d(x, weight, **options), dwconv2d_reference(x, weight, **options)
        assert torch.equal(out.isfinite(), expected.isfinite())
        assert torch.equal(out.isnan(), expected.isnan())
        grad, grad_weight = torch.autograd.grad(out.sum(), [x, weight])
        wanted, wanted_weight = torch.autograd.grad(expected.sum(), [x, weight])
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-5)
        # Those of other channels, which share vectors with these.
        torch.testing.assert_close(grad_weight[4:20], wanted_weight[4:20], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pre_relu", [False, True])
def test_gradcheck_of_first_and_second_order(pre_relu: bool) -> None:
    leaves = arguments((2, 2, 4, 5), 2, torch.float64, larger=(1, 1, 1))

    def operation(*leaves: Tensor) -> Tensor:
        return dwconv2d(*leaves, kernel_size=2, stride=(1, 2), padding=1, dilation=2, pre_relu=pre_relu)

    assert torch.autograd.gradcheck(operation, leaves)
    assert torch.autograd.gradgradcheck(operation, leaves)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
def test_create_graph_gives_the_same_gradients(memory_format: torch.memory_format) -> None:
    leaves = arguments(memory_format=memory_format)
    out = dwconv2d(*leaves, kernel_size=3, padding=1, pre_relu=True)
    grad = torch.randn(out.shape)
    with_graph = torch.autograd.grad(out, leaves, grad, create_graph=True)
    without = torch.autograd.grad(out, leaves, grad)
    for a, b in zip(with_graph, without, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert with_graph[0].stride() == without[0].stride()


def test_an_image_that_changed_after_the_forward_pass_is_noticed() -> None:
    x, weight, _ = arguments()
    y = x * 1
    out = dwconv2d(y, weight)
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_nothing_is_written_into_a_gradient_that_is_there() -> None:
    x, weight, _ = arguments()
    weight.grad = torch.ones_like(weight)
    kept = weight.grad
    (grad,) = torch.autograd.grad(dwconv2d(x, weight).sum(), [weight])
    assert weight.grad is kept
    assert bool((kept == 1).all())
    assert grad is not kept


def test_an_empty_batch() -> None:
    _, weight, bias = arguments()
    x = torch.randn(0, 5, 8, 14, requires_grad=True)
    out = dwconv2d(x, weight, bias, padding=2)
    assert out.shape == (0, 5, 7, 14)
    grads = torch.autograd.grad(out.sum(), [x, weight, bias])
    assert [grad.abs().sum().item() for grad in grads] == [0, 0, 0]


def test_images_without_a_batch() -> None:
    x, weight, _ = arguments()
    torch.testing.assert_close(dwconv2d(x[0], weight, pre_relu=True), dwconv2d(x[:1], weight, pre_relu=True)[0])


def test_autocast_casts_as_conv2d_does() -> None:
    x, weight, bias = arguments(larger=(0, 0, 0))
    with torch.autocast("cpu", torch.bfloat16):
        out = dwconv2d(x, weight, bias, padding=1, pre_relu=True)
        expected = F.conv2d(x.relu(), weight, bias, padding=1, groups=5)
        wide = dwconv2d(x.double(), weight.double(), bias.double())
    assert out.dtype == expected.dtype == torch.bfloat16
    assert wide.dtype == torch.float64
    torch.testing.assert_close(out, expected, atol=0.1, rtol=0.02)
    grads = torch.autograd.grad(out.sum(), [x, weight, bias])
    assert {grad.dtype for grad in grads} == {torch.float32}


def images(*shape: int) -> Tensor:
    return torch.rand(shape)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, UnsupportedError, "x is a list"),
        ({"x": torch.ones(1, 2, 4, 4).long()}, UnsupportedError, "x is torch.int64"),
        ({"weight": None}, UnsupportedError, "weight is a NoneType"),
        ({"bias": 1.0}, UnsupportedError, "bias is a float"),
        ({"x": images(2, 2)}, ValueError, r"x has shape \(2, 2\)"),
        ({"weight": images(2, 2, 3, 3)}, ValueError, r"weight has shape \(2, 2, 3, 3\)"),
        ({"weight": images(2, 3)}, ValueError, r"weight has shape \(2, 3\)"),
        ({"x": images(1, 3, 4, 4)}, ValueError, "x has 3 channels, weight has kernels for 2"),
        ({"bias": images(3)}, ValueError, r"bias has shape \(3,\), expected \(2,\)"),
        ({"kernel_size": 4}, ValueError, r"kernel_size is \(4, 4\), but those in weight are \(3, 3\)"),
        ({"kernel_size": 0}, ValueError, "kernel_size is 0"),
        ({"stride": (1, 0)}, ValueError, r"stride is \(1, 0\)"),
        ({"padding": -1}, ValueError, "padding is -1"),
        ({"padding": "all"}, ValueError, "padding is 'all'"),
        ({"dilation": (1, 2, 3)}, ValueError, r"dilation is \(1, 2, 3\)"),
        ({"x": images(1, 2, 2, 2)}, RuntimeError, "Kernel size can't be greater"),
        ({"weight": images(2, 1, 3, 3).double()}, RuntimeError, "type"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"x": images(1, 2, 4, 4), "weight": images(2, 1, 3, 3), "bias": None}
    with pytest.raises(error, match=message):
        dwconv2d(**good | change)


class Subclass(Tensor):
    pass


def test_what_the_kernel_cannot_take_runs_in_plain_pytorch() -> None:
    x, weight, _ = (leaf.detach() for leaf in arguments())
    cases = {
        "float16": (x.half(), weight.half()),
        "Subclass": (x.as_subclass(Subclass), weight),
        "negated": (torch._neg_view(x), weight),
        "dimensions": (x[0], weight),
        "meta": (x.to("meta"), weight.to("meta")),
        "devices": (x, weight.to("meta")),
        "larger": (x[:, :, :2], weight),
    }
    for word, tensors in cases.items():
        reason = unsupported_reason(*tensors, dilation=1)
        assert reason is not None
        assert word in reason
        if word not in ("devices", "larger"):
            out = dwconv2d(*tensors)
            if out.device.type == "cpu":
                torch.testing.assert_close(out, dwconv2d_reference(*tensors))


def test_torch_func() -> None:
    x, weight, _ = (leaf.detach() for leaf in arguments())
    expected = torch.autograd.functional.jacobian(lambda w: dwconv2d_reference(x, w).sum(), weight)
    torch.testing.assert_close(torch.func.grad(lambda w: dwconv2d(x, w).sum())(weight), expected)
    out = torch.vmap(lambda x: dwconv2d(x[None], weight)[0])(x)
    torch.testing.assert_close(out, dwconv2d_reference(x, weight))
    _, tangent = torch.func.jvp(lambda x: dwconv2d(x, weight), (x,), (x,))
    torch.testing.assert_close(tangent, dwconv2d_reference(x, weight))


def test_forward_mode() -> None:
    x, weight, _ = (leaf.detach() for leaf in arguments())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight, weight)
        tangent = torch.autograd.forward_ad.unpack_dual(dwconv2d(x, dual)).tangent
    torch.testing.assert_close(tangent, dwconv2d_reference(x, weight))


def test_fake_tensors() -> None:
    with FakeTensorMode():
        x, weight = torch.empty(2, 5, 8, 14), torch.empty(8, 1, 5, 5)
        assert dwconv2d(x, weight, kernel_size=3, stride=2, padding=1).shape == (2, 5, 4, 7)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
def test_opcheck(memory_format: torch.memory_format) -> None:
    leaves = arguments(memory_format=memory_format)
    options = ([3, 3], [2, 1], [1, 1], [1, 2], True)
    torch.library.opcheck(torch.ops.hwnas.dwconv2d.default, (*leaves, *options))
    torch.library.opcheck(torch.ops.hwnas.dwconv2d.default, (*leaves[:2], None, *options))
    x, weight, bias = (leaf.detach() for leaf in leaves)
    grad = torch.randn_like(torch.ops.hwnas.dwconv2d(x, weight, bias, *options))
    for wanted in ([True, True, True], [False, True, False]):
        torch.library.opcheck(torch.ops.hwnas.dwconv2d_backward.default, (grad, x, weight, wanted, *options))


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
def test_compiled_in_one_graph(memory_format: torch.memory_format) -> None:
    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return dwconv2d(x, weight, bias, kernel_size=3, padding=1, pre_relu=True) * 2

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
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return dwconv2d(x, weight, pre_relu=True)

    program = torch.export.export(Convolve(), (torch.rand(1, 2, 5, 5), torch.rand(2, 1, 3, 3)))
    assert not any("hwnas" in str(node.target) for node in program.graph.nodes)


GOOD: tuple[Any, ...] = (0, False, False, (1, 2, 4, 4), (2, 3, 3), (3, 3), (1, 1), (0, 0), (1, 1))


def changed(place: int, value: Any) -> tuple[Any, ...]:
    return (*GOOD[:place], value, *GOOD[place + 1 :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arguments": changed(0, 9)}, "dtype is 9"),
        ({"arguments": changed(3, (1, 0, 4, 4))}, r"size\[1\] is 0"),
        ({"arguments": changed(3, (1, 3, 4, 4))}, "x has 3 channels and the weight 2"),
        ({"arguments": changed(3, (1, 2, 4, 2))}, "larger than the padded image in dimension 3"),
        ({"arguments": changed(5, (3, 4))}, r"kernel\[1\] is 4, that of the weight is 3"),
        ({"arguments": changed(5, (0, 3))}, r"kernel\[0\] is 0"),
        ({"arguments": changed(6, (0, 1))}, r"stride\[0\] is 0"),
        ({"arguments": changed(7, (0, -1))}, r"padding\[1\] is -1"),
        ({"arguments": changed(8, (1, 0))}, r"dilation\[1\] is 0"),
        ({"x": 0}, "x is a null address"),
        ({"weight": 2}, "weight is not aligned to 4 bytes"),
        ({"bias": 2}, "bias is not aligned"),
        ({"y": 0}, "y is a null address"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_the_binding_checks_what_it_is_given(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"arguments": GOOD, "x": 64, "weight": 64, "bias": 0, "y": 64, "threads": 1}
    assert native.CPU is not None
    with pytest.raises(ValueError, match=message):
        native.CPU.dwconv2d(**good | change)
    if change.keys() & {"bias", "y"}:
        return
    backward: dict[str, Any] = {"arguments": GOOD, "grad": 64, "x": 64, "weight": 64, "grad_x": 64, "threads": 1}
    with pytest.raises(ValueError, match=message):
        native.CPU.dwconv2d_backward(**backward | {"grad_weight": 64, "grad_bias": 0} | change)
