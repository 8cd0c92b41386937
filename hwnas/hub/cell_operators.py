"""The operators of the cell spaces: each keeps the number of channels, and may halve height and width.

Convolutions come behind a rectifier and before a batch normalisation, and have no bias.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import hwnas.nn as nn
from hwnas.space import MutableExpression

Operator = Callable[[int, int], nn.Module]
"""Makes an operator from its number of channels and its stride, 1 or 2."""


def relu_conv_norm(in_channels: int | MutableExpression, channels: int, kernel: int = 1, stride: int = 1) -> nn.Module:
    """Make a rectifier, a convolution and a batch normalisation."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
    )


class FactorizedReduce(nn.Module):
    """Halve height and width by two pointwise convolutions, the second of which reads the pixels that the first skips.

    Parameters
    ----------
    in_channels : int or expression
        Channels of the input.
    channels : int
        Channels of the output, at least 2: half of them come from each convolution.
    """

    def __init__(self, in_channels: int | MutableExpression, channels: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(in_channels, channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(in_channels, channels - channels // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, C, H, W) to (N, C', H/2, W/2), rounded up."""
        x = x.relu()
        height, width = x.shape[-2:]
        # Of an even number of pixels the convolution skips what the padding would add.
        padded = F.pad(x, (0, width % 2, 0, height % 2)) if width % 2 or height % 2 else x
        y: Tensor = self.norm(torch.cat([self.even(x), self.odd(padded[:, :, 1:, 1:])], 1))
        return y


class Zero(nn.Module):
    """Zeros in the shape that another operator would return.

    Parameters
    ----------
    stride : int
        By which height and width are divided.
    """

    always_zero = True  # a super-net leaves it out of mixtures

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, C, H, W) to zeros, shape (N, C, H / stride, W / stride), rounded up."""
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def none(channels: int, stride: int) -> nn.Module:
    """Make zeros: no connection."""
    return Zero(stride)


def skip(channels: int, stride: int) -> nn.Module:
    """Make the identity, or with a stride of 2 a `FactorizedReduce`."""
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)


def conv(channels: int, stride: int, *, kernel: int) -> nn.Module:
    """Make a convolution."""
    return relu_conv_norm(channels, channels, kernel, stride)


def separable(channels: int, stride: int, *, kernel: int, dilation: int = 1, times: int = 2) -> nn.Module:
    """Make a depthwise and a pointwise convolution, `times` times; the stride belongs to the first one."""
    layers: list[nn.Module] = []
    padding = dilation * (kernel // 2)
    for step in [stride] + [1] * (times - 1):
        layers += [
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel, step, padding, dilation, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        ]
    return nn.Sequential(*layers)


def row_then_column(channels: int, stride: int, *, kernel: int) -> nn.Module:
    """Make a convolution of 1 x kernel and one of kernel x 1."""
    half = kernel // 2
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, (1, kernel), (1, stride), (0, half), bias=False),
        nn.Conv2d(channels, channels, (kernel, 1), (stride, 1), (half, 0), bias=False),
        nn.BatchNorm2d(channels),
    )


def narrow_row_then_column(channels: int, stride: int, *, kernel: int) -> nn.Module:
    """Make a convolution of 1 x kernel and one of kernel x 1, on a quarter of the channels."""
    half, inner = kernel // 2, max(1, channels // 4)
    return nn.Sequential(
        relu_conv_norm(channels, inner),
        nn.ReLU(),
        nn.Conv2d(inner, inner, (1, kernel), (1, stride), (0, half), bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        nn.Conv2d(inner, inner, (kernel, 1), (stride, 1), (half, 0), bias=False),
        nn.BatchNorm2d(inner),
        relu_conv_norm(inner, channels),
    )


def avg_pool(channels: int, stride: int, *, kernel: int) -> nn.Module:
    """Make an average over what lies inside the image."""
    return nn.AvgPool2d(kernel, stride, kernel // 2, count_include_pad=False)


def max_pool(channels: int, stride: int, *, kernel: int) -> nn.Module:
    """Make a maximum."""
    return nn.MaxPool2d(kernel, stride, kernel // 2)


OPERATORS: dict[str, Operator] = {
    "none": none,
    "skip_connect": skip,
    "conv_1x1": partial(conv, kernel=1),
    "conv_3x3": partial(conv, kernel=3),
    "conv_3x1_1x3": partial(row_then_column, kernel=3),
    "conv_7x1_1x7": partial(row_then_column, kernel=7),
    "sep_conv_3x3": partial(separable, kernel=3),
    "sep_conv_5x5": partial(separable, kernel=5),
    "sep_conv_7x7": partial(separable, kernel=7),
    "dil_conv_3x3": partial(separable, kernel=3, dilation=2, times=1),
    "dil_conv_5x5": partial(separable, kernel=5, dilation=2, times=1),
    "dil_sep_conv_3x3": partial(separable, kernel=3, dilation=2),
    "avg_pool_3x3": partial(avg_pool, kernel=3),
    "max_pool_3x3": partial(max_pool, kernel=3),
    "max_pool_5x5": partial(max_pool, kernel=5),
    "max_pool_7x7": partial(max_pool, kernel=7),
}
