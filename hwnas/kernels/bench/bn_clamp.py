"""Cases of `bn_clamp`: batch normalisations with ReLU6 of a MobileNet-like super-net."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.kernels.bench.case import Case, Limit, Problem
from hwnas.kernels.bn_clamp import bn_clamp

SHAPES = ((32, 96, 48, 48), (32, 144, 24, 24), (32, 240, 12, 12), (32, 480, 6, 6))
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def cases() -> list[Case]:
    """Return a case for each shape, layout and, for the second shape, element type.

    The least work is to read or write every tensor once: 2 forward, 3 backward.
    """
    return [
        Case(
            operator="bn_clamp",
            shape="x".join(map(str, shape)),
            layout=layout,
            dtype=str(dtype).removeprefix("torch."),
            prepare=functools.partial(_prepare, shape, layout, dtype),
            phases={"forward": Limit(2 * size), "backward": Limit(3 * size), "training": Limit(5 * size)},
        )
        for shape in SHAPES
        for layout in FORMATS
        for dtype in ((torch.float32, torch.bfloat16) if shape == SHAPES[1] else (torch.float32,))
        for size in (dtype.itemsize * torch.Size(shape).numel(),)
    ]


def _prepare(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype).to(memory_format=FORMATS[layout]).requires_grad_()
    gamma, beta = (torch.rand(shape[1], generator=generator).requires_grad_() for _ in range(2))
    compiled = torch.compile(_one_by_one, dynamic=False)
    return Problem(
        contenders={
            "native": lambda: bn_clamp(x, gamma, beta, low=0.0, high=6.0).out,
            "eager": lambda: _one_by_one(x, gamma, beta),
            "compiled": lambda: compiled(x, gamma, beta),
        },
        inputs=[x, gamma, beta],
    )


def _one_by_one(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.relu6(F.batch_norm(x, None, None, gamma, beta, training=True), inplace=True)
