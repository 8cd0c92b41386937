"""Constant masks of mixed operations: which channels belong to a width, and which places to a kernel.

They depend on the values of a choice alone, so they are made once and kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hwnas.kernels import native


def coverage(widths: Sequence[int], size: int, like: Tensor) -> Tensor:
    """Tell for each channel which widths include it.

    Parameters
    ----------
    widths : sequence of int
        Numbers of channels.
    size : int
        The largest number of channels.
    like : Tensor
        Gives dtype and device.

    Returns
    -------
    Tensor, shape (size, len(widths))
        One where the channel is among the first of that width, else zero. Not to be changed.
    """
    return _kept(_coverage, tuple(widths), size, like)


def centres(kernels: Sequence[Sequence[int]], whole: Sequence[int], like: Tensor) -> Tensor:
    """Tell for each kernel which places of the largest one belong to it.

    Parameters
    ----------
    kernels : sequence of sequence of int
        Sizes of the kernels, which share a centre.
    whole : sequence of int
        Size of the largest kernel.
    like : Tensor
        Gives dtype and device.

    Returns
    -------
    Tensor, shape (len(kernels), *whole)
        One where the kernel lies, else zero. Not to be changed.
    """
    return _kept(_centres, tuple(map(tuple, kernels)), tuple(whole), like)


def _kept(make: Callable[..., Tensor], values: Any, whole: Any, like: Tensor) -> Tensor:
    # Whoever watches every operation (a tracer, say) has to see the tensor made, and must not leave one of its own.
    if torch.compiler.is_compiling() or native.watched_reason() is not None:
        return make(values, whole, like.dtype, like.device)
    return _once(make, values, whole, like.dtype, like.device)


@functools.lru_cache(maxsize=1024)
def _once(make: Callable[..., Tensor], values: Any, whole: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a tensor of inference could not be used in training afterwards
        return make(values, whole, dtype, device)


def _coverage(widths: tuple[int, ...], size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    covered = [[channel < width for width in widths] for channel in range(size)]
    return torch.tensor(covered, dtype=dtype, device=device)


def _centres(
    kernels: tuple[tuple[int, ...], ...], whole: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    result = torch.zeros(len(kernels), *whole, dtype=dtype, device=device)
    for mask, kernel in zip(result, kernels, strict=True):
        starts = [(full - size) // 2 for full, size in zip(whole, kernel, strict=True)]
        mask[tuple(slice(start, start + size) for start, size in zip(starts, kernel, strict=True))] = 1
    return result
