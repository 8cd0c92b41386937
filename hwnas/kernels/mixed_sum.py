"""Weighted sum of candidates, in one pass over memory: ``out = sum_k weights[k] * tensors[k]``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hwnas.errors import UnsupportedError
from hwnas.kernels import native
from hwnas.kernels.layout import FORMATS, as_laid_out, layout_of
from hwnas.kernels.library import LIBRARY

# Gradient of the weights, gradients of the tensors.
_Gradients = tuple[Tensor | None, list[Tensor | None]]


class _Wanted(NamedTuple):
    """Which gradients are wanted, and the index into `FORMATS` of how the tensors lie in memory."""

    weights: bool
    tensors: Sequence[bool]
    layout: int


def mixed_sum(weights: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Sum tensors with a weight for each, fused into one pass forward and one pass backward.

    The compiled kernel is used where it can be (see `unsupported_reason`), plain PyTorch elsewhere; both
    accumulate in float32 (float64 for float64 data). The gradients are the same from run to run and for
    every number of threads. Values that are not finite propagate as in PyTorch. Gradients of gradients are
    supported.

    Parameters
    ----------
    weights : Tensor, shape (K,)
        Mixture weights, of any floating-point type.
    tensors : sequence of K Tensor, each of shape (...)
        What to mix, K >= 1: floating-point tensors of one shape, on the device of `weights`. Different types
        are promoted, different strides are allowed.

    Returns
    -------
    Tensor, shape (...)
        The weighted sum, in the memory format of the first tensor (contiguous or channels-last).

    Raises
    ------
    UnsupportedError
        An argument is not a floating-point tensor.
    ValueError
        There are no tensors; the number of weights, a shape or a device does not match.
    """
    tensors = tuple(tensors)
    if torch.compiler.is_compiling():
        _check(weights, tensors)
        if unsupported_reason(weights, tensors) is None:
            return torch.ops.hwnas.mixed_sum(weights, tensors)  # type: ignore[no-any-return]
        return mixed_sum_reference(weights, tensors)
    out = _at_once(weights, tensors)
    if out is None:
        addresses = _usual_addresses(weights, tensors)
        if addresses is None or weights.shape != (len(tensors),):
            _check(weights, tensors)
            if unsupported_reason(weights, tensors) is not None:
                native.warn_if_missing(tensors[0].device)
                return mixed_sum_reference(weights, tensors)
        out = _native_forward(weights, tensors, addresses)
    if torch.is_grad_enabled():
        for x in (weights, *tensors):
            if x.requires_grad:
                return _apply([out], weights, *tensors)  # type: ignore[no-any-return, no-untyped-call]
    return out


