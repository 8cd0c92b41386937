"""Cases of `mask_scale`: weights of convolutions and of a linear layer, with a mask for each axis."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from hwnas.kernels.bench.case import Case, Limit, Problem
from hwnas.kernels.mask_scale import mask_scale

SHAPES = ((64, 64, 3, 3), (256, 256, 3, 3), (512, 512, 3, 3), (960, 1, 7, 7), (640, 640, 1, 1), (1280, 1280))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def cases() -> list[Case]:
    """Return a case for each weight and layout.

    The least work is to read the weight and write the product; backward, to read gradient and weight and write the
    gradient of the weight.
    """
    return [
        Case(
            operator="mask_scale",
            shape="x".join(map(str, shape)),
            layout=layout,
            dtype="float32",
            prepare=functools.partial(_prepare, shape, layout),
            phases={
                "inference": Limit(8 * math.prod(shape)),
                "forward": Limit(8 * math.prod(shape)),
                "backward": Limit(12 * math.prod(shape)),
                "training": Limit(20 * math.prod(shape)),
            },
        )
        for shape in SHAPES
        for layout in LAYOUTS
        if layout == "contiguous" or (len(shape) == 4 and shape[1] > 1)
    ]


def _prepare(shape: tuple[int, ...], layout: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(memory_format=LAYOUTS[layout]).requires_grad_()
    axes = [shape[:1], shape[1:2], *([shape[2:]] if len(shape) > 2 else [])]
    masks = [torch.rand(size, generator=generator).requires_grad_() for size in axes]
    compiled = torch.compile(_product, dynamic=False)
    return Problem(
        contenders={
            "native": lambda: mask_scale(weight, *masks),
            "eager": lambda: _product(weight, *masks),
            "eager, one mask": lambda: _one_mask(weight, *masks),
            "compiled": lambda: compiled(weight, *masks),
        },
        inputs=[weight, *masks],
    )


def _product(weight: Tensor, out_mask: Tensor, in_mask: Tensor, kernel_mask: Tensor | None = None) -> Tensor:
    ones = [1] * (weight.dim() - 2)
    scaled = weight * out_mask.view(-1, 1, *ones) * in_mask.view(-1, *ones)
    return scaled if kernel_mask is None else scaled * kernel_mask


def _one_mask(weight: Tensor, out_mask: Tensor, in_mask: Tensor, kernel_mask: Tensor | None = None) -> Tensor:
    ones = [1] * (weight.dim() - 2)
    mask = out_mask.view(-1, 1, *ones) * in_mask.view(-1, *ones)
    return weight * (mask if kernel_mask is None else mask * kernel_mask)
