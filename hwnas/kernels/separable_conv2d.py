"""Separable convolution: a depthwise and a pointwise convolution in one, with the ReLU in front of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.errors import UnsupportedError
from hwnas.kernels import convolution, native
from hwnas.kernels.dwconv2d import dwconv2d
from hwnas.kernels.layout import FORMATS, as_laid_out, layout_of
from hwnas.kernels.library import LIBRARY

_Pair = tuple[int, int]
_Size = int | Sequence[int]
_Shape = tuple[int, ...]

_OLDER = (
    None
    if native.CPU is None or hasattr(native.CPU, "separable_conv2d")
    else "the compiled module is older than hwnas: install hwnas again"
)

# Gradients of x and of both weights.
_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class _Options(NamedTuple):
    """How to convolve by depth; in this order they are arguments of the operator."""

    stride: _Pair
    padding: _Pair
    dilation: _Pair
    pre_relu: bool


class _Plan(NamedTuple):
    """What the options and the shapes of a call decide."""

    options: _Options
    size: _Shape  # of the output
    reason: str | None  # why there is no kernel
    arguments: tuple[Any, ...]  # of the compiled functions, besides type, layout, addresses and threads


def separable_conv2d(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    pre_relu: bool = False,
) -> Tensor:
    """Convolve each channel of an image by a kernel of its own, and mix the channels of each pixel.

    Nothing of the size of an image is kept for the backward pass besides `x` itself: the output of the depthwise
    convolution exists for a few rows at a time, and is computed again there. On a CPU that takes less time than writing
    and reading it. The compiled kernel is used where it can be (see `unsupported_reason`), `dwconv2d` and PyTorch's
    pointwise convolution elsewhere. There is no kernel for CUDA: a pointwise convolution is a large matrix product, for
    which PyTorch has the best libraries there are. Gradients are the same from run to run and for every number of
    threads. Gradients of gradients are supported. A value of `x` that is not finite may make gradients of the weights
    of its channel NaN.

    Parameters
    ----------
    x : Tensor, shape (N, C, H, W)
        The images, contiguous or channels-last.
    depthwise : Tensor, shape (C, 1, k, l)
        A kernel for each channel.
    pointwise : Tensor, shape (D, C, 1, 1)
        What each channel counts in each channel of the output.
    stride, padding, dilation : int or pair of int
        Of the depthwise convolution, as `torch.nn.functional.conv2d` takes them.
    pre_relu : bool
        Convolve ``max(x, 0)``.

    Returns
    -------
    Tensor, shape (N, D, H', W')
        In the memory format of `x`.

    Raises
    ------
    UnsupportedError
        An argument is no tensor of floating-point numbers.
    ValueError
        A shape does not match.

    References
    ----------
    Chollet: Xception: Deep Learning with Depthwise Separable Convolutions, CVPR 2017.

    Examples
    --------
    >>> x, depthwise, pointwise = torch.randn(2, 3, 8, 8), torch.randn(3, 1, 5, 5), torch.randn(4, 3, 1, 1)
    >>> y = separable_conv2d(x, depthwise, pointwise, padding=2, pre_relu=True)
    >>> torch.allclose(y, F.conv2d(F.conv2d(x.relu(), depthwise, padding=2, groups=3), pointwise), atol=1e-4)
    True
    """
    _check_types(x, depthwise, pointwise)
    plan = _plan_of(x, depthwise, pointwise, stride, padding, dilation, pre_relu)
    if _autocast_reason(x) or _reason(x, depthwise, pointwise, plan):
        if not torch.compiler.is_compiling():
            native.warn_if_missing(x.device)
        return _composed(x, depthwise, pointwise, plan.options)
    if torch.compiler.is_compiling():
        return torch.ops.hwnas.separable_conv2d(x, depthwise, pointwise, *plan.options)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and (x.requires_grad or depthwise.requires_grad or pointwise.requires_grad):
        return _SeparableConv2d.apply(x, depthwise, pointwise, plan)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(x, depthwise, pointwise, plan)


def separable_conv2d_reference(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    pre_relu: bool = False,
) -> Tensor:
    """Compute `separable_conv2d` in plain PyTorch: what the kernel means.

    Parameters and result are those of `separable_conv2d`.
    """
    plan = _plan_of(x, depthwise, pointwise, stride, padding, dilation, pre_relu)
    return _reference(x, depthwise, pointwise, plan.options)


def unsupported_reason(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    pre_relu: bool = False,
) -> str | None:
    """Say why the compiled kernel cannot take these arguments. Two convolutions then do.

    The parameters are those of `separable_conv2d`.

    Returns
    -------
    str or None
        The reason, None when the kernel can be used.
    """
    plan = _plan_of(x, depthwise, pointwise, stride, padding, dilation, pre_relu)
    return _autocast_reason(x) or _reason(x, depthwise, pointwise, plan)


def _autocast_reason(x: Tensor) -> str | None:
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return "autocast chooses the type in which each convolution computes"
    return None


def _reason(x: Tensor, depthwise: Tensor, pointwise: Tensor, plan: _Plan) -> str | None:
    for tensor in (x, depthwise, pointwise):
        if tensor.dtype is not torch.float32:
            return f"there is no kernel for {tensor.dtype}"
        if not tensor.is_cpu:
            return f"there is no kernel for device type {tensor.device.type!r}"
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting():
            return "the program is being exported, and other programs do not know the operator"
    elif reason := native.no_address_reason((x, depthwise, pointwise)):
        return reason
    return plan.reason or native.unavailable_reason(x.device) or _OLDER


# --- arguments ----------------------------------------------------------------------------------------------


def _check_types(x: Tensor, depthwise: Tensor, pointwise: Tensor) -> None:
    """Raise an error that names the argument at fault."""
    for name, tensor in (("x", x), ("depthwise", depthwise), ("pointwise", pointwise)):
        if not isinstance(tensor, Tensor):
            raise UnsupportedError(f"separable_conv2d: {name} is a {type(tensor).__name__}, expected a Tensor")
        if not tensor.is_floating_point():
            raise UnsupportedError(f"separable_conv2d: {name} is {tensor.dtype}, expected a floating-point type")


def _plan_of(
    x: Tensor, depthwise: Tensor, pointwise: Tensor, stride: _Size, padding: _Size, dilation: _Size, pre_relu: bool
) -> _Plan:
    given = x.shape, depthwise.shape, pointwise.shape, stride, padding, dilation, pre_relu
    if torch.compiler.is_compiling():
        return _plan(*given)
    try:
        return _known_plan(*given)
    except TypeError:  # lists, and sizes that are symbols, have no hash
        return _plan(*given)


def _plan(
    x: _Shape, depthwise: _Shape, pointwise: _Shape, stride: _Size, padding: _Size, dilation: _Size, pre_relu: bool
) -> _Plan:
    _check_shapes(x, depthwise, pointwise)
    options = _Options(
        _pair("stride", stride, 1), _pair("padding", padding, 0), _pair("dilation", dilation, 1), pre_relu
    )
    channels, kernel = depthwise[0], (depthwise[2], depthwise[3])
    out_size = convolution.Options(kernel, *options).out_size(x)
    reason = None
    if len(x) != 4:
        reason = f"x has {len(x)} dimensions, not 4"
    elif pointwise[0] == 0:
        reason = "the output has no channels"
    elif min(out_size) < 1:
        reason = "the kernel is larger than the padded image"
    arguments = pre_relu, tuple(x), (channels, *kernel), kernel, *options[:3]
    return _Plan(options, (*x[:-3], pointwise[0], *out_size), reason, arguments)


# A net asks for the same few convolutions again and again. Typed: 1.0 is equal to 1, but no integer.
_known_plan = functools.lru_cache(maxsize=1024, typed=True)(_plan)


def _check_shapes(x: _Shape, depthwise: _Shape, pointwise: _Shape) -> None:
    """Raise an error that names the argument at fault."""
    if len(x) not in (3, 4):
        raise ValueError(f"separable_conv2d: x has shape {tuple(x)}, expected (N, C, H, W)")
    channels = x[-3]
    if len(depthwise) != 4 or depthwise[:2] != (channels, 1):
        raise ValueError(
            f"separable_conv2d: depthwise has shape {tuple(depthwise)}, expected ({channels}, 1, height, width): "
            f"one kernel for each channel of x"
        )
    if len(pointwise) != 4 or pointwise[1:] != (channels, 1, 1):
        raise ValueError(
            f"separable_conv2d: pointwise has shape {tuple(pointwise)}, expected (outputs, {channels}, 1, 1), as "
            f"x has {channels} channels"
        )


def _pair(name: str, value: _Size, least: int) -> _Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(each, int) and each >= least for each in pair):
        raise ValueError(f"separable_conv2d: {name} is {value!r}, expected one or two integers of at least {least}")
    return pair[0], pair[1]


def _reference(x: Tensor, depthwise: Tensor, pointwise: Tensor, options: _Options) -> Tensor:
    stride, padding, dilation, pre_relu = options
    inside = x.relu() if pre_relu else x
    return F.conv2d(F.conv2d(inside, depthwise, None, stride, padding, dilation, x.shape[-3]), pointwise)


def _composed(x: Tensor, depthwise: Tensor, pointwise: Tensor, options: _Options) -> Tensor:
    """Run two convolutions, the first by its own kernel where there is one."""
    stride, padding, dilation, pre_relu = options
    places: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    return F.conv2d(dwconv2d(x, depthwise, **places, pre_relu=pre_relu), pointwise)


# --- the compiled kernels -----------------------------------------------------------------------------------


def _arguments(x: Tensor, plan: _Plan, layout: int) -> tuple[Any, ...]:
    """Return what tells the compiled functions everything but the addresses and the channels of the output."""
    return native.DTYPE_CODES[x.dtype], layout == 1, *plan.arguments


def _empty(x: Tensor, plan: _Plan, layout: int) -> Tensor:
    return torch.empty(plan.size, dtype=x.dtype, device=x.device, memory_format=FORMATS[layout])


def _forward(x: Tensor, depthwise: Tensor, pointwise: Tensor, plan: _Plan) -> Tensor:
    layout = layout_of(x)
    y = _empty(x, plan, layout)
    x = x.contiguous(memory_format=FORMATS[layout])
    depthwise, pointwise = depthwise.contiguous(), pointwise.contiguous()
    module, where = native.where(x.device)
    module.separable_conv2d(
        _arguments(x, plan, layout),
        plan.size[1],
        x.data_ptr(),
        depthwise.data_ptr(),
        pointwise.data_ptr(),
        y.data_ptr(),
        *where,
    )
    return y


def _native_backward(
    grad: Tensor, x: Tensor, depthwise: Tensor, pointwise: Tensor, wanted: Sequence[bool], plan: _Plan
) -> _Gradients:
    layout = layout_of(x)
    grad, x = as_laid_out([grad, x], layout)
    depthwise, pointwise = depthwise.contiguous(), pointwise.contiguous()
    grad_x = torch.empty_like(x) if wanted[0] else None
    grad_depthwise = torch.empty_like(depthwise) if wanted[1] else None
    grad_pointwise = torch.empty_like(pointwise) if wanted[2] else None
    module, where = native.where(x.device)
    module.separable_conv2d_backward(
        _arguments(x, plan, layout),
        plan.size[1],
        grad.data_ptr(),
        x.data_ptr(),
        depthwise.data_ptr(),
        pointwise.data_ptr(),
        0 if grad_x is None else grad_x.data_ptr(),
        0 if grad_depthwise is None else grad_depthwise.data_ptr(),
        0 if grad_pointwise is None else grad_pointwise.data_ptr(),
        *where,
    )
    return grad_x, grad_depthwise, grad_pointwise


# --- gradients ----------------------------------------------------------------------------------------------


def _reference_backward(
    grad: Tensor, x: Tensor, depthwise: Tensor, pointwise: Tensor, wanted: Sequence[bool], options: _Options
) -> _Gradients:
    stride, padding, dilation, pre_relu = options
    inside, channels = x.relu() if pre_relu else x, x.shape[1]
    between = F.conv2d(inside, depthwise, None, stride, padding, dilation, channels)
    grad_between, grad_pointwise, _ = torch.ops.aten.convolution_backward(
        grad, between, pointwise, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (True, wanted[2], False)
    )
    some = (wanted[0], wanted[1], False)
    grad_x, grad_depthwise, _ = torch.ops.aten.convolution_backward(
        grad_between, inside, depthwise, None, stride, padding, dilation, False, (0, 0), channels, some
    )
    if wanted[0]:
        masked = torch.where(x <= 0, 0, grad_x) if pre_relu else grad_x
        grad_x = masked.contiguous(memory_format=FORMATS[layout_of(x)])
    return (
        grad_x,
        grad_depthwise.contiguous() if wanted[1] else None,
        grad_pointwise.contiguous() if wanted[2] else None,
    )


def _backward(
    grad: Tensor, x: Tensor, depthwise: Tensor, pointwise: Tensor, wanted: Sequence[bool], plan: _Plan
) -> _Gradients:
    """Gradients of x and the weights, None where not wanted."""
    # Gradients are enabled here only under create_graph=True: somebody wants to differentiate what follows.
    native_can = (
        not torch.is_grad_enabled()
        and _reason(x, depthwise, pointwise, plan) is None
        and native.no_address_reason([grad]) is None
    )
    if native_can:
        return _native_backward(grad, x, depthwise, pointwise, wanted, plan)
    return _reference_backward(grad, x, depthwise, pointwise, wanted, plan.options)


class _SeparableConv2d(torch.autograd.Function):
    """The eager path: the compiled kernel without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, depthwise: Tensor, pointwise: Tensor, plan: _Plan) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(x, depthwise, pointwise)
        return _forward(x, depthwise, pointwise, plan)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, depthwise, pointwise = ctx.saved_tensors
        return *_backward(grad, x, depthwise, pointwise, ctx.needs_input_grad[:3], ctx.plan), None


