"""The slice of a weight that a member of a super-net uses, as a tensor of its own, with one gradient of full size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hwnas.errors import UnsupportedError
from hwnas.kernels import native
from hwnas.kernels.layout import FORMATS, as_laid_out, layout_of
from hwnas.kernels.library import LIBRARY


def slice_pack(weight: Tensor, out_channels: int, in_channels: int, kernel_size: Sequence[int] | None = None) -> Tensor:
    """Copy the first channels and the centre of the kernel out of a weight.

    Slicing in PyTorch makes one node of the graph for each dimension, and in the backward pass each of them fills a
    tensor with zeros and copies into it. Here the backward pass writes one gradient of full size, once
    (`slice_unpack`). Gradients of gradients are supported.

    Parameters
    ----------
    weight : Tensor, shape (O, I, *K)
        Of a linear layer or a convolution: 2 to 5 dimensions.
    out_channels : int
        How many entries of the first dimension to keep.
    in_channels : int
        How many entries of the second dimension to keep.
    kernel_size : sequence of int, optional
        Size of the part of the kernel to keep, one for each dimension; it starts at ``(whole - part) // 2``. None
        keeps all of it.

    Returns
    -------
    Tensor, shape (out_channels, in_channels, *kernel_size)
        The slice in the memory format of `weight` (contiguous or channels-last). `weight` itself where that is all
        of it.

    Raises
    ------
    UnsupportedError
        `weight` is not a tensor.
    ValueError
        The weight has too few or too many dimensions, or a size does not lie inside it.
    """
    size = _part_size(weight, out_channels, in_channels, kernel_size)
    if size == weight.shape:
        return weight
    reason = unsupported_reason(weight)
    if torch.compiler.is_compiling():
        if reason is None:
            return torch.ops.hwnas.slice_pack(weight, size)  # type: ignore[no-any-return]
        return slice_pack_reference(weight, size)
    if reason is not None:
        native.warn_if_missing(weight.device)
        return slice_pack_reference(weight, size)
    if weight.requires_grad and torch.is_grad_enabled():
        return _SlicePack.apply(weight, size)  # type: ignore[no-any-return, no-untyped-call]
    return _native_pack(weight, size, layout_of(weight))


def slice_unpack(
    part: Tensor, shape: Sequence[int], memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Write a slice into zeros: the transpose of `slice_pack`, in one pass.

    Parameters
    ----------
    part : Tensor, shape (o, i, *k)
        What `slice_pack` returned, or a gradient of it.
    shape : sequence of int
        Sizes (O, I, *K) of the whole weight.
    memory_format : torch.memory_format
        How the result lies in memory: contiguous or channels-last.

    Returns
    -------
    Tensor, shape (O, I, *K)
        `part` in the first channels and the centre of the kernel, exactly zero elsewhere.

    Raises
    ------
    UnsupportedError
        `part` is not a tensor.
    ValueError
        `part` has too few or too many dimensions or does not fit into `shape`; the format is none of these.
    """
    whole = tuple(shape)
    if not isinstance(part, Tensor):
        raise UnsupportedError(f"slice_unpack: part is a {type(part).__name__}, expected a Tensor")
    fits = len(whole) == part.dim() and all(p <= w for p, w in zip(part.shape, whole, strict=True))
    if not 2 <= part.dim() <= 5 or not fits:
        raise ValueError(
            f"slice_unpack: part has shape {tuple(part.shape)}, which is no slice with 2 to 5 dimensions of a tensor "
            f"of shape {whole}"
        )
    if memory_format not in FORMATS or memory_format not in (FORMATS[0], FORMATS[max(part.dim() - 3, 0)]):
        raise ValueError(
            f"slice_unpack: memory_format is {memory_format}, expected torch.contiguous_format, or channels-last for 4 "
            "or 5 dimensions"
        )
    return _unpack(part, whole, FORMATS.index(memory_format))


def slice_pack_reference(weight: Tensor, size: Sequence[int]) -> Tensor:
    """Compute `slice_pack` in plain PyTorch: what the kernel means, and what runs where there is none.

    Parameters
    ----------
    weight : Tensor, shape (O, I, *K)
        The whole.
    size : sequence of int
        Sizes (o, i, *k) of the slice.

    Returns
    -------
    Tensor, shape (o, i, *k)
        The slice, in the memory format of `weight`.
    """
    part = weight[_inside(weight.shape, size)]
    return part.contiguous(memory_format=FORMATS[layout_of(weight)])


