"""Candidates that end with a batch normalisation, which a mixture computes for all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook

from hwnas.supernet.fused import is_observed
from hwnas.supernet.fused_sequence import modules_in_order, run_in_order
from hwnas.supernet.sharing import SharedResults


class BeforeNorm(NamedTuple):
    """What a candidate gives out before its last batch normalisation, which is still to come."""

    y: Any
    norm: _BatchNorm

    def finish(self) -> Any:
        """Run the batch normalisation."""
        return self.norm(self.y)


def last_layer(candidate: nn.Module) -> nn.Module:
    """Return the layer that computes the output of a candidate, as far as it is made of `torch.nn.Sequential`."""
    while modules := modules_in_order(candidate):
        candidate = modules[-1]
    return candidate


def whole_reason(candidate: nn.Module) -> str | None:
    """Say why the last batch normalisation of a candidate cannot be left to somebody else.

    Parameters
    ----------
    candidate : torch.nn.Module
        Ends with a batch normalisation, or does not.

    Returns
    -------
    str or None
        The reason, None when `run_before_norm` may be used. It depends on modes and hooks of the moment.
    """
    if _has_any_global_hook():
        return "there are hooks on all modules"
    part = candidate
    while modules := modules_in_order(part):
        if is_observed(part):
            return "there are hooks on it"
        part = modules[-1]
    if not isinstance(part, _BatchNorm):
        return f"it ends with a {type(part).__name__}"
    if is_observed(part):
        return "there are hooks on its batch normalisation"
    if type(part).forward is not _BatchNorm.forward:
        return f"its batch normalisation, a {type(part).__name__}, has a forward pass of its own"
    if part.affine:
        return "its batch normalisation has scale and shift"
    if not part.training:
        return "its batch normalisation is in evaluation mode"
    if part.running_mean is None or part.running_var is None:
        return "its batch normalisation has no running statistics"
    if part.momentum is None:
        return "the statistics of its batch normalisation are cumulative averages (momentum=None)"
    return None


def run_before_norm(candidate: nn.Module, x: Any, shared: SharedResults | None = None) -> BeforeNorm:
    """Run a candidate of which `whole_reason` says nothing, but for its last batch normalisation.

    Parameters
    ----------
    candidate : torch.nn.Module
        As `whole_reason` takes it.
    x : Any
        What it reads.
    shared : SharedResults, optional
        What others have computed of it.
    """
    while modules := modules_in_order(candidate):
        if len(modules) > 1:
            x, shared = run_in_order(modules[:-1], x, shared, modules[-1]), None
        candidate = modules[-1]
    assert isinstance(candidate, _BatchNorm)
    return BeforeNorm(x, candidate)


def mismatch(norm: _BatchNorm, y: Tensor) -> str | None:
    """Say why a batch normalisation does not take a tensor as a kernel does, None when it does."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    if mean.shape != y.shape[1:2]:
        return f"a batch normalisation of {mean.shape[0]} channels meets shape {tuple(y.shape)}"
    if mean.device != y.device:
        return f"running statistics on {mean.device} meet a tensor on {y.device}"
    if mean.dtype != variance.dtype or mean.dtype not in (y.dtype, torch.float32):
        return f"running statistics are {mean.dtype} and {variance.dtype}, the tensor {y.dtype}"
    return None


def update_statistics(
    norms: Sequence[_BatchNorm], means: Sequence[Tensor], variances: Sequence[Tensor], n: int
) -> None:
    """Update running statistics as the batch normalisations would do themselves.

    Parameters
    ----------
    norms : sequence of torch.nn.modules.batchnorm._BatchNorm
        All different, with running statistics and a momentum.
    means, variances : sequence of Tensor, shape (C,)
        Of the batch, for each of them; the variances are biased.
    n : int
        Number of values of each channel, at least 2.
    """
    with torch.no_grad():
        for momentum in {norm.momentum for norm in norms}:
            same = [k for k, norm in enumerate(norms) if norm.momentum == momentum]
            for running, batch, factor in (
                ([norms[k].running_mean for k in same], means, 1.0),
                ([norms[k].running_var for k in same], variances, n / (n - 1)),
            ):
                found = torch.stack([batch[k] for k in same]) * factor
                torch._foreach_lerp_(running, found.to(running[0]).unbind(), momentum)  # type: ignore[arg-type]
        counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
        torch._foreach_add_(counts, 1)
