"""Cases of `dwconv2d`: the separable and dilated convolutions of a DARTS cell, with the ReLU in front of them."""

from __future__ import annotations

import functools

import torch
from torch.nn import functional as F

from hwnas.kernels.bench.case import Case, Limit, Problem
from hwnas.kernels.dwconv2d import dwconv2d

SHAPES = ((32, 16, 32, 32), (32, 32, 16, 16), (32, 64, 8, 8))
KERNELS = ((3, 1), (5, 1), (7, 1), (3, 2), (5, 2))  # size and dilation
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def cases() -> list[Case]:
    """Return a case for each shape, kernel and layout.

    The least work are two operations for each tap of each output, and twice as many backward.
    """
    return [
        Case(
            operator="dwconv2d",
            shape=f"{'x'.join(map(str, shape))}, k{size} d{dilation}, ReLU",
            layout=layout,
            dtype="float32",
            prepare=functools.partial(_prepare, shape, size, dilation, layout),
            phases={
                "forward": Limit(flops=2 * size * size * torch.Size(shape).numel()),
                "backward": Limit(flops=4 * size * size * torch.Size(shape).numel()),
            },
        )
        for layout in LAYOUTS
        for shape in SHAPES
        for size, dilation in KERNELS
    ]


def _prepare(shape: tuple[int, int, int, int], size: int, dilation: int, layout: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    weight = torch.randn(shape[1], 1, size, size, generator=generator).requires_grad_()
    padding = dilation * (size // 2)
    return Problem(
        contenders={
            "native": lambda: dwconv2d(x, weight, padding=padding, dilation=dilation, pre_relu=True),
            "eager": lambda: F.conv2d(x.relu(), weight, None, 1, padding, dilation, shape[1]),
        },
        inputs=[x, weight],
    )
