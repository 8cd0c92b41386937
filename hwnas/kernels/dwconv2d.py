"""Depthwise convolution of images, with the ReLU in front of it, by a part of a larger weight that is read in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.kernels import native
from hwnas.kernels.convolution import Options, checked_options
from hwnas.kernels.layout import FORMATS, as_laid_out, layout_of
from hwnas.kernels.library import LIBRARY

SMALL = 1 << 18
"""Up to so many values are convolved by the compiled kernel, whatever the layout: they and the results stay cached."""

# Gradients of x, weight and bias.
_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def dwconv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int] | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    pre_relu: bool = False,
) -> Tensor:
    """Convolve each channel of an image by a kernel of its own.

    The weight may be larger than what is used of it, as it is in a super-net: the first C channels are taken, and of
    each kernel the centre. It is read in place, and its gradient has its full size, zero outside that part.

    The compiled kernel is used where it can be (see `unsupported_reason`). Plain PyTorch is used elsewhere, and on a
    CPU for the forward pass of many channels-last images without a ReLU, where it is faster. bfloat16 accumulates in
    float32. Gradients are the same from run to run and for every number of threads. Gradients of gradients are
    supported. A value of `x` that is not finite may make the gradient of every tap of its channel NaN.

    Parameters
    ----------
    x : Tensor, shape (N, C, H, W)
        The images, contiguous or channels-last. Of 3 dimensions, too, in plain PyTorch.
    weight : Tensor, shape (at least C, 1, at least kernel_size[0], at least kernel_size[1])
        The kernels.
    bias : Tensor, shape (weight.shape[0],), optional
        Added to the output. Its gradient has the full size, too.
    kernel_size : int or pair of int, optional
        Of the part of `weight` that is used, beginning ``(full - size) // 2`` from its corner. All of it by default.
    stride, padding, dilation : int or pair of int
        As `torch.nn.functional.conv2d` takes them; the padding may be "same" or "valid".
    pre_relu : bool
        Convolve ``max(x, 0)``. Nothing of the size of `x` is kept for the backward pass besides `x` itself.

    Returns
    -------
    Tensor, shape (N, C, H', W')
        In the memory format of `x`.

    Raises
    ------
    UnsupportedError
        An argument is no tensor of floating-point numbers.
    ValueError
        A shape does not match.

    Examples
    --------
    >>> x, weight = torch.randn(2, 3, 8, 8), torch.randn(16, 1, 7, 7)
    >>> y = dwconv2d(x, weight, kernel_size=5, padding=2, pre_relu=True)
    >>> torch.allclose(y, F.conv2d(x.relu(), weight[:3, :, 1:6, 1:6], padding=2, groups=3), atol=1e-5)
    True
    """
    options = checked_options(x, weight, bias, kernel_size, stride, padding, dilation, pre_relu)
    device = x.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        # As `conv2d` does by itself.
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    reason = _reason(x, weight, bias, options)
    if reason is not None and not torch.compiler.is_compiling():
        native.warn_if_missing(x.device)
    if reason is not None:
        return _reference(x, weight, bias, options)
    if torch.compiler.is_compiling():
        return torch.ops.hwnas.dwconv2d(x, weight, bias, *options)  # type: ignore[no-any-return]
    needs_gradient = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and needs_gradient:
        return _DwConv2d.apply(x, weight, bias, options)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(x, weight, bias, options)


def dwconv2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int] | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    pre_relu: bool = False,
) -> Tensor:
    """Compute `dwconv2d` in plain PyTorch: what the kernel means, and what runs where there is none.

    Parameters and result are those of `dwconv2d`.
    """
    options = checked_options(x, weight, bias, kernel_size, stride, padding, dilation, pre_relu)
    return _reference(x, weight, bias, options)


def unsupported_reason(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int] | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    pre_relu: bool = False,
) -> str | None:
    """Say why the compiled kernel cannot take these arguments. Plain PyTorch then does.

    The parameters are those of `dwconv2d`.

    Returns
    -------
    str or None
        The reason, None when the kernel can be used.
    """
    options = checked_options(x, weight, bias, kernel_size, stride, padding, dilation, pre_relu)
    return _reason(x, weight, bias, options)


def _forward_in_torch(x: Tensor, options: Options, layout: int) -> bool:
    """Tell whether the forward pass alone is faster in PyTorch.

    Its kernels read channels-last images where they are; the compiled one first copies them, with padding around. That
    pays where there is a ReLU, for which the copy stands in, and where the copy is made in a cache. Contiguous images
    are copied by either.
    """
    return x.device.type == "cpu" and layout == 1 and not options.pre_relu and x.numel() > SMALL


def _reason(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> str | None:
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if x.dtype not in native.DTYPE_CODES:
        return f"there is no kernel for {x.dtype}"
    for tensor in tensors[1:]:
        if tensor.dtype != x.dtype:
            return f"the tensors are of different types, {tensor.dtype} and {x.dtype}"
        if tensor.device != x.device:
            return f"the tensors are on different devices, {tensor.device} and {x.device}"
    if x.dim() != 4:
        return f"x has {x.dim()} dimensions, not 4"
    if isinstance(options.padding, str):
        return "the padding is not as much on one side as on the other"
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting():
            return "the program is being exported, and other programs do not know the operator"
    elif reason := native.no_address_reason(tensors):
        return reason
    if min(options.out_size(x.shape)) < 1:
        return "the kernel is larger than the padded image"
    if (
        x.device.type == "cuda"
        and x.shape[1] * max(x.shape[2] * x.shape[3], math.prod(options.out_size(x.shape))) >= 1 << 31
    ):
        return "the CUDA kernel takes images of less than 2**31 values"
    return native.unavailable_reason(x.device)


# --- plain PyTorch -----------------------------------------------------------------------------------------


def _part(weight: Tensor, channels: int, options: Options) -> Tensor:
    """Return a view of the part of the weight that is used."""
    (top, left), (height, width) = options.start(weight), options.kernel_size
    if weight.shape == (channels, 1, height, width):
        return weight  # a view of all of it would take time, too
    return weight[:channels, :, top : top + height, left : left + width]


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    channels = x.shape[-3]
    part = _part(weight, channels, options)
    inside = x.relu() if options.pre_relu else x
    start = None if bias is None else bias[:channels]
    return F.conv2d(inside, part, start, options.stride, options.padding, options.dilation, channels)


# --- the compiled kernels -----------------------------------------------------------------------------------


def _arguments(x: Tensor, weight: Tensor, options: Options, layout: int) -> tuple[Any, ...]:
    """Return what tells the compiled functions everything but the addresses."""
    return (
        native.DTYPE_CODES[x.dtype],
        layout == 1,
        options.pre_relu,
        tuple(x.shape),
        (weight.shape[0], *weight.shape[2:]),
        *options[:4],
    )


def _empty(size: Sequence[int], like: Tensor, layout: int) -> Tensor:
    return torch.empty(tuple(size), dtype=like.dtype, device=like.device, memory_format=FORMATS[layout])


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    layout = layout_of(x)
    if _forward_in_torch(x, options, layout):
        return _reference(x, weight, bias, options).contiguous(memory_format=FORMATS[layout])
    return _native_forward(x, weight, bias, options, layout)


def _native_forward(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options, layout: int) -> Tensor:
    (x,) = as_laid_out([x], layout)
    weight = weight.contiguous()
    y = _empty((x.shape[0], x.shape[1], *options.out_size(x.shape)), x, layout)
    module, where = native.where(x.device)
    bias = None if bias is None else bias.contiguous()
    module.dwconv2d(
        _arguments(x, weight, options, layout),
        x.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        *where,
    )
    return y


def _native_backward(grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool], options: Options) -> _Gradients:
    layout = layout_of(x)
    grad, x = as_laid_out([grad, x], layout)
    weight = weight.contiguous()
    grad_x = torch.empty_like(x) if wanted[0] else None
    grad_weight = torch.zeros_like(weight) if wanted[1] else None
    grad_bias = weight.new_zeros(weight.shape[0]) if wanted[2] else None
    arguments = _arguments(x, weight, options, layout)
    module, where = native.where(x.device)
    workspace: tuple[int, ...] = ()
    if x.device.type == "cuda":
        partials = torch.empty(module.dwconv2d_partials(arguments), dtype=torch.uint8, device=x.device)
        workspace = (partials.data_ptr(),)
    module.dwconv2d_backward(
        arguments,
        grad.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        *(0 if gradient is None else gradient.data_ptr() for gradient in (grad_x, grad_weight, grad_bias)),
        *workspace,
        *where,
    )
    return grad_x, grad_weight, grad_bias


# --- gradients ----------------------------------------------------------------------------------------------


def _reference_backward(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool], options: Options
) -> _Gradients:
    channels, missing = x.shape[1], weight.shape[0] - x.shape[1]
    (top, left), (height, width) = options.start(weight), options.kernel_size
    grad_inside, grad_part, _ = torch.ops.aten.convolution_backward(
        grad,
        x.relu() if options.pre_relu else x,
        _part(weight, channels, options),
        None,
        options.stride,
        options.padding,
        options.dilation,
        False,
        (0, 0),
        channels,
        (wanted[0], wanted[1], False),
    )
    grad_x = grad_weight = grad_bias = None
    if wanted[0]:
        masked = torch.where(x <= 0, 0, grad_inside) if options.pre_relu else grad_inside
        grad_x = masked.contiguous(memory_format=FORMATS[layout_of(x)])
    if wanted[1]:
        below, right = weight.shape[2] - top - height, weight.shape[3] - left - width
        grad_weight = F.pad(grad_part, (left, right, top, below, 0, 0, 0, missing)).contiguous()
    if wanted[2]:
        grad_bias = F.pad(grad.sum((0, 2, 3)), (0, missing))
    return grad_x, grad_weight, grad_bias


def _backward(grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool], options: Options) -> _Gradients:
    """Gradients of x, weight and bias, None where not wanted."""
    # Gradients are enabled here only under create_graph=True: somebody wants to differentiate what follows.
    native_can = not torch.is_grad_enabled() and _reason(x, weight, grad, options) is None
    backward = _native_backward if native_can else _reference_backward
    return backward(grad, x, weight, wanted, options)


class _DwConv2d(torch.autograd.Function):
    """The eager path: the compiled kernel without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
        ctx.options = options
        ctx.save_for_backward(x, weight)
        return _forward(x, weight, bias, options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return *_backward(grad, x, weight, ctx.needs_input_grad[:3], ctx.options), None


# --- the operator, for torch.compile ------------------------------------------------------------------------

_SCHEMA = "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, bool pre_relu"
LIBRARY.define(f"dwconv2d(Tensor x, Tensor weight, Tensor? bias, {_SCHEMA}) -> Tensor")
# The gradients that are wanted, in order: an operator cannot return None.
LIBRARY.define(f"dwconv2d_backward(Tensor grad, Tensor x, Tensor weight, bool[3] wanted, {_SCHEMA}) -> Tensor[]")


def _op(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    options = Options(*arguments)
    if _reason(x, weight, bias, options) is None:
        return _forward(x, weight, bias, options)
    return _reference(x, weight, bias, options).contiguous(memory_format=FORMATS[layout_of(x)])


def _op_fake(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    return _empty((x.shape[0], x.shape[1], *Options(*arguments).out_size(x.shape)), x, layout_of(x))


def _op_backward(grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool], *arguments: Any) -> list[Tensor]:
    gradients = _backward(grad, x, weight, wanted, Options(*arguments))
    return [gradient for gradient in gradients if gradient is not None]


def _op_backward_fake(grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool], *arguments: Any) -> list[Tensor]:
    gradients = _empty(x.shape, x, layout_of(x)), torch.empty_like(weight), weight.new_empty(weight.shape[0])
    return [gradient for gradient, want in zip(gradients, wanted, strict=True) if want]


def _op_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *arguments = inputs
    ctx.options = Options(*arguments)
    ctx.wanted = [x.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad]
    ctx.save_for_backward(x, weight)


def _op_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    unused = [None] * len(ctx.options)
    if torch.is_grad_enabled():
        return *_reference_backward(grad, x, weight, ctx.wanted, ctx.options), *unused
    found = iter(torch.ops.hwnas.dwconv2d_backward(grad, x, weight, ctx.wanted, *ctx.options))
    return *(next(found) if want else None for want in ctx.wanted), *unused


LIBRARY.impl("dwconv2d", _op, "CompositeExplicitAutograd")
LIBRARY.impl("dwconv2d_backward", _op_backward, "CompositeExplicitAutograd")
torch.library.register_fake("hwnas::dwconv2d", _op_fake, lib=LIBRARY)
torch.library.register_fake("hwnas::dwconv2d_backward", _op_backward_fake, lib=LIBRARY)
torch.library.register_autograd("hwnas::dwconv2d", _op_autograd, setup_context=_op_setup_context, lib=LIBRARY)
