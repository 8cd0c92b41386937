"""Cases of `separable_conv2d`: those of DARTS cells, and convolutions without a ReLU of Xception-like networks."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from hwnas.kernels.bench.case import Case, Limit, Problem
from hwnas.kernels.bench.dwconv2d import LAYOUTS
from hwnas.kernels.dwconv2d import dwconv2d
from hwnas.kernels.separable_conv2d import separable_conv2d


class Setting(NamedTuple):
    """One depthwise convolution, padded by half of the kernel, and the channels behind the pointwise one."""

    shape: tuple[int, int, int, int]
    size: int
    dilation: int = 1
    stride: int = 1
    relu: bool = True
    outputs: int | None = None  # as many as inputs

    def __str__(self) -> str:
        stride = f" s{self.stride}" if self.stride > 1 else ""
        outputs = f" to {self.outputs}" if self.outputs else ""
        relu = ", ReLU" if self.relu else ""
        return f"{'x'.join(map(str, self.shape))}{outputs}, k{self.size} d{self.dilation}{stride}{relu}"

    @property
    def padding(self) -> int:
        """Rows and columns on each side."""
        return self.dilation * (self.size // 2)

    @property
    def flops(self) -> int:
        """Two operations for each tap, and for each output, of each channel."""
        batch, channels, *image = self.shape
        pixels = batch * math.prod((length - 1) // self.stride + 1 for length in image)
        return 2 * pixels * channels * (self.size**2 + (self.outputs or channels))


SETTINGS = [
    Setting(shape, size, dilation)
    for shape in ((32, 16, 32, 32), (32, 32, 16, 16), (32, 64, 8, 8))
    for size, dilation in ((3, 1), (5, 1), (3, 2), (5, 2))
] + [
    Setting((32, 16, 32, 32), 5, stride=2),
    Setting((16, 36, 16, 16), 5),
    Setting((16, 128, 14, 14), 3, relu=False),
    Setting((4, 32, 56, 56), 3, relu=False, outputs=64),
]


def cases() -> list[Case]:
    """Return a case for each setting and layout. The backward pass takes at least twice the work."""
    return [
        Case(
            operator="separable_conv2d",
            shape=str(setting),
            layout=layout,
            dtype="float32",
            prepare=functools.partial(_prepare, setting, layout),
            phases={"forward": Limit(flops=setting.flops), "backward": Limit(flops=2 * setting.flops)},
        )
        for layout in LAYOUTS
        for setting in SETTINGS
    ]


def _prepare(setting: Setting, layout: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    channels, size, relu = setting.shape[1], setting.size, setting.relu
    x = torch.randn(setting.shape, generator=generator).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    depthwise = torch.randn(channels, 1, size, size, generator=generator).requires_grad_()
    pointwise = torch.randn(setting.outputs or channels, channels, 1, 1, generator=generator).requires_grad_()
    places: dict[str, Any] = {"stride": setting.stride, "padding": setting.padding, "dilation": setting.dilation}
    return Problem(
        contenders={
            "native": lambda: separable_conv2d(x, depthwise, pointwise, **places, pre_relu=relu),
            "eager": lambda: F.conv2d(
                F.conv2d(x.relu() if relu else x, depthwise, None, **places, groups=channels), pointwise
            ),
            "dwconv2d and eager": lambda: F.conv2d(dwconv2d(x, depthwise, **places, pre_relu=relu), pointwise),
        },
        inputs=[x, depthwise, pointwise],
    )
