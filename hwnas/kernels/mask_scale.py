"""A weight times a mask for each of its axes, in one pass: ``weight * (out_mask x in_mask x kernel_mask)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hwnas.errors import UnsupportedError
from hwnas.kernels import native
from hwnas.kernels.layout import FORMATS, as_laid_out, layout_of
from hwnas.kernels.library import LIBRARY

MASKS = ("out_mask", "in_mask", "kernel_mask")

# One for each of MASKS; None stands for ones.
_Masks = Sequence[Tensor | None]


class _Wanted(NamedTuple):
    """Which gradients are wanted, and the index into `FORMATS` of how the weight lies in memory."""

    weight: bool
    masks: Sequence[bool]
    layout: int


def mask_scale(
    weight: Tensor, out_mask: Tensor | None = None, in_mask: Tensor | None = None, kernel_mask: Tensor | None = None
) -> Tensor:
    """Multiply a weight by the outer product of masks, which is never stored.

    The weight of a differentiable width or kernel size is the weight of the largest layer times the probability
    that the member has each of its entries: a product of one probability for each axis. The compiled kernel is used
    where it can be (see `unsupported_reason`), plain PyTorch elsewhere; both compute in float32 (float64 for float64
    data). The gradients are the same from run to run and for every number of threads. Gradients of gradients are
    supported.

    Parameters
    ----------
    weight : Tensor, shape (O, I, *K)
        Of a linear layer or a convolution: 2 to 5 dimensions. Of a transposed convolution O stands for its input.
    out_mask : Tensor, shape (O,), optional
        Factors of the first dimension, of any floating-point type. None stands for ones.
    in_mask : Tensor, shape (I,), optional
        Factors of the second dimension.
    kernel_mask : Tensor, shape (*K), optional
        Factors of the places in the kernel.

    Returns
    -------
    Tensor, shape (O, I, *K)
        The product, with the type and the memory format (contiguous or channels-last) of `weight`.

    Raises
    ------
    UnsupportedError
        An argument is not a floating-point tensor.
    ValueError
        The weight has too few or too many dimensions; the shape or the device of a mask does not fit it.

    References
    ----------
    Wan et al.: FBNetV2: Differentiable Neural Architecture Search for Spatial and Channel Dimensions, CVPR 2020.
    """
    masks = (out_mask, in_mask, kernel_mask)
    _check(weight, masks)
    reason = unsupported_reason(weight, masks)
    if torch.compiler.is_compiling():
        if reason is None:
            return torch.ops.hwnas.mask_scale(weight, *masks)  # type: ignore[no-any-return]
        return mask_scale_reference(weight, *masks)
    if reason is not None:
        native.warn_if_missing(weight.device)
        return mask_scale_reference(weight, *masks)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (weight, *masks)):
        return _MaskScale.apply(weight, *masks)  # type: ignore[no-any-return, no-untyped-call]
    return _native_forward(weight, masks, layout_of(weight))


def mask_scale_reference(
    weight: Tensor, out_mask: Tensor | None = None, in_mask: Tensor | None = None, kernel_mask: Tensor | None = None
) -> Tensor:
    """Compute `mask_scale` in plain PyTorch: what the kernel means, and what runs where there is none.

    Parameters
    ----------
    weight : Tensor, shape (O, I, *K)
        What to scale.
    out_mask, in_mask, kernel_mask : Tensor, shapes (O,), (I,) and (*K), optional
        Factors of each axis.

    Returns
    -------
    Tensor, shape (O, I, *K)
        The product.
    """
    wide = weight.to(native.accumulator(weight.dtype))
    for mask in _spread((out_mask, in_mask, kernel_mask), weight):
        if mask is not None:
            wide = wide * mask
    return wide.to(weight.dtype)


def unsupported_reason(weight: Tensor, masks: Sequence[Tensor | None]) -> str | None:
    """Say why the compiled kernel cannot take these arguments. Plain PyTorch then does.

    Parameters
    ----------
    weight : Tensor, shape (O, I, *K)
        What to scale.
    masks : sequence of Tensor or None
        The masks of the outputs, the inputs and the kernel.

    Returns
    -------
    str or None
        The reason, None when the kernel can be used.
    """
    if weight.dtype not in native.DTYPE_CODES:
        return f"there is no kernel for {weight.dtype}"
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting():
            return "the program is being exported, and other programs do not know the operator"
    elif reason := native.no_address_reason([weight, *(mask for mask in masks if mask is not None)]):
        return reason
    return native.unavailable_reason(weight.device)


def _check(weight: Tensor, masks: _Masks) -> None:
    """Raise an error that names the argument at fault."""
    _check_type("weight", weight)
    shape = weight.shape
    if not 2 <= len(shape) <= 5:
        raise ValueError(
            f"mask_scale: weight has shape {tuple(shape)}, expected 2 to 5 dimensions: those of the weight of a linear "
            "layer or a convolution"
        )
    device = weight.device
    for name, mask, expected in zip(MASKS, masks, (shape[:1], shape[1:2], shape[2:]), strict=True):
        if mask is None:
            continue
        _check_type(name, mask)
        if mask.shape != expected:
            raise ValueError(
                f"mask_scale: {name} has shape {tuple(mask.shape)}, expected {tuple(expected)} for a weight of shape "
                f"{tuple(shape)}"
            )
        if mask.device != device:
            raise ValueError(f"mask_scale: {name} is on {mask.device} and weight on {device}; move them to one device")


def _check_type(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise UnsupportedError(f"mask_scale: {name} is a {type(x).__name__}, expected a Tensor")
    if not x.is_floating_point():
        raise UnsupportedError(
            f"mask_scale: {name} is {x.dtype}, expected a floating-point type; convert it with .float()"
        )


# --- the compiled kernels -----------------------------------------------------------------------------------


def _shape_in_memory(weight: Tensor, layout: int) -> tuple[int, int, int]:
    """Return the sizes of the outputs and of what lies inside them: inputs and kernel, or the other way round."""
    rows, inputs = weight.shape[:2]
    places = weight.numel() // (rows * inputs)
    return (rows, inputs, places) if layout == 0 else (rows, places, inputs)


def _in_memory_order(masks: Sequence[Any], layout: int) -> list[Any]:
    """Exchange the masks of the inputs and of the kernel where the kernel lies further out."""
    out_mask, in_mask, kernel_mask = masks
    return [out_mask, in_mask, kernel_mask] if layout == 0 else [out_mask, kernel_mask, in_mask]


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _native_forward(weight: Tensor, masks: _Masks, layout: int) -> Tensor:
    (laid_out,) = as_laid_out([weight], layout)
    scalars = [None if mask is None else native.as_accumulators(mask, weight.dtype) for mask in masks]
    out = torch.empty_like(laid_out)
    module, where = native.where(weight.device)
    module.mask_scale(
        native.DTYPE_CODES[weight.dtype],
        laid_out.data_ptr(),
        [_address(mask) for mask in _in_memory_order(scalars, layout)],
        out.data_ptr(),
        _shape_in_memory(weight, layout),
        *where,
    )
    return out


def _native_backward(
    grad: Tensor, weight: Tensor, masks: _Masks, wanted: _Wanted
) -> tuple[Tensor | None, list[Tensor | None]]:
    grad, weight = as_laid_out([grad, weight], wanted.layout)
    scalars = [None if mask is None else native.as_accumulators(mask, grad.dtype) for mask in masks]
    grad_weight = torch.empty_like(grad) if wanted.weight else None
    grad_masks = [
        torch.empty_like(mask) if need and mask is not None else None
        for mask, need in zip(scalars, wanted.masks, strict=True)
    ]
    shape = _shape_in_memory(grad, wanted.layout)
    module, where = native.where(grad.device)
    workspace: tuple[int, ...] = ()
    if grad.device.type == "cuda":
        size = module.mask_scale_workspace(shape) if any(wanted.masks) else 0
        scratch = grad.new_empty(size, dtype=native.accumulator(grad.dtype))
        workspace = (scratch.data_ptr(),)
    module.mask_scale_backward(
        native.DTYPE_CODES[grad.dtype],
        grad.data_ptr(),
        weight.data_ptr(),
        [_address(mask) for mask in _in_memory_order(scalars, wanted.layout)],
        _address(grad_weight),
        [_address(mask) for mask in _in_memory_order(grad_masks, wanted.layout)],
        *workspace,
        shape,
        *where,
    )
    return grad_weight, [
        None if mask is None or found is None else found.to(mask.dtype)
        for mask, found in zip(masks, grad_masks, strict=True)
    ]


# --- gradients ----------------------------------------------------------------------------------------------


def _spread(masks: _Masks, weight: Tensor) -> list[Tensor | None]:
    """Return masks in the type of the accumulators, shaped so that they broadcast against the weight."""
    accumulator = native.accumulator(weight.dtype)
    out_mask, in_mask, kernel_mask = (None if mask is None else mask.to(accumulator) for mask in masks)
    ones = [1] * (weight.dim() - 2)
    return [
        None if out_mask is None else out_mask.reshape(-1, 1, *ones),
        None if in_mask is None else in_mask.reshape(-1, *ones),
        kernel_mask,
    ]


def _reference_backward(
    grad: Tensor, weight: Tensor, masks: _Masks, wanted: _Wanted
) -> tuple[Tensor | None, list[Tensor | None]]:
    factors = _spread(masks, weight)
    wide = grad.to(native.accumulator(grad.dtype))
    grad_weight = wide
    for factor in factors:
        if factor is not None:
            grad_weight = grad_weight * factor
    product = wide * weight.to(wide.dtype)
    grad_masks: list[Tensor | None] = []
    for axis, (mask, need) in enumerate(zip(masks, wanted.masks, strict=True)):
        if mask is None or not need:
            grad_masks.append(None)
            continue
        others = product
        for other, factor in enumerate(factors):
            if other != axis and factor is not None:
                others = others * factor
        own = {0: [0], 1: [1], 2: list(range(2, weight.dim()))}[axis]
        summed = [d for d in range(weight.dim()) if d not in own]
        grad_masks.append(others.sum(summed).to(mask.dtype))
    if not wanted.weight:
        return None, grad_masks
    return grad_weight.to(weight.dtype).contiguous(memory_format=FORMATS[wanted.layout]), grad_masks


def _backward(
    grad: Tensor, weight: Tensor, masks: _Masks, wanted: _Wanted
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the weight and of the masks, None where not wanted."""
    # Gradients are enabled here only under create_graph=True: somebody wants to differentiate what follows.
    native_can = not torch.is_grad_enabled() and unsupported_reason(grad, (weight, *masks)) is None
    backward = _native_backward if native_can else _reference_backward
    return backward(grad, weight, masks, wanted)


