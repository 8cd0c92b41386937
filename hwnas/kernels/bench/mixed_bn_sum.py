"""Cases of `mixed_bn_sum`: the candidates of an edge in each of the three stages of a DARTS super-net."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.kernels.bench.case import Case, Limit, Problem
from hwnas.kernels.mixed_bn_sum import mixed_bn_sum, mixed_bn_sum_reference

SHAPES = ((32, 16, 32, 32), (32, 32, 16, 16), (32, 64, 8, 8))
COUNT = 7
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def cases() -> list[Case]:
    """Return a case for each shape, layout and, for the first shape, element type.

    The least work is to read or write every tensor once: K + 1 forward, 2 K + 1 backward.
    """
    return [
        Case(
            operator="mixed_bn_sum",
            shape=f"{'x'.join(map(str, shape))}, K={COUNT}",
            layout=layout,
            dtype=str(dtype).removeprefix("torch."),
            prepare=functools.partial(_prepare, shape, layout, dtype),
            phases={
                "forward": Limit(size * (COUNT + 1)),
                "backward": Limit(size * (2 * COUNT + 1)),
                "training": Limit(size * (3 * COUNT + 2)),
            },
        )
        for shape in SHAPES
        for layout in FORMATS
        for dtype in ((torch.float32, torch.bfloat16) if shape == SHAPES[0] else (torch.float32,))
        for size in (dtype.itemsize * torch.Size(shape).numel(),)
    ]


def _prepare(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> Problem:
    generator = torch.Generator().manual_seed(0)
    weights = torch.softmax(torch.randn(COUNT, generator=generator), 0).requires_grad_()
    tensors = [
        torch.randn(shape, generator=generator).to(dtype).to(memory_format=FORMATS[layout]).requires_grad_()
        for _ in range(COUNT)
    ]
    normalised = [True] * COUNT
    compiled = torch.compile(_one_by_one, dynamic=False)
    return Problem(
        contenders={
            "native": lambda: mixed_bn_sum(weights, tensors, normalised).out,
            "eager": lambda: _one_by_one(weights, tensors),
            "eager, folded": lambda: mixed_bn_sum_reference(weights, tensors, normalised).out,
            "compiled": lambda: compiled(weights, tensors),
        },
        inputs=[weights, *tensors],
    )


def _one_by_one(weights: Tensor, tensors: list[Tensor]) -> Tensor:
    units = [F.batch_norm(x, None, None, training=True) for x in tensors]
    total = weights[0].to(units[0].dtype) * units[0]
    for weight, unit in zip(weights[1:], units[1:], strict=True):
        total = total + weight.to(unit.dtype) * unit
    return total
