"""Weighted sum of batch-normalised candidates, fused: ``out = sum_k weights[k] * batch_norm(tensors[k])``."""

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
from hwnas.kernels.norm_passes import Gradients, Norms, Wanted, native_backward, native_forward


class MixedBNSum(NamedTuple):
    """A weighted sum of normalised tensors, and the statistics that they were normalised with.

    Attributes
    ----------
    out : Tensor, shape (N, C, ...)
        The weighted sum.
    means, variances : Tensor, shape (K, C)
        Of each channel of each tensor, in float64 and without gradients; the variances are biased. Zero in the rows of
        tensors that are not normalised.
    """

    out: Tensor
    means: Tensor
    variances: Tensor


def mixed_bn_sum(
    weights: Tensor,
    tensors: Sequence[Tensor],
    normalised: Sequence[bool],
    *,
    eps: float | Sequence[float] = 1e-5,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
) -> MixedBNSum:
    """Normalise each channel of tensors with the statistics of the batch, and sum them with a weight for each.

    It has no state: running statistics can be updated with what it returns. The compiled kernel is used where it can
    be (see `unsupported_reason`), plain PyTorch elsewhere. Statistics are accumulated about a value near the mean, so
    they are exact for means far larger than the deviation. Results and gradients are the same from run to run and for
    every number of threads. Gradients of gradients are supported.

    Parameters
    ----------
    weights : Tensor, shape (K,)
        Mixture weights, of any floating-point type.
    tensors : sequence of K Tensor, each of shape (N, C, ...)
        What to mix, K >= 1: floating-point tensors of one shape, on the device of `weights`. Different types are
        promoted, different strides are allowed.
    normalised : sequence of K bool
        Which of them are normalised; the others are added as they are.
    eps : float or sequence of K float
        Added to the variances, at least 0.
    gamma, beta : Tensor, shape (K, C), optional
        Scale and shift of what is normalised; ones and zeros unless given. The other rows have no effect.

    Returns
    -------
    MixedBNSum
        The weighted sum, in the memory format of the first tensor (contiguous or channels-last), and the statistics.

    Raises
    ------
    UnsupportedError
        An argument is not a floating-point tensor.
    ValueError
        There are no tensors; a number, a shape or a device does not match; a channel that is normalised has one value.

    References
    ----------
    Ioffe, Szegedy: Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift, ICML
    2015.
    """
    tensors = tuple(tensors)
    count = len(tensors)
    many = [float(eps)] * count if isinstance(eps, int | float) else [float(value) for value in eps]
    norms = Norms([bool(each) for each in normalised], many, gamma, beta)
    _check(weights, tensors, norms)
    reason = unsupported_reason(weights, tensors, gamma, beta)
    if torch.compiler.is_compiling():
        if reason is None:
            return MixedBNSum(*torch.ops.hwnas.mixed_bn_sum(weights, tensors, *norms))
        return mixed_bn_sum_reference(weights, tensors, norms.normalised, eps=many, gamma=gamma, beta=beta)
    if reason is not None:
        native.warn_if_missing(tensors[0].device)
        return mixed_bn_sum_reference(weights, tensors, norms.normalised, eps=many, gamma=gamma, beta=beta)
    inputs = (weights, *tensors, *(each for each in (gamma, beta) if each is not None))
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return MixedBNSum(*_MixedBNSum.apply(norms.normalised, many, gamma, beta, weights, *tensors))  # type: ignore[no-untyped-call]
    return MixedBNSum(*native_forward(weights, tensors, norms, layout_of(tensors[0])))


def mixed_bn_sum_reference(
    weights: Tensor,
    tensors: Sequence[Tensor],
    normalised: Sequence[bool],
    *,
    eps: float | Sequence[float] = 1e-5,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
) -> MixedBNSum:
    """Compute `mixed_bn_sum` in plain PyTorch: what the kernel means, and what runs where there is none.

    The weight of a tensor is part of the scale of its normalisation, which saves a pass over memory.

    Parameters
    ----------
    weights, tensors, normalised, eps, gamma, beta
        See `mixed_bn_sum`.

    Returns
    -------
    MixedBNSum
        The weighted sum and the statistics.
    """
    count, channels = len(tensors), tensors[0].shape[1]
    many = [eps] * count if isinstance(eps, int | float) else list(eps)
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in tensors))
    accumulator = native.accumulator(dtype)
    total, means, variances = None, [], []
    for k, (weight, x) in enumerate(zip(weights.to(accumulator).unbind(), tensors, strict=True)):
        wide = x.to(accumulator)
        mean = variance = weight.new_zeros(channels)
        if normalised[k]:
            # Contiguous: batch_norm is slow with strides of zero.
            scale = weight.repeat(channels) if gamma is None else weight * gamma[k].to(accumulator)
            shift = None if beta is None else weight * beta[k].to(accumulator)
            term, mean, inverse = torch.native_batch_norm(wide, scale, shift, None, None, True, 0.0, many[k])
            variance = (inverse**-2 - many[k]).clamp_min(0)
        else:
            term = weight * wide
        total = term if total is None else total + term
        means.append(mean.detach())
        variances.append(variance.detach())
    assert total is not None
    return MixedBNSum(total.to(dtype), torch.stack(means).double(), torch.stack(variances).double())


