"""Cases of `mixed_sum`: tiny tensors, some in the second-level cache, and two larger sizes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hwnas.kernels.bench.case import Case, Limit, Problem
from hwnas.kernels.mixed_sum import mixed_sum

SIZES = (256, 4_096, 65_536, 1_048_576, 4_194_304)
COUNTS = (2, 4, 8)


def cases() -> list[Case]:
    """Return a case for each number of elements and of tensors, K.

    The least work is to read or write every tensor once: K + 1 forward, 2 K + 1 backward.
    """
    return [
        Case(
            operator="mixed_sum",
            shape=f"{size}, K={count}",
            layout="contiguous",
            dtype="float32",
            prepare=functools.partial(_prepare, size, count),
            phases={
                "inference": Limit(4 * size * (count + 1)),
                "forward": Limit(4 * size * (count + 1)),
                "backward": Limit(4 * size * (2 * count + 1)),
            },
        )
        for size in SIZES
        for count in COUNTS
    ]


def _prepare(size: int, count: int) -> Problem:
    generator = torch.Generator().manual_seed(0)
    weights = torch.softmax(torch.randn(count, generator=generator), 0).requires_grad_()
    tensors = [torch.randn(size, generator=generator).requires_grad_() for _ in range(count)]
    compiled = torch.compile(_sequence, dynamic=False)
    return Problem(
        contenders={
            "native": lambda: mixed_sum(weights, tensors),
            "eager": lambda: _sequence(weights, tensors),
            "eager, stacked": lambda: _stack(weights, tensors),
            "compiled": lambda: compiled(weights, tensors),
        },
        inputs=[weights, *tensors],
    )


def _sequence(weights: Tensor, tensors: list[Tensor]) -> Tensor:
    total = weights[0] * tensors[0]
    for k in range(1, len(tensors)):
        total = total + weights[k] * tensors[k]
    return total


def _stack(weights: Tensor, tensors: list[Tensor]) -> Tensor:
    return (weights.view(-1, *[1] * tensors[0].dim()) * torch.stack(tensors)).sum(0)