def mixed_sum_reference(weights: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Compute `mixed_sum` in plain PyTorch: what the kernel means, and what runs where there is none.

    Parameters
    ----------
    weights : Tensor, shape (K,)
        Mixture weights.
    tensors : sequence of K Tensor, each of shape (...)
        What to mix.

    Returns
    -------
    Tensor, shape (...)
        The weighted sum.
    """
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in tensors))
    accumulator = native.accumulator(dtype)
    scalars = weights.to(accumulator).unbind()
    total = scalars[0] * tensors[0].to(accumulator)
    for weight, x in zip(scalars[1:], tensors[1:], strict=True):
        total = total + weight * x.to(accumulator)
    return total.to(dtype)


def unsupported_reason(weights: Tensor, tensors: Sequence[Tensor]) -> str | None:
    """Say why the compiled kernel cannot take these arguments. Plain PyTorch then does.

    Parameters
    ----------
    weights : Tensor, shape (K,)
        Mixture weights.
    tensors : sequence of K Tensor, each of shape (...)
        What to mix.

    Returns
    -------
    str or None
        The reason, None when the kernel can be used.
    """
    first = tensors[0]
    if first.dtype not in native.DTYPE_CODES:
        return f"there is no kernel for {first.dtype}"
    dtype = first.dtype
    for x in tensors:
        if x.dtype != dtype:
            return f"the tensors are of different types, {x.dtype} and {dtype}"
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting():
            return "the program is being exported, and other programs do not know the operator"
    elif reason := native.no_address_reason((*tensors, weights)):
        return reason
    # The weights are counted: in a backward pass the gradient is among the tensors.
    count = weights.numel()
    if first.device.type == "cuda" and native.CUDA is not None and count > native.CUDA.MIXED_SUM_MAX_COUNT:
        return f"the CUDA kernel takes at most {native.CUDA.MIXED_SUM_MAX_COUNT} tensors, got {count}"
    return native.unavailable_reason(first.device)


def _at_once(weights: Tensor, tensors: tuple[Tensor, ...]) -> Tensor | None:
    """Compute the sum of the usual arguments in a single call into the compiled module; None for other ones."""
    if native.CPU is None or not native.LOOKS or native.switched_off() or native.watched_reason():
        return None
    out: Tensor | None = native.CPU.mixed_sum_of(tensors, weights, torch.empty_like, torch.get_num_threads())
    return out


def _usual_addresses(weights: Tensor, tensors: tuple[Tensor, ...]) -> list[int] | None:
    """Addresses of the usual arguments, on which `unsupported_reason` finds nothing, the weights' last; else None.

    The tensors are then also as `_check` wants them. To look at everything one by one takes longer than a small sum.
    """
    addresses = native.alike(tensors, weights)
    if addresses is None or native.watched_reason() or native.unavailable_reason(weights.device):
        return None
    few = native.CUDA is None or weights.numel() <= native.CUDA.MIXED_SUM_MAX_COUNT
    return addresses if few else None


def _check(weights: Tensor, tensors: Sequence[Tensor]) -> None:
    """Raise an error that names the argument at fault."""
    if len(tensors) == 0:
        raise ValueError("mixed_sum: tensors is empty, expected at least one tensor to mix")
    for name, x in (("weights", weights), *((f"tensors[{k}]", x) for k, x in enumerate(tensors))):
        if not isinstance(x, Tensor):
            raise UnsupportedError(f"mixed_sum: {name} is a {type(x).__name__}, expected a Tensor")
        if not x.is_floating_point():
            raise UnsupportedError(
                f"mixed_sum: {name} is {x.dtype}, expected a floating-point type; convert it with .float()"
            )
        if x.device != tensors[0].device:
            raise ValueError(
                f"mixed_sum: {name} is on {x.device} and tensors[0] on {tensors[0].device}; move them to one device"
            )
    if weights.dim() != 1 or weights.shape[0] != len(tensors):
        raise ValueError(
            f"mixed_sum: weights has shape {tuple(weights.shape)}, expected ({len(tensors)},): one for each tensor"
        )
    shape = tensors[0].shape
    for k, x in enumerate(tensors):
        if x.shape != shape:
            raise ValueError(
                f"mixed_sum: tensors[{k}] has shape {tuple(x.shape)} and tensors[0] {tuple(shape)}; "
                "the shapes must be equal (there is no broadcasting)"
            )


# --- the compiled kernels -----------------------------------------------------------------------------------


def _native_forward(weights: Tensor, tensors: Sequence[Tensor], addresses: list[int] | None) -> Tensor:
    """Call the kernel. Without addresses, tensors and weights are brought into the form that it takes."""
    if addresses is None:
        tensors = as_laid_out(tensors, layout_of(tensors[0]))
        weights = native.as_accumulators(weights, tensors[0].dtype)
        addresses = [x.data_ptr() for x in (*tensors, weights)]
    first = tensors[0]
    out = torch.empty_like(first)
    module, where = native.where(first.device)
    *inputs, scalars = addresses
    module.mixed_sum(native.DTYPE_CODES[first.dtype], scalars, inputs, out.data_ptr(), out.numel(), *where)
    return out


def _native_backward(
    grad: Tensor, weights: Tensor, tensors: Sequence[Tensor], wanted: _Wanted, addresses: list[int] | None
) -> _Gradients:
    """Call the kernel. Without addresses, tensors and weights are brought into the form that it takes."""
    scalars = weights
    if addresses is None:
        grad, *tensors = as_laid_out((grad, *tensors), wanted.layout)
        scalars = native.as_accumulators(weights, grad.dtype)
        addresses = [x.data_ptr() for x in (grad, *tensors, scalars)]
    code = native.DTYPE_CODES[grad.dtype]
    grad_weights = torch.empty_like(scalars) if wanted.weights else None
    grad_tensors = [torch.empty_like(grad) if need else None for need in wanted.tensors]
    module, where = native.where(grad.device)
    workspace: tuple[int, ...] = ()
    if grad.device.type == "cuda":
        size = module.mixed_sum_partials(code, grad.numel(), len(grad_tensors)) if wanted.weights else 0
        partials = scalars.new_empty(size)
        workspace = (partials.data_ptr(),)
    grad_address, *inputs, scalars_address = addresses
    module.mixed_sum_backward(
        code,
        grad_address,
        scalars_address,
        inputs,
        [0 if x is None else x.data_ptr() for x in grad_tensors],
        0 if grad_weights is None else grad_weights.data_ptr(),
        *workspace,
        grad.numel(),
        *where,
    )
    return None if grad_weights is None else grad_weights.to(weights.dtype), grad_tensors


# --- gradients ----------------------------------------------------------------------------------------------


def _reference_backward(grad: Tensor, weights: Tensor, tensors: Sequence[Tensor], wanted: _Wanted) -> _Gradients:
    accumulator = native.accumulator(grad.dtype)
    wide = grad.to(accumulator)
    grad_tensors = [
        (weight * wide).to(grad.dtype).contiguous(memory_format=FORMATS[wanted.layout]) if need else None
        for weight, need in zip(weights.to(accumulator).unbind(), wanted.tensors, strict=True)
    ]
    grad_weights = None
    if wanted.weights:
        grad_weights = torch.stack([(wide * x.to(accumulator)).sum() for x in tensors]).to(weights.dtype)
    return grad_weights, grad_tensors


def _backward(grad: Tensor, weights: Tensor, tensors: Sequence[Tensor], wanted: _Wanted) -> _Gradients:
    """Gradients of the weights and of the tensors, None where not wanted.

    `tensors` may be empty where the gradient of the weights is not wanted.
    """
    # Gradients are enabled here only under create_graph=True: somebody wants to differentiate what follows.
    if not torch.is_grad_enabled():
        addresses = _usual_addresses(weights, (grad, *tensors)) if layout_of(grad) == wanted.layout else None
        if addresses is not None or unsupported_reason(weights, (grad, *tensors)) is None:
            return _native_backward(grad, weights, tensors, wanted, addresses)
    return _reference_backward(grad, weights, tensors, wanted)


class _MixedSum(torch.autograd.Function):
    """The gradients of a sum that has been computed, without the dispatcher, which costs more than a small one."""

    @staticmethod
    def forward(ctx: Any, computed: list[Tensor], weights: Tensor, *tensors: Tensor) -> Tensor:
        # In a list: what is no argument by itself may be returned.
        (out,) = computed
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(weights, *tensors)
        else:
            ctx.save_for_backward(weights)
        ctx.layout = layout_of(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *tensors = ctx.saved_tensors
        _, need_weights, *need_tensors = ctx.needs_input_grad
        wanted = _Wanted(need_weights, need_tensors, ctx.layout)
        grad_weights, grad_tensors = _backward(grad, weights, tensors, wanted)
        return None, grad_weights, *grad_tensors


# What Function.apply does besides concerns torch.func, which has been ruled out when this is called.
_apply = super(torch.autograd.Function, _MixedSum).apply


# --- the operator, for torch.compile ------------------------------------------------------------------------
# Gradients that are not wanted are left out of the list; an operator cannot return None, so an unwanted
# gradient of the weights has no elements.

LIBRARY.define("mixed_sum(Tensor weights, Tensor[] tensors) -> Tensor")
LIBRARY.define(
    "mixed_sum_backward(Tensor grad, Tensor weights, Tensor[] tensors, bool need_weights, "
    "bool[] need_tensors, int layout) -> (Tensor, Tensor[])"
)


def _op(weights: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    layout = layout_of(tensors[0])
    if unsupported_reason(weights, tensors) is None:
        return _native_forward(weights, tensors, None)
    result = mixed_sum_reference(weights, tensors).to(tensors[0].dtype)
    return result.contiguous(memory_format=FORMATS[layout])


def _op_fake(weights: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    return torch.empty_like(*as_laid_out(tensors[:1], layout_of(tensors[0])))


def _op_backward(grad: Tensor, weights: Tensor, tensors: Sequence[Tensor], *wanted: Any) -> tuple[Tensor, list[Tensor]]:
    grad_weights, grad_tensors = _backward(grad, weights, tensors, _Wanted(*wanted))
    return (
        weights.new_empty(0) if grad_weights is None else grad_weights,
        [x for x in grad_tensors if x is not None],
    )


def _op_backward_fake(
    grad: Tensor,
    weights: Tensor,
    tensors: Sequence[Tensor],
    need_weights: bool,
    need_tensors: Sequence[bool],
    layout: int,
) -> tuple[Tensor, list[Tensor]]:
    return (
        weights.new_empty(weights.shape if need_weights else 0),
        [torch.empty_like(*as_laid_out([grad], layout)) for need in need_tensors if need],
    )


def _op_setup_context(ctx: Any, inputs: tuple[Tensor, list[Tensor]], output: Tensor) -> None:
    weights, tensors = inputs
    need_tensors = [x.requires_grad for x in tensors]
    ctx.wanted = _Wanted(weights.requires_grad, need_tensors, layout_of(tensors[0]))
    ctx.save_for_backward(weights, *(tensors if weights.requires_grad else ()))


def _op_autograd(ctx: Any, grad: Tensor) -> _Gradients:
    weights, *tensors = ctx.saved_tensors
    wanted: _Wanted = ctx.wanted
    if torch.is_grad_enabled():
        return _reference_backward(grad, weights, tensors, wanted)
    grad_weights, needed = torch.ops.hwnas.mixed_sum_backward(grad, weights, tensors, *wanted)
    rest = iter(needed)
    return (
        grad_weights if wanted.weights else None,
        [next(rest) if need else None for need in wanted.tensors],
    )


LIBRARY.impl("mixed_sum", _op, "CompositeExplicitAutograd")
LIBRARY.impl("mixed_sum_backward", _op_backward, "CompositeExplicitAutograd")
torch.library.register_fake("hwnas::mixed_sum", _op_fake, lib=LIBRARY)
torch.library.register_fake("hwnas::mixed_sum_backward", _op_backward_fake, lib=LIBRARY)
torch.library.register_autograd("hwnas::mixed_sum", _op_autograd, setup_context=_op_setup_context, lib=LIBRARY)
