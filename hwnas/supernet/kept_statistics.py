"""Batch normalisation that runs without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Leave running statistics as they were before the ``with`` block, bit for bit.

    They come from training data, so nothing that runs on validation data may change them. Layers in training mode use
    the statistics of the batch meanwhile, as always.

    Parameters
    ----------
    model : torch.nn.Module
        Its batch normalisations, those inside a super-net too.
    """
    buffers = [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for buffer in module.buffers(recurse=False)
    ]
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in zip(buffers, saved, strict=True):
                buffer.copy_(before)