# --- the operator, for torch.compile ------------------------------------------------------------------------

_SCHEMA = "int[2] stride, int[2] padding, int[2] dilation, bool pre_relu"
_TENSORS = "Tensor x, Tensor depthwise, Tensor pointwise"
LIBRARY.define(f"separable_conv2d({_TENSORS}, {_SCHEMA}) -> Tensor")
# The gradients that are wanted, in order: an operator cannot return None.
LIBRARY.define(f"separable_conv2d_backward(Tensor grad, {_TENSORS}, bool[3] wanted, {_SCHEMA}) -> Tensor[]")


def _op(x: Tensor, depthwise: Tensor, pointwise: Tensor, *arguments: Any) -> Tensor:
    plan = _plan_of(x, depthwise, pointwise, *arguments)
    if _reason(x, depthwise, pointwise, plan) is None:
        return _forward(x, depthwise, pointwise, plan)
    return _reference(x, depthwise, pointwise, plan.options).contiguous(memory_format=FORMATS[layout_of(x)])


def _op_fake(x: Tensor, depthwise: Tensor, pointwise: Tensor, *arguments: Any) -> Tensor:
    return _empty(x, _plan_of(x, depthwise, pointwise, *arguments), layout_of(x))


def _op_backward(
    grad: Tensor, x: Tensor, depthwise: Tensor, pointwise: Tensor, wanted: Sequence[bool], *arguments: Any
) -> list[Tensor]:
    gradients = _backward(grad, x, depthwise, pointwise, wanted, _plan_of(x, depthwise, pointwise, *arguments))
    return [gradient for gradient in gradients if gradient is not None]


