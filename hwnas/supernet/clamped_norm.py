"""Batch normalisation together with the activation behind it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from hwnas.kernels import bn_clamp
from hwnas.kernels.bn_clamp import unsupported_reason
from hwnas.supernet.fused import is_observed

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# Elements from which the kernel is faster than PyTorch's operators, most of all where the channels come first. Measured
# forward and backward on a CPU, running statistics included.
_FASTER_FROM = {True: 1 << 16, False: 1 << 17}


class Bounds(NamedTuple):
    """What an activation clamps to."""

    low: float
    high: float


def clamp_bounds(norm: nn.Module, activation: nn.Module) -> Bounds | None:
    """Return the bounds of an activation that can run together with the batch normalisation before it.

    Parameters
    ----------
    norm : torch.nn.Module
        Any module. It has to be a batch normalisation that nothing watches.
    activation : torch.nn.Module
        What follows. It has to be a ReLU, a ReLU6 or a Hardtanh that nothing watches.

    Returns
    -------
    Bounds or None
        None when one of them is something else.
    """
    if type(norm) not in _PLAIN and not hasattr(norm, "forward_clamped"):
        return None
    if type(activation) is nn.ReLU:
        bounds = Bounds(0.0, math.inf)
    elif isinstance(activation, nn.Hardtanh) and type(activation) in (nn.ReLU6, nn.Hardtanh):
        bounds = Bounds(activation.min_val, activation.max_val)
    else:
        return None
    return None if is_observed(norm) or is_observed(activation) else bounds


def run_clamped(norm: nn.Module, x: Any, bounds: Bounds) -> Any:
    """Run a batch normalisation, and clamp what it gives out.

    Parameters
    ----------
    norm : torch.nn.Module
        Of which `clamp_bounds` knows the activation.
    x : Any
        Its input.
    bounds : Bounds
        What to clamp to.
    """
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or type(norm) not in _PLAIN:
        forward: Any = norm.forward_clamped
        return forward(x, bounds)
    if not norm.training or norm.momentum is None:
        return clamped(norm(x), bounds)
    norm._check_input_dim(x)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    statistics = norm.running_mean, norm.running_var
    return clamped_batch_norm(x, statistics, (norm.weight, norm.bias), norm.momentum, norm.eps, bounds)


def clamped_batch_norm(
    x: Tensor,
    statistics: tuple[Tensor | None, Tensor | None],
    affine: tuple[Tensor | None, Tensor | None],
    momentum: float,
    eps: float,
    bounds: Bounds,
) -> Tensor:
    """Normalise with the statistics of the batch, and clamp.

    Parameters
    ----------
    x : Tensor, shape (N, C, ...)
        What to normalise.
    statistics : tuple of Tensor or None, shape (C,)
        Running mean and variance, updated in place.
    affine : tuple of Tensor or None, shape (C,)
        Scale and shift.
    momentum : float
        Of the running statistics.
    eps : float
        Added to the variance.
    bounds : Bounds
        What to clamp to.

    Returns
    -------
    Tensor, shape (N, C, ...)
        Between the bounds.
    """
    if not _is_fused(x, affine, statistics):
        return clamped(F.batch_norm(x, *statistics, *affine, True, momentum, eps), bounds)
    found = bn_clamp(x, *affine, eps=eps, low=bounds.low, high=bounds.high)
    mean, variance = statistics
    if mean is not None and variance is not None:
        n = x.numel() // x.shape[1]
        mean.lerp_(found.mean.to(mean.dtype), momentum)
        variance.lerp_((found.variance * (n / (n - 1))).to(variance.dtype), momentum)
    return found.out


def clamped(y: Tensor, bounds: Bounds) -> Tensor:
    """Clamp the output of a normalisation, of which nobody else knows."""
    if bounds == (0.0, math.inf):
        return F.relu(y, inplace=True)
    return F.hardtanh(y, bounds.low, bounds.high, inplace=True)


def _is_fused(
    x: Tensor, affine: tuple[Tensor | None, Tensor | None], statistics: tuple[Tensor | None, Tensor | None]
) -> bool:
    # The reason first: under a tracer nothing may depend on a size.
    if unsupported_reason(x, *affine) is not None or x.dim() < 2:
        return False
    channels, size = x.shape[1], x.numel()
    if size < _FASTER_FROM[x.is_contiguous()] or size == channels:
        return False
    # Of another shape or on another device they are an error, about which PyTorch speaks.
    return all(
        each is None or (each.shape == (channels,) and each.device == x.device) for each in (*affine, *statistics)
    )