class _MaskScale(torch.autograd.Function):
    """The eager path: the compiled kernel without the dispatcher, which costs more than a small weight."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, out_mask: Tensor | None, in_mask: Tensor | None, kernel_mask: Tensor | None
    ) -> Tensor:
        ctx.layout = layout_of(weight)
        ctx.save_for_backward(weight, out_mask, in_mask, kernel_mask)
        return _native_forward(weight, (out_mask, in_mask, kernel_mask), ctx.layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *masks = ctx.saved_tensors
        need_weight, *need_masks = ctx.needs_input_grad
        grad_weight, grad_masks = _backward(grad, weight, masks, _Wanted(need_weight, need_masks, ctx.layout))
        return grad_weight, *grad_masks


# --- the operator, for torch.compile ------------------------------------------------------------------------
# Gradients that are not wanted are left out of the list: an operator cannot return None.

LIBRARY.define("mask_scale(Tensor weight, Tensor? out_mask, Tensor? in_mask, Tensor? kernel_mask) -> Tensor")
LIBRARY.define(
    "mask_scale_backward(Tensor grad, Tensor weight, Tensor? out_mask, Tensor? in_mask, Tensor? kernel_mask, "
    "bool need_weight, bool[] need_masks, int layout) -> Tensor[]"
)


def _op(weight: Tensor, *masks: Tensor | None) -> Tensor:
    layout = layout_of(weight)
    if unsupported_reason(weight, masks) is None:
        return _native_forward(weight, masks, layout)
    return mask_scale_reference(weight, *masks).contiguous(memory_format=FORMATS[layout])


def _op_fake(weight: Tensor, *masks: Tensor | None) -> Tensor:
    return torch.empty_like(*as_laid_out([weight], layout_of(weight)))


def _op_backward(
    grad: Tensor,
    weight: Tensor,
    out_mask: Tensor | None,
    in_mask: Tensor | None,
    kernel_mask: Tensor | None,
    *wanted: Any,
) -> list[Tensor]:
    grad_weight, grad_masks = _backward(grad, weight, (out_mask, in_mask, kernel_mask), _Wanted(*wanted))
    return [x for x in (grad_weight, *grad_masks) if x is not None]


def _op_backward_fake(
    grad: Tensor,
    weight: Tensor,
    out_mask: Tensor | None,
    in_mask: Tensor | None,
    kernel_mask: Tensor | None,
    need_weight: bool,
    need_masks: Sequence[bool],
    layout: int,
) -> list[Tensor]:
    masks = zip((out_mask, in_mask, kernel_mask), need_masks, strict=True)
    of_masks = [mask.new_empty(mask.shape) for mask, need in masks if need and mask is not None]
    return [torch.empty_like(*as_laid_out([grad], layout)), *of_masks] if need_weight else of_masks


def _op_setup_context(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    weight, *masks = inputs
    assert weight is not None
    need_masks = [mask is not None and mask.requires_grad for mask in masks]
    ctx.wanted = _Wanted(weight.requires_grad, need_masks, layout_of(weight))
    ctx.save_for_backward(weight, *masks)


def _op_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, *masks = ctx.saved_tensors
    wanted: _Wanted = ctx.wanted
    if torch.is_grad_enabled():
        grad_weight, grad_masks = _reference_backward(grad, weight, masks, wanted)
        return grad_weight, *grad_masks
    needed = iter(torch.ops.hwnas.mask_scale_backward(grad, weight, *masks, *wanted))
    return tuple(next(needed) if need else None for need in (wanted.weight, *wanted.masks))


LIBRARY.impl("mask_scale", _op, "CompositeExplicitAutograd")
LIBRARY.impl("mask_scale_backward", _op_backward, "CompositeExplicitAutograd")
torch.library.register_fake("hwnas::mask_scale", _op_fake, lib=LIBRARY)
torch.library.register_fake("hwnas::mask_scale_backward", _op_backward_fake, lib=LIBRARY)
torch.library.register_autograd("hwnas::mask_scale", _op_autograd, setup_context=_op_setup_context, lib=LIBRARY)