def unsupported_reason(
    weights: Tensor, tensors: Sequence[Tensor], gamma: Tensor | None = None, beta: Tensor | None = None
) -> str | None:
    """Say why the compiled kernel cannot take these arguments. Plain PyTorch then does.

    Parameters
    ----------
    weights : Tensor, shape (K,)
        Mixture weights.
    tensors : sequence of K Tensor, each of shape (N, C, ...)
        What to mix.
    gamma, beta : Tensor, shape (K, C), optional
        Scale and shift.

    Returns
    -------
    str or None
        The reason, None when the kernel can be used.
    """
    first = tensors[0]
    if first.dtype not in native.DTYPE_CODES:
        return f"there is no kernel for {first.dtype}"
    for x in tensors:
        if x.dtype != first.dtype:
            return f"the tensors are of different types, {x.dtype} and {first.dtype}"
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting():
            return "the program is being exported, and other programs do not know the operator"
    else:
        others = (each for each in (gamma, beta) if each is not None)
        if reason := native.no_address_reason((*tensors, weights, *others)):
            return reason
    # The weights are counted: in a backward pass the gradient is among the tensors.
    count = weights.numel()
    if first.device.type == "cuda" and native.CUDA is not None and count > native.CUDA.MIXED_BN_SUM_MAX_COUNT:
        return f"the CUDA kernel takes at most {native.CUDA.MIXED_BN_SUM_MAX_COUNT} tensors, got {count}"
    return native.unavailable_reason(first.device)


def _check(weights: Tensor, tensors: Sequence[Tensor], norms: Norms) -> None:
    """Raise an error that names the argument at fault."""
    count = len(tensors)
    if count == 0:
        raise ValueError("mixed_bn_sum: tensors is empty, expected at least one tensor to mix")
    named = [("weights", weights), *((f"tensors[{k}]", x) for k, x in enumerate(tensors))]
    named += [(name, x) for name, x in (("gamma", norms.gamma), ("beta", norms.beta)) if x is not None]
    for name, x in named:
        if not isinstance(x, Tensor):
            raise UnsupportedError(f"mixed_bn_sum: {name} is a {type(x).__name__}, expected a Tensor")
        if not x.is_floating_point():
            raise UnsupportedError(
                f"mixed_bn_sum: {name} is {x.dtype}, expected a floating-point type; convert it with .float()"
            )
        if x.device != tensors[0].device:
            raise ValueError(
                f"mixed_bn_sum: {name} is on {x.device} and tensors[0] on {tensors[0].device}; move them to one device"
            )
    shape = tensors[0].shape
    if len(shape) < 2:
        raise ValueError(f"mixed_bn_sum: tensors[0] has shape {tuple(shape)}, expected (N, C, ...)")
    for k, x in enumerate(tensors):
        if x.shape != shape:
            raise ValueError(
                f"mixed_bn_sum: tensors[{k}] has shape {tuple(x.shape)} and tensors[0] {tuple(shape)}; "
                "the shapes must be equal (there is no broadcasting)"
            )
    if weights.dim() != 1 or weights.shape[0] != count:
        raise ValueError(
            f"mixed_bn_sum: weights has shape {tuple(weights.shape)}, expected ({count},): one for each tensor"
        )
    for name, table in (("gamma", norms.gamma), ("beta", norms.beta)):
        if table is not None and table.shape != (count, shape[1]):
            raise ValueError(
                f"mixed_bn_sum: {name} has shape {tuple(table.shape)}, expected {(count, int(shape[1]))}: "
                "a row for each tensor, an entry for each channel"
            )
    for name, listed in (("normalised", norms.normalised), ("eps", norms.eps)):
        if len(listed) != count:
            raise ValueError(f"mixed_bn_sum: {name} has {len(listed)} entries, expected {count}, one for each tensor")
    for k, eps in enumerate(norms.eps):
        if not eps >= 0:
            raise ValueError(f"mixed_bn_sum: eps of tensors[{k}] is {eps}, expected at least 0")
    if any(norms.normalised) and tensors[0].numel() == shape[1]:
        raise ValueError(
            f"mixed_bn_sum: the tensors have one value for each channel, shape {tuple(shape)}, which cannot be "
            "normalised; use larger batches"
        )


# --- gradients ----------------------------------------------------------------------------------------------


