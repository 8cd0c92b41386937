"""Cases of `slice_pack`: the members of weights as they are in super-nets, small and large."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from hwnas.kernels.bench.case import Case, Limit, Problem
from hwnas.kernels.slice_pack import slice_pack

# The weight and the slice.
SLICES = (
    ((960, 1, 7, 7), (640, 1, 5, 5)),
    ((160, 960, 1, 1), (160, 640, 1, 1)),
    ((640, 1920, 1, 1), (320, 960, 1, 1)),
    ((256, 256, 3, 3), (160, 160, 3, 3)),
    ((512, 512, 3, 3), (320, 320, 3, 3)),
    ((1280, 1280), (1000, 640)),
)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def cases() -> list[Case]:
    """Return a case for each slice and layout.

    The least work is to read and write the slice; backward, to read its gradient and write that of the weight.
    """
    return [
        Case(
            operator="slice_pack",
            shape=f"{'x'.join(map(str, part))} of {'x'.join(map(str, shape))}",
            layout=layout,
            dtype="float32",
            prepare=functools.partial(_prepare, shape, part, layout),
            phases={
                "inference": Limit(8 * math.prod(part)),
                "forward": Limit(8 * math.prod(part)),
                "backward": Limit(4 * (math.prod(part) + math.prod(shape))),
                "training": Limit(4 * (3 * math.prod(part) + math.prod(shape))),
            },
        )
        for shape, part in SLICES
        for layout in LAYOUTS
        if layout == "contiguous" or (len(shape) == 4 and shape[1] > 1)
    ]


def _prepare(shape: tuple[int, ...], part: tuple[int, ...], layout: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    memory_format = LAYOUTS[layout]
    weight = torch.randn(shape, generator=generator).to(memory_format=memory_format).requires_grad_()
    starts = [(whole - size) // 2 if d > 1 else 0 for d, (whole, size) in enumerate(zip(shape, part, strict=True))]
    inside = tuple(slice(start, start + size) for start, size in zip(starts, part, strict=True))

    def eager() -> Tensor:
        # Convolutions need it contiguous.
        return weight[inside].contiguous(memory_format=memory_format)

    compiled = torch.compile(eager, dynamic=False)
    return Problem(
        contenders={
            "native": lambda: slice_pack(weight, part[0], part[1], part[2:]),
            "eager": eager,
            "compiled": lambda: compiled(),
        },
        inputs=[weight],
    )