def slice_unpack_reference(part: Tensor, shape: Sequence[int], layout: int = 0) -> Tensor:
    """Compute `slice_unpack` in plain PyTorch.

    Parameters
    ----------
    part : Tensor, shape (o, i, *k)
        The slice.
    shape : sequence of int
        Sizes (O, I, *K) of the whole.
    layout : int
        Index into `hwnas.kernels.layout.FORMATS` of how the result lies in memory.

    Returns
    -------
    Tensor, shape (O, I, *K)
        `part` and zeros around it.
    """
    ends = []
    for start, size, whole in zip(_starts(shape, part.shape), part.shape, shape, strict=True):
        ends.append((start, whole - start - size))
    padding = [end for pair in reversed(ends) for end in pair]
    return torch.nn.functional.pad(part, padding).contiguous(memory_format=FORMATS[layout])


def unsupported_reason(weight: Tensor) -> str | None:
    """Say why the compiled kernel cannot slice this tensor. Plain PyTorch then does.

    Parameters
    ----------
    weight : Tensor, shape (O, I, *K)
        The whole, or a slice to write into zeros.

    Returns
    -------
    str or None
        The reason, None when the kernel can be used.
    """
    if not weight.is_floating_point():
        return f"there is no kernel for {weight.dtype}"
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting():
            return "the program is being exported, and other programs do not know the operator"
    elif reason := native.no_address_reason((weight,)):
        return reason
    return native.unavailable_reason(weight.device)


def _part_size(
    weight: Tensor, out_channels: int, in_channels: int, kernel_size: Sequence[int] | None
) -> tuple[int, ...]:
    """Return the size of the slice, or raise an error that names the argument at fault."""
    if not isinstance(weight, Tensor):
        raise UnsupportedError(f"slice_pack: weight is a {type(weight).__name__}, expected a Tensor")
    shape = weight.shape
    if not 2 <= len(shape) <= 5:
        raise ValueError(
            f"slice_pack: weight has shape {tuple(shape)}, expected 2 to 5 dimensions: those of the weight of a linear "
            "layer or a convolution"
        )
    size = (out_channels, in_channels, *(shape[2:] if kernel_size is None else kernel_size))
    if len(size) != len(shape):
        raise ValueError(
            f"slice_pack: kernel_size is {kernel_size}, expected {len(shape) - 2} sizes for a weight of shape "
            f"{tuple(shape)}"
        )
    for d, (part, whole) in enumerate(zip(size, shape, strict=True)):
        if not 1 <= part <= whole:
            name = ("out_channels", "in_channels")[d] if d < 2 else f"kernel_size[{d - 2}]"
            raise ValueError(
                f"slice_pack: {name} is {part}, expected 1 to {whole} for a weight of shape {tuple(shape)}"
            )
    return size


