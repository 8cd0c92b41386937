"""The order in which a super-net keeps features and weights in memory."""

from __future__ import annotations

import torch
from torch import nn

_PACKAGES = {"torch", "hwnas"}


def order_does_not_matter(supernet: nn.Module) -> bool:
    """Tell whether every module computes the same whatever the order of its input in memory.

    That is known of the modules of PyTorch and of hwnas, the hub's spaces among them. Code of others may call
    ``x.view(len(x), -1)``, which only one order allows.

    Parameters
    ----------
    supernet : torch.nn.Module
        With all its parts.
    """
    return all(type(module).__module__.partition(".")[0] in _PACKAGES for module in supernet.modules())


def lay_out_channels_last(supernet: nn.Module) -> None:
    """Keep the weights of 2-D convolutions with channels last, in place; the features follow.

    A convolution gives its output the order of its weight, and other operations that of their input, so the input of
    the model stays as it is. On a CPU, training cells takes half of the time in this order, and that of MobileNets as
    long as before (`benchmarks/kernels/layouts.py`). Values, shapes and state dicts do not change; results change by
    rounding.

    Parameters
    ----------
    supernet : torch.nn.Module
        Parameters keep their identity, so an optimiser that has them goes on.
    """
    for module in supernet.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
