"""Cases of `dwconv2d`: what DARTS cells, with a ReLU in front, and mobile networks are made of."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from hwnas.kernels.bench.case import Case, Limit, Problem
from hwnas.kernels.dwconv2d import dwconv2d

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Setting(NamedTuple):
    """One convolution, padded by half of the kernel."""

    shape: tuple[int, int, int, int]
    size: int
    dilation: int = 1
    stride: int = 1
    relu: bool = True
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        stride = f" s{self.stride}" if self.stride > 1 else ""
        return f"{'x'.join(map(str, self.shape))}, k{self.size} d{self.dilation}{stride}{', ReLU' if self.relu else ''}"

    @property
    def padding(self) -> int:
        """Rows and columns on each side."""
        return self.dilation * (self.size // 2)

    @property
    def flops(self) -> int:
        """Two operations for each tap of each output."""
        batch, channels, *image = self.shape
        outputs = batch * channels * math.prod((length - 1) // self.stride + 1 for length in image)
        return 2 * self.size**2 * outputs


# Of a DARTS cell, then of mobile networks: odd planes, strides, no ReLU before the convolution.
CELLS = [
    Setting(shape, size, dilation)
    for shape in ((32, 16, 32, 32), (32, 32, 16, 16), (32, 64, 8, 8))
    for size, dilation in ((3, 1), (5, 1), (7, 1), (3, 2), (5, 2))
]
MOBILE = [
    Setting((16, 96, 14, 14), 5, relu=False),
    Setting((16, 96, 14, 14), 5, stride=2, relu=False),
    Setting((16, 96, 7, 7), 5, relu=False),
    Setting((16, 96, 7, 7), 7),
]
HALF = [
    Setting((32, 16, 32, 32), 5, dtype=torch.bfloat16),
    Setting((32, 32, 16, 16), 3, 2, dtype=torch.bfloat16),
    Setting((32, 64, 8, 8), 3, dtype=torch.bfloat16),
]


def cases() -> list[Case]:
    """Return a case for each setting and layout. The backward pass takes at least twice the work."""
    return [
        Case(
            operator="dwconv2d",
            shape=str(setting),
            layout=layout,
            dtype=str(setting.dtype).removeprefix("torch."),
            prepare=functools.partial(_prepare, setting, layout),
            phases={"forward": Limit(flops=setting.flops), "backward": Limit(flops=2 * setting.flops)},
        )
        for layout in LAYOUTS
        for setting in (*CELLS, *MOBILE, *HALF)
    ]


def _prepare(setting: Setting, layout: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    channels, size = setting.shape[1], setting.size
    x = torch.randn(setting.shape, generator=generator).to(setting.dtype)
    x = x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    weight = torch.randn(channels, 1, size, size, generator=generator).to(setting.dtype).requires_grad_()
    places: dict[str, Any] = {"stride": setting.stride, "padding": setting.padding, "dilation": setting.dilation}
    return Problem(
        contenders={
            "native": lambda: dwconv2d(x, weight, **places, pre_relu=setting.relu),
            "eager": lambda: F.conv2d(x.relu() if setting.relu else x, weight, None, **places, groups=channels),
        },
        inputs=[x, weight],
    )