def _starts(whole: Sequence[int], part: Sequence[int]) -> tuple[int, ...]:
    """Return where a slice begins: in front for channels, so that its centre is that of the kernel for the rest."""
    return (0, 0, *((w - p) // 2 for w, p in zip(whole[2:], part[2:], strict=True)))


def _inside(whole: Sequence[int], part: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(_starts(whole, part), part, strict=True))


# --- the compiled kernels -----------------------------------------------------------------------------------


def _in_memory_order(sizes: Sequence[int], layout: int) -> list[int]:
    return list(sizes) if layout == 0 else [sizes[0], *sizes[2:], sizes[1]]


def _box(whole: Sequence[int], part: Sequence[int], layout: int) -> tuple[list[int], list[int], list[int]]:
    return (
        _in_memory_order(whole, layout),
        _in_memory_order(_starts(whole, part), layout),
        _in_memory_order(part, layout),
    )


def _empty(size: Sequence[int], like: Tensor, layout: int) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=FORMATS[layout])


def _native_pack(weight: Tensor, size: Sequence[int], layout: int) -> Tensor:
    (laid_out,) = as_laid_out([weight], layout)
    part = _empty(size, weight, layout)
    module, where = native.where(weight.device)
    module.slice_pack(weight.itemsize, laid_out.data_ptr(), part.data_ptr(), *_box(weight.shape, size, layout), *where)
    return part


def _native_unpack(part: Tensor, shape: Sequence[int], layout: int) -> Tensor:
    (laid_out,) = as_laid_out([part], layout)
    whole = _empty(shape, part, layout)
    module, where = native.where(part.device)
    module.slice_unpack(part.itemsize, laid_out.data_ptr(), whole.data_ptr(), *_box(shape, part.shape, layout), *where)
    return whole


# --- gradients ----------------------------------------------------------------------------------------------
# Each of the two operators is the gradient of the other.


def _pack(weight: Tensor, size: Sequence[int]) -> Tensor:
    """Slice, or copy where the slice is the whole."""
    if torch.compiler.is_compiling() or unsupported_reason(weight) is not None:
        return slice_pack_reference(weight, size)
    return _SlicePack.apply(weight, size)  # type: ignore[no-any-return, no-untyped-call]


def _unpack(part: Tensor, shape: Sequence[int], layout: int) -> Tensor:
    reason = unsupported_reason(part)
    if torch.compiler.is_compiling():
        if reason is None:
            return torch.ops.hwnas.slice_unpack(part, shape, layout)  # type: ignore[no-any-return]
        return slice_unpack_reference(part, shape, layout)
    if reason is not None:
        return slice_unpack_reference(part, shape, layout)
    if part.requires_grad and torch.is_grad_enabled():
        return _SliceUnpack.apply(part, shape, layout)  # type: ignore[no-any-return, no-untyped-call]
    return _native_unpack(part, shape, layout)


class _SlicePack(torch.autograd.Function):
    """The eager path: the compiled kernel without the dispatcher, which costs more than a small weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, size: Sequence[int]) -> Tensor:
        ctx.shape, ctx.layout = weight.shape, layout_of(weight)
        return _native_pack(weight, size, ctx.layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _unpack(grad, ctx.shape, ctx.layout), None


class _SliceUnpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, shape: Sequence[int], layout: int) -> Tensor:
        ctx.size = part.shape
        return _native_unpack(part, shape, layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _pack(grad, ctx.size), None, None


# --- the operators, for torch.compile -----------------------------------------------------------------------

LIBRARY.define("slice_pack(Tensor weight, SymInt[] size) -> Tensor")
LIBRARY.define("slice_unpack(Tensor part, SymInt[] shape, int layout) -> Tensor")


def _op_pack(weight: Tensor, size: Sequence[int]) -> Tensor:
    layout = layout_of(weight)
    if unsupported_reason(weight) is None:
        return _native_pack(weight, size, layout)
    return _empty(size, weight, layout).copy_(slice_pack_reference(weight, size))


def _op_pack_fake(weight: Tensor, size: Sequence[int]) -> Tensor:
    return _empty(size, weight, layout_of(weight))


def _op_unpack(part: Tensor, shape: Sequence[int], layout: int) -> Tensor:
    if unsupported_reason(part) is None:
        return _native_unpack(part, shape, layout)
    return _empty(shape, part, layout).copy_(slice_unpack_reference(part, shape, layout))


def _op_unpack_fake(part: Tensor, shape: Sequence[int], layout: int) -> Tensor:
    return _empty(shape, part, layout)


def _op_pack_context(ctx: Any, inputs: tuple[Tensor, Sequence[int]], output: Tensor) -> None:
    weight, _ = inputs
    ctx.shape, ctx.layout = weight.shape, layout_of(weight)


def _op_pack_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.hwnas.slice_unpack(grad, ctx.shape, ctx.layout), None


def _op_unpack_context(ctx: Any, inputs: tuple[Tensor, Sequence[int], int], output: Tensor) -> None:
    ctx.size = inputs[0].shape


def _op_unpack_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.hwnas.slice_pack(grad, ctx.size), None, None


for _name, _kernel, _fake, _autograd, _context in (
    ("slice_pack", _op_pack, _op_pack_fake, _op_pack_autograd, _op_pack_context),
    ("slice_unpack", _op_unpack, _op_unpack_fake, _op_unpack_autograd, _op_unpack_context),
):
    LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"hwnas::{_name}", _fake, lib=LIBRARY)
    torch.library.register_autograd(f"hwnas::{_name}", _autograd, setup_context=_context, lib=LIBRARY)
