"""How tensors lie in memory: the layouts that kernels take as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
"""A layout is an index into these."""


def layout_of(x: Tensor) -> int:
    """Return the index into `FORMATS` of how `x` lies in memory; 0 when it is in none of them and must be copied."""
    if x.is_contiguous():
        return 0
    if x.dim() in (4, 5) and x.is_contiguous(memory_format=FORMATS[x.dim() - 3]):
        return x.dim() - 3
    return 0


def as_laid_out(tensors: Sequence[Tensor], layout: int) -> list[Tensor]:
    """Return tensors as they are where they lie in memory in this layout, else copies that do."""
    if layout == 0:
        return [x.contiguous() for x in tensors]
    return [x.contiguous(memory_format=FORMATS[layout]) for x in tensors]