def _op_backward_fake(
    grad: Tensor, x: Tensor, depthwise: Tensor, pointwise: Tensor, wanted: Sequence[bool], *arguments: Any
) -> list[Tensor]:
    of_x = torch.empty_like(x, memory_format=FORMATS[layout_of(x)])
    gradients = of_x, depthwise.new_empty(depthwise.shape), pointwise.new_empty(pointwise.shape)
    return [gradient for gradient, want in zip(gradients, wanted, strict=True) if want]


def _op_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, stride, padding, dilation, pre_relu = inputs
    ctx.options = _Options(stride, padding, dilation, pre_relu)
    ctx.wanted = [tensor.requires_grad for tensor in tensors]
    ctx.save_for_backward(*tensors)


def _op_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, depthwise, pointwise = ctx.saved_tensors
    unused = [None] * len(ctx.options)
    if torch.is_grad_enabled():
        return *_reference_backward(grad, x, depthwise, pointwise, ctx.wanted, ctx.options), *unused
    found = iter(torch.ops.hwnas.separable_conv2d_backward(grad, x, depthwise, pointwise, ctx.wanted, *ctx.options))
    return *(next(found) if want else None for want in ctx.wanted), *unused


LIBRARY.impl("separable_conv2d", _op, "CompositeExplicitAutograd")
LIBRARY.impl("separable_conv2d_backward", _op_backward, "CompositeExplicitAutograd")
torch.library.register_fake("hwnas::separable_conv2d", _op_fake, lib=LIBRARY)
torch.library.register_fake("hwnas::separable_conv2d_backward", _op_backward_fake, lib=LIBRARY)
torch.library.register_autograd("hwnas::separable_conv2d", _op_autograd, setup_context=_op_setup_context, lib=LIBRARY)
