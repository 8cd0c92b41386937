"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of `model` into evaluation mode for the block, and give each its own flag back.

    Parameters
    ----------
    model : nn.Module
        Its ``train`` method is not called: that would set the flags of children to one value, and a subclass
        may do more in it.
    """
    flags = [(module, module.training) for module in model.modules()]
    for module, _ in flags:
        module.training = False
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