def _reference_backward(
    grad: Tensor, weights: Tensor, tensors: Sequence[Tensor | None], norms: Norms, wanted: Wanted
) -> Gradients:
    """Compute the gradients by differentiable operations; statistics are taken from the tensors again."""
    accumulator = native.accumulator(grad.dtype)
    wide = grad.to(accumulator)
    dims = [dim for dim in range(grad.dim()) if dim != 1]
    per_channel = [-1 if dim == 1 else 1 for dim in range(grad.dim())]
    sum_grad = wide.sum(dims)
    grad_tensors: list[Tensor | None] = []
    of_weights, of_gamma, of_beta = [], [], []
    for k, (weight, x) in enumerate(zip(weights.to(accumulator).unbind(), tensors, strict=True)):
        if not norms.normalised[k]:
            grad_tensors.append(weight * wide if wanted.tensors[k] else None)
            of_weights.append(weight if x is None else (wide * x.to(accumulator)).sum())
            of_gamma.append(torch.zeros_like(sum_grad))
            of_beta.append(torch.zeros_like(sum_grad))
            continue
        assert x is not None
        gamma = torch.ones_like(sum_grad) if norms.gamma is None else norms.gamma[k].to(accumulator)
        variance, mean = torch.var_mean(x.to(accumulator), dims, correction=0, keepdim=True)
        inverse = (variance + norms.eps[k]).rsqrt()
        unit = (x.to(accumulator) - mean) * inverse
        product = wide * unit
        slope = (weight * gamma).view(per_channel) * inverse
        centred = wide - wide.mean(dims, keepdim=True) - unit * product.mean(dims, keepdim=True)
        grad_tensors.append(slope * centred if wanted.tensors[k] else None)
        total = product.sum(dims)
        shifted = 0 if norms.beta is None else norms.beta[k].to(accumulator) * sum_grad
        of_weights.append((gamma * total + shifted).sum())
        of_gamma.append(weight * total)
        of_beta.append(weight * sum_grad)
    return Gradients(
        torch.stack(of_weights).to(weights.dtype) if wanted.weights else None,
        [
            None if x is None else x.to(grad.dtype).contiguous(memory_format=FORMATS[wanted.layout])
            for x in grad_tensors
        ],
        torch.stack(of_gamma).to(norms.gamma.dtype) if wanted.gamma and norms.gamma is not None else None,
        torch.stack(of_beta).to(norms.beta.dtype) if wanted.beta and norms.beta is not None else None,
    )


def _backward(
    grad: Tensor,
    weights: Tensor,
    tensors: Sequence[Tensor | None],
    statistics: tuple[Tensor, Tensor],
    norms: Norms,
    wanted: Wanted,
) -> Gradients:
    """Return gradients, None where not wanted; tensors that are not needed for them may be None."""
    # Gradients are enabled here only under create_graph=True: somebody wants to differentiate what follows.
    present = [x for x in tensors if x is not None]
    if torch.is_grad_enabled() or unsupported_reason(weights, (grad, *present), norms.gamma, norms.beta) is not None:
        return _reference_backward(grad, weights, tensors, norms, wanted)
    return native_backward(grad, weights, tensors, statistics, norms, wanted)


def _is_read(norms: Norms, need_weights: bool) -> list[bool]:
    """Return which tensors the backward pass reads."""
    return [each or need_weights for each in norms.normalised]


