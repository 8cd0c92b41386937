"""Native operators: one file each, with autograd, fake kernel and a reference in plain PyTorch."""

from __future__ import annotations

from hwnas.kernels.mixed_sum import mixed_sum, mixed_sum_reference
from hwnas.kernels.native import describe

__all__ = ["describe", "mixed_sum", "mixed_sum_reference"]
