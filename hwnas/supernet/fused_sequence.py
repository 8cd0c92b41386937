"""Modules that run one after the other, neighbours as one operation where there is a kernel for both.

Known are a depthwise convolution with the ReLU before it, the pointwise convolution behind it or both, and a batch
normalisation with the activation behind it.
When a super-net is made, every `torch.nn.Sequential` becomes a `FusedSequential`, in place. A frozen member has the
class of PyTorch again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from hwnas.supernet.clamped_norm import clamp_bounds, run_clamped
from hwnas.supernet.fused import DepthwiseConv2d, is_observed
from hwnas.supernet.sharing import SharedResults


class FusedSequential(nn.Sequential):
    """A `torch.nn.Sequential` that fuses neighbours."""

    _search_machinery = True  # a frozen member has a torch.nn.Sequential

    def forward(self, input: Any) -> Any:
        """Run the modules in order.

        Parameters
        ----------
        input : Any
            Of the first module.
        """
        if torch.compiler.is_compiling() or _has_any_global_hook():
            return super().forward(input)  # type: ignore[no-untyped-call]
        return run_in_order(list(self), input)


_FORWARDS = (nn.Sequential.forward, FusedSequential.forward)


def modules_in_order(module: nn.Module) -> list[nn.Module]:
    """Return the modules that one runs one after the other; none where it is no plain sequence."""
    if isinstance(module, nn.Sequential) and type(module).forward in _FORWARDS:
        return list(module)
    return []


def run_fused(
    module: nn.Module, x: Any, shared: SharedResults | None = None, following: nn.Module | None = None
) -> Any:
    """Call a module; neighbours in a sequence run as one.

    Parameters
    ----------
    module : torch.nn.Module
        A candidate.
    x : Any
        What it reads.
    shared : SharedResults, optional
        What others have computed of it.
    following : torch.nn.Module, optional
        What reads the output; None where nothing inside the candidate does.
    """
    if is_observed(module) or _has_any_global_hook():
        return module(x)
    if inside := modules_in_order(module):
        return run_in_order(inside, x, shared, following)
    return module(x) if shared is None else shared.run(module, x, following)


def run_in_order(
    modules: Sequence[nn.Module], x: Any, shared: SharedResults | None = None, last: nn.Module | None = None
) -> Any:
    """Call modules one after the other, neighbours as one where there is a kernel for both.

    Parameters
    ----------
    modules : sequence of torch.nn.Module
        As a `torch.nn.Sequential` without hooks holds them, while there are no hooks on all modules.
    x : Any
        Input of the first.
    shared : SharedResults, optional
        What others have computed of it.
    last : torch.nn.Module, optional
        What reads the output; None where nothing inside the candidate does.
    """
    position = 0
    while position < len(modules):
        module, *behind = modules[position : position + 3]
        following = behind[0] if behind else None
        if isinstance(following, DepthwiseConv2d) and following.can_follow(module, x):
            point = following.pointwise_behind(behind[1:], x)
            x = following.after_relu(x) if point is None else following.before_pointwise(point, x, pre_relu=True)
            position += 2 if point is None else 3
        elif isinstance(module, DepthwiseConv2d) and (point := module.pointwise_behind(behind, x)) is not None:
            x = module.before_pointwise(point, x, pre_relu=False)
            position += 2
        elif following is not None and (bounds := clamp_bounds(module, following)) is not None:
            x = run_clamped(module, x, bounds)
            position += 2
        else:
            x = run_fused(module, x, shared, following if behind else last)
            position += 1
        shared = None
    return x


def take_over_sequence(module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> bool:
    """Make a `torch.nn.Sequential` a `FusedSequential`, in place; a mutation hook.

    Classes derived from it have code of their own and are left alone.

    Returns
    -------
    bool
        False: later hooks see the module, too.
    """
    if type(module) is nn.Sequential:
        taken: Any = module
        taken.__class__ = FusedSequential
    return False