class _MixedBNSum(torch.autograd.Function):
    """The eager path: the compiled kernel without the dispatcher."""

    @staticmethod
    def forward(
        ctx: Any,
        normalised: Sequence[bool],
        eps: Sequence[float],
        gamma: Tensor | None,
        beta: Tensor | None,
        weights: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.norms = normalised, eps
        ctx.layout = layout_of(tensors[0])
        norms = Norms(normalised, eps, gamma, beta)
        out, means, variances = native_forward(weights, tensors, norms, ctx.layout)
        is_read = _is_read(norms, ctx.needs_input_grad[4])
        kept = (x if read else None for x, read in zip(tensors, is_read, strict=True))
        ctx.save_for_backward(gamma, beta, weights, means, variances, *kept)
        ctx.mark_non_differentiable(means, variances)
        return out, means, variances

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        gamma, beta, weights, means, variances, *tensors = ctx.saved_tensors
        _, _, need_gamma, need_beta, need_weights, *need_tensors = ctx.needs_input_grad
        wanted = Wanted(need_weights, need_tensors, need_gamma, need_beta, ctx.layout)
        found = _backward(
            grads[0], weights, tensors, (means, variances), Norms(ctx.norms[0], ctx.norms[1], gamma, beta), wanted
        )
        return None, None, found.gamma, found.beta, found.weights, *found.tensors


# --- the operator, for torch.compile ------------------------------------------------------------------------
# Gradients that are not wanted are left out of the list; an operator cannot return None, so an unwanted
# gradient of something else has no elements.

LIBRARY.define(
    "mixed_bn_sum(Tensor weights, Tensor[] tensors, bool[] normalised, float[] eps, Tensor? gamma, Tensor? beta) "
    "-> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "mixed_bn_sum_backward(Tensor grad, Tensor weights, Tensor[] tensors, Tensor means, Tensor variances, "
    "bool[] normalised, float[] eps, Tensor? gamma, Tensor? beta, bool need_weights, bool[] need_tensors, "
    "bool need_gamma, bool need_beta, int layout) -> (Tensor, Tensor[], Tensor, Tensor)"
)


def _op(weights: Tensor, tensors: Sequence[Tensor], *norms: Any) -> tuple[Tensor, Tensor, Tensor]:
    normalised, eps, gamma, beta = norms
    layout = layout_of(tensors[0])
    if unsupported_reason(weights, tensors, gamma, beta) is None:
        return native_forward(weights, tensors, Norms(*norms), layout)
    found = mixed_bn_sum_reference(weights, tensors, normalised, eps=eps, gamma=gamma, beta=beta)
    return found._replace(out=found.out.contiguous(memory_format=FORMATS[layout]))


def _op_fake(weights: Tensor, tensors: Sequence[Tensor], *norms: Any) -> tuple[Tensor, Tensor, Tensor]:
    out = torch.empty_like(*as_laid_out(tensors[:1], layout_of(tensors[0])))
    table = (len(tensors), tensors[0].shape[1])
    return out, out.new_empty(table, dtype=torch.float64), out.new_empty(table, dtype=torch.float64)


def _op_backward(
    grad: Tensor,
    weights: Tensor,
    tensors: Sequence[Tensor],
    means: Tensor,
    variances: Tensor,
    *rest: Any,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    norms, wanted = Norms(*rest[:4]), Wanted(*rest[4:])
    found = _backward(grad, weights, tensors, (means, variances), norms, wanted)
    empty = weights.new_empty
    return (
        empty(0) if found.weights is None else found.weights,
        [x for x in found.tensors if x is not None],
        empty(0) if found.gamma is None else found.gamma,
        empty(0) if found.beta is None else found.beta,
    )


def _op_backward_fake(
    grad: Tensor,
    weights: Tensor,
    tensors: Sequence[Tensor],
    means: Tensor,
    variances: Tensor,
    *rest: Any,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    norms, wanted = Norms(*rest[:4]), Wanted(*rest[4:])
    empty = weights.new_empty
    return (
        empty(weights.shape if wanted.weights else 0),
        [torch.empty_like(*as_laid_out([grad], wanted.layout)) for need in wanted.tensors if need],
        torch.empty_like(norms.gamma) if wanted.gamma and norms.gamma is not None else empty(0),
        torch.empty_like(norms.beta) if wanted.beta and norms.beta is not None else empty(0),
    )


def _op_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    weights, tensors, normalised, eps, gamma, beta = inputs
    ctx.norms = normalised, eps
    ctx.wanted = Wanted(
        weights.requires_grad,
        [x.requires_grad for x in tensors],
        gamma is not None and gamma.requires_grad,
        beta is not None and beta.requires_grad,
        layout_of(tensors[0]),
    )
    ctx.save_for_backward(weights, gamma, beta, *output[1:], *tensors)
    ctx.mark_non_differentiable(*output[1:])


def _op_autograd(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    weights, gamma, beta, means, variances, *tensors = ctx.saved_tensors
    norms = Norms(ctx.norms[0], ctx.norms[1], gamma, beta)
    wanted: Wanted = ctx.wanted
    if torch.is_grad_enabled():
        found = _reference_backward(grad, weights, tensors, norms, wanted)
        return found.weights, found.tensors, None, None, found.gamma, found.beta
    of_weights, needed, of_gamma, of_beta = torch.ops.hwnas.mixed_bn_sum_backward(
        grad, weights, tensors, means, variances, *norms, *wanted
    )
    rest = iter(needed)
    return (
        of_weights if wanted.weights else None,
        [next(rest) if need else None for need in wanted.tensors],
        None,
        None,
        of_gamma if wanted.gamma else None,
        of_beta if wanted.beta else None,
    )


LIBRARY.impl("mixed_bn_sum", _op, "CompositeExplicitAutograd")
LIBRARY.impl("mixed_bn_sum_backward", _op_backward, "CompositeExplicitAutograd")
torch.library.register_fake("hwnas::mixed_bn_sum", _op_fake, lib=LIBRARY)
torch.library.register_fake("hwnas::mixed_bn_sum_backward", _op_backward_fake, lib=LIBRARY)
torch.library.register_autograd("hwnas::mixed_bn_sum", _op_autograd, setup_context=_op_setup_context, lib=LIBRARY)
