"""The passes of the compiled kernel for batch normalisation, which `mixed_bn_sum` and `bn_clamp` share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hwnas.kernels import native
from hwnas.kernels.layout import as_laid_out

UNCLAMPED = -math.inf, math.inf
"""Bounds of the sum; others need one tensor, normalised."""


class Norms(NamedTuple):
    """What is done to each of the tensors before it is added."""

    normalised: Sequence[bool]
    eps: Sequence[float]
    gamma: Tensor | None
    beta: Tensor | None


class Wanted(NamedTuple):
    """Which gradients are wanted, and the index into `FORMATS` of how the tensors lie in memory."""

    weights: bool
    tensors: Sequence[bool]
    gamma: bool
    beta: bool
    layout: int


class Gradients(NamedTuple):
    """What is not wanted is None."""

    weights: Tensor | None
    tensors: list[Tensor | None]
    gamma: Tensor | None
    beta: Tensor | None


def _extents(x: Tensor, layout: int) -> list[int]:
    """Return how a tensor of this layout lies in memory: what is outside, channels, what is inside of them."""
    n, channels = x.shape[:2]
    rest = x.numel() // (n * channels)
    return [n, channels, rest] if layout == 0 else [n * rest, channels, 1]


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _scalars(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else native.as_accumulators(x, dtype)


def _workspace(module: Any, like: Tensor, code: int, extents: list[int], count: int) -> list[Tensor]:
    """Return what the CUDA kernels put their sums in; the CPU kernels have their own."""
    if like.device.type != "cuda":
        return []
    return [like.new_empty(module.mixed_bn_sum_workspace(code, extents, count), dtype=torch.float64)]


def native_forward(
    weights: Tensor,
    tensors: Sequence[Tensor],
    norms: Norms,
    layout: int,
    bounds: tuple[float, float] = UNCLAMPED,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the forward pass of the compiled kernel where it can. Returns the result, means and variances."""
    dtype = tensors[0].dtype
    code = native.DTYPE_CODES[dtype]
    inputs = as_laid_out(tensors, layout)
    first = inputs[0]
    scalars = native.as_accumulators(weights, dtype)
    gamma, beta = _scalars(norms.gamma, dtype), _scalars(norms.beta, dtype)
    extents = _extents(first, layout)
    out = torch.empty_like(first)
    means, variances = (first.new_empty(len(inputs), extents[1], dtype=torch.float64) for _ in range(2))
    module, where = native.where(first.device)
    workspace = _workspace(module, first, code, extents, len(inputs))
    module.mixed_bn_sum(
        code,
        scalars.data_ptr(),
        [x.data_ptr() for x in inputs],
        norms.normalised,
        norms.eps,
        _address(gamma),
        _address(beta),
        extents,
        *bounds,
        out.data_ptr(),
        means.data_ptr(),
        variances.data_ptr(),
        *(space.data_ptr() for space in workspace),
        *where,
    )
    return out, means, variances


def native_backward(
    grad: Tensor,
    weights: Tensor,
    tensors: Sequence[Tensor | None],
    statistics: tuple[Tensor, Tensor],
    norms: Norms,
    wanted: Wanted,
    bounds: tuple[float, float] = UNCLAMPED,
) -> Gradients:
    """Run the backward pass of the compiled kernel; tensors that it does not read may be None."""
    dtype = grad.dtype
    code = native.DTYPE_CODES[dtype]
    (grad,) = as_laid_out([grad], wanted.layout)
    inputs = [None if x is None else as_laid_out([x], wanted.layout)[0] for x in tensors]
    scalars = native.as_accumulators(weights, dtype)
    gamma, beta = _scalars(norms.gamma, dtype), _scalars(norms.beta, dtype)
    extents = _extents(grad, wanted.layout)
    means, variances = statistics
    grad_tensors = [torch.empty_like(grad) if need else None for need in wanted.tensors]
    grad_weights = torch.empty_like(scalars) if wanted.weights else None
    grad_gamma, grad_beta = (
        torch.empty_like(means, dtype=scalars.dtype) if need else None for need in (wanted.gamma, wanted.beta)
    )
    module, where = native.where(grad.device)
    workspace = _workspace(module, grad, code, extents, len(inputs))
    module.mixed_bn_sum_backward(
        code,
        scalars.data_ptr(),
        [_address(x) for x in inputs],
        norms.normalised,
        norms.eps,
        _address(gamma),
        _address(beta),
        extents,
        *bounds,
        grad.data_ptr(),
        means.data_ptr(),
        variances.data_ptr(),
        [_address(x) for x in grad_tensors],
        _address(grad_weights),
        _address(grad_gamma),
        _address(grad_beta),
        *(space.data_ptr() for space in workspace),
        *where,
    )
    return Gradients(
        None if grad_weights is None else grad_weights.to(weights.dtype),
        grad_tensors,
        None if grad_gamma is None or norms.gamma is None else grad_gamma.to(norms.gamma.dtype),
        None if grad_beta is None or norms.beta is None else grad_beta.to(norms.beta.dtype),
    )
