"""Batch normalisation and the activation behind it in one: ``out = clamp(batch_norm(x), low, high)``."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.errors import UnsupportedError
from hwnas.kernels import native
from hwnas.kernels.layout import layout_of
from hwnas.kernels.norm_passes import Norms, Wanted, native_backward, native_forward


class BNClamp(NamedTuple):
    """A normalised and clamped tensor, and the statistics that it was normalised with.

    Attributes
    ----------
    out : Tensor, shape (N, C, ...)
        The result.
    mean, variance : Tensor, shape (C,)
        Of each channel, in float64 and without gradients; the variance is biased.
    """

    out: Tensor
    mean: Tensor
    variance: Tensor


class _Bounds(NamedTuple):
    eps: float
    low: float
    high: float


def bn_clamp(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    eps: float = 1e-5,
    low: float = -math.inf,
    high: float = math.inf,
) -> BNClamp:
    """Normalise each channel with the statistics of the batch, scale, shift and clamp it.

    That is a batch normalisation and the ReLU (``low=0``) or ReLU6 (``low=0, high=6``) behind it, which in PyTorch
    writes and reads the tensor twice more in each direction, and keeps it twice. It has no state: running statistics
    can be updated with what it returns. The compiled kernel is used where it can be (see `unsupported_reason`), plain
    PyTorch elsewhere. Results and gradients are the same from run to run and for every number of threads. Gradients of
    gradients are supported.

    Parameters
    ----------
    x : Tensor, shape (N, C, ...)
        What to normalise; any strides are allowed.
    gamma, beta : Tensor, shape (C,), optional
        Scale and shift; ones and zeros unless given.
    eps : float, default 1e-5
        Added to the variances, at least 0.
    low, high : float, optional
        Bounds of the result. The gradient of what reaches them is zero. NaN passes.

    Returns
    -------
    BNClamp
        The result, in the memory format of `x` (contiguous or channels-last), and the statistics.

    Raises
    ------
    UnsupportedError
        An argument is not a floating-point tensor.
    ValueError
        A shape, a device or a bound does not fit; a channel has one value.

    References
    ----------
    Rota Bulò, Porzi, Kontschieder: In-Place Activated BatchNorm for Memory-Optimized Training of DNNs, CVPR 2018, for
    keeping the input of both only.
    """
    bounds = _Bounds(float(eps), float(low), float(high))
    _check(x, gamma, beta, bounds)
    if unsupported_reason(x, gamma, beta) is not None:
        if not torch.compiler.is_compiling():
            native.warn_if_missing(x.device)
        return bn_clamp_reference(x, gamma, beta, eps=eps, low=low, high=high)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (x, gamma, beta)):
        return BNClamp(*_BNClamp.apply(x, gamma, beta, bounds))  # type: ignore[no-untyped-call]
    return _native_forward(x, gamma, beta, bounds, layout_of(x))


def bn_clamp_reference(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    eps: float = 1e-5,
    low: float = -math.inf,
    high: float = math.inf,
) -> BNClamp:
    """Compute `bn_clamp` in plain PyTorch: what the kernel means, and what runs where there is none.

    Parameters
    ----------
    x, gamma, beta, eps, low, high
        See `bn_clamp`.

    Returns
    -------
    BNClamp
        The result and the statistics.
    """
    accumulator = native.accumulator(x.dtype)
    gamma, beta = (None if each is None else each.to(accumulator) for each in (gamma, beta))
    y, mean, inverse = torch.native_batch_norm(x.to(accumulator), gamma, beta, None, None, True, 0.0, eps)
    variance = (inverse.detach().double() ** -2 - eps).clamp_min(0)
    bounded = low > -math.inf or high < math.inf
    return BNClamp((F.hardtanh(y, low, high) if bounded else y).to(x.dtype), mean.detach().double(), variance)


def unsupported_reason(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> str | None:
    """Say why the compiled kernel cannot take these arguments. Plain PyTorch then does.

    Parameters
    ----------
    x : Tensor, shape (N, C, ...)
        What to normalise.
    gamma, beta : Tensor, shape (C,), optional
        Scale and shift.

    Returns
    -------
    str or None
        The reason, None when the kernel can be used.
    """
    if x.dtype not in native.DTYPE_CODES:
        return f"there is no kernel for {x.dtype}"
    if torch.compiler.is_compiling():
        return "the program is being compiled, and compilers fuse this themselves"
    if reason := native.no_address_reason([x, *(each for each in (gamma, beta) if each is not None)]):
        return reason
    return native.unavailable_reason(x.device)


def _check(x: Tensor, gamma: Tensor | None, beta: Tensor | None, bounds: _Bounds) -> None:
    """Raise an error that names the argument at fault."""
    for name, each in (("x", x), ("gamma", gamma), ("beta", beta)):
        if each is None and name != "x":
            continue
        if not isinstance(each, Tensor):
            raise UnsupportedError(f"bn_clamp: {name} is a {type(each).__name__}, expected a Tensor")
        if not each.is_floating_point():
            raise UnsupportedError(
                f"bn_clamp: {name} is {each.dtype}, expected a floating-point type; convert it with .float()"
            )
        if each.device != x.device:
            raise ValueError(f"bn_clamp: {name} is on {each.device} and x on {x.device}; move them to one device")
        if name != "x" and each.shape != x.shape[1:2]:
            raise ValueError(
                f"bn_clamp: {name} has shape {tuple(each.shape)}, expected {tuple(x.shape[1:2])}: "
                "an entry for each channel of x"
            )
        if each.dim() < 2 and name == "x":
            raise ValueError(f"bn_clamp: x has shape {tuple(x.shape)}, expected (N, C, ...)")
    if x.numel() == x.shape[1]:
        raise ValueError(
            f"bn_clamp: x has one value for each channel, shape {tuple(x.shape)}, which cannot be normalised; use "
            "larger batches"
        )
    if not bounds.eps >= 0:
        raise ValueError(f"bn_clamp: eps is {bounds.eps}, expected at least 0")
    if not bounds.low < bounds.high:
        raise ValueError(f"bn_clamp: low is {bounds.low} and high {bounds.high}, expected low < high")


# --- the compiled kernels, which are those of mixed_bn_sum for one tensor with the weight one -----------------


def _norms(gamma: Tensor | None, beta: Tensor | None, eps: float) -> Norms:
    return Norms([True], [eps], *(None if each is None else each[None] for each in (gamma, beta)))


def _native_forward(x: Tensor, gamma: Tensor | None, beta: Tensor | None, bounds: _Bounds, layout: int) -> BNClamp:
    one = x.new_ones(1, dtype=native.accumulator(x.dtype))
    out, means, variances = native_forward(one, [x], _norms(gamma, beta, bounds.eps), layout, bounds[1:])
    return BNClamp(out, means[0], variances[0])


def _native_backward(
    grad: Tensor,
    x: Tensor,
    affine: tuple[Tensor | None, Tensor | None],
    statistics: tuple[Tensor, Tensor],
    bounds: _Bounds,
    wanted: tuple[bool, bool, bool],
    layout: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    one = x.new_ones(1, dtype=native.accumulator(x.dtype))
    mean, variance = statistics
    needed = Wanted(False, wanted[:1], *wanted[1:], layout)
    norms = _norms(*affine, bounds.eps)
    found = native_backward(grad, one, [x], (mean[None], variance[None]), norms, needed, bounds[1:])
    grad_gamma, grad_beta = (None if each is None else each[0] for each in (found.gamma, found.beta))
    return found.tensors[0], grad_gamma, grad_beta


class _BNClamp(torch.autograd.Function):
    """The compiled kernel with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor | None, beta: Tensor | None, bounds: _Bounds
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.bounds, ctx.layout = bounds, layout_of(x)
        found = _native_forward(x, gamma, beta, bounds, ctx.layout)
        ctx.save_for_backward(x, gamma, beta, found.mean, found.variance)
        ctx.mark_non_differentiable(found.mean, found.variance)
        return found.out, found.mean, found.variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, gamma, beta, mean, variance = ctx.saved_tensors
        grad, wanted, bounds = grads[0], ctx.needs_input_grad[:3], ctx.bounds
        # Gradients are enabled here only under create_graph=True: somebody wants to differentiate what follows.
        if torch.is_grad_enabled() or unsupported_reason(grad, gamma, beta) is not None:
            return *_reference_backward(grad, (x, gamma, beta), bounds, wanted), None
        return *_native_backward(grad, x, (gamma, beta), (mean, variance), bounds, wanted, ctx.layout), None


def _reference_backward(
    grad: Tensor, inputs: tuple[Tensor | None, ...], bounds: _Bounds, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Differentiate the reference, in such a way that the result can be differentiated where that was asked for."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not create_graph:
            inputs = tuple(
                None if each is None else each.detach().requires_grad_(need)
                for each, need in zip(inputs, wanted, strict=True)
            )
        x, gamma, beta = inputs
        assert x is not None
        out = bn_clamp_reference(x, gamma, beta, **bounds._asdict()).out
        needed = [each for each, need in zip(inputs, wanted, strict=True) if need and each is not None]
        found = iter(torch.autograd.grad(out, needed, grad, create_graph=create_graph))
    return [next(found) if need else None for need in wanted]
