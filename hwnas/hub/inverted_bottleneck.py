"""The inverted bottleneck of mobile networks, and how its widths are rounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

import hwnas.nn as nn
from hwnas.space import MutableExpression, maximum, to_int

Width = int | MutableExpression
MakeLayer = Callable[[], nn.Module]
MakeNorm = Callable[[Any], nn.Module]


def make_divisible(value: float | MutableExpression, divisor: int = 8) -> Any:
    """Round a number of channels to a multiple of `divisor`, losing no more than a tenth of it.

    Parameters
    ----------
    value : float or expression
        A positive number of channels, typically one that a multiplier has scaled.
    divisor : int, default 8
        The result is a multiple of it, at least one time it.

    Returns
    -------
    int or expression
        An expression if `value` is one.

    References
    ----------
    Sandler et al.: MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018.

    Examples
    --------
    >>> make_divisible(16 * 0.75), make_divisible(24 * 0.75), make_divisible(40 * 0.75)
    (16, 24, 32)
    >>> width = make_divisible(40 * nn.ValueChoice([0.5, 0.75, 1.0], label="multiplier"))
    >>> width.all_values()
    [24, 32, 40]
    """
    nearest = to_int(value + divisor / 2) // divisor
    enough = math.ceil(0.9 * value / divisor)
    return maximum(nearest, enough) * divisor


def conv_norm_act(
    width: Width,
    out_width: Width,
    kernel: Width,
    *,
    stride: int = 1,
    groups: Width = 1,
    norm: MakeNorm = nn.BatchNorm2d,
    activation: MakeLayer | None = None,
) -> nn.Sequential:
    """Make a convolution that keeps the image unless it has a stride, a normalisation, and an activation.

    Parameters
    ----------
    width, out_width : int or expression
        Channels before and after.
    kernel : int or expression
        Height and width of the kernel; odd.
    stride : int, default 1
        Stride in both directions.
    groups : int or expression, default 1
        As in `torch.nn.Conv2d`.
    norm : callable, optional
        Makes the normalisation from the number of channels.
    activation : callable, optional
        Makes the activation; there is none unless given.

    Returns
    -------
    torch.nn.Sequential
        The layers in this order.
    """
    conv = nn.Conv2d(width, out_width, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    layers = [conv, norm(out_width)]
    return nn.Sequential(*layers, *([] if activation is None else [activation()]))


class InvertedBottleneck(nn.Module):
    """Expand, convolve each channel for itself, weigh the channels, and project.

    Parameters
    ----------
    width, out_width : int or expression
        Channels before and after.
    hidden : int, expression or None
        Channels of the depthwise convolution; None for those of the input, without an expansion.
    kernel : int or expression
        Width of the depthwise kernel; odd.
    stride : int
        Stride of the depthwise convolution.
    shortcut : bool
        Whether the input is added to the output. The block then keeps the shape.
    norm : callable
        Makes a normalisation from the number of channels.
    activation : callable
        Makes the activation behind the expansion and behind the depthwise convolution.
    squeeze : torch.nn.Module, optional
        What stands between depthwise convolution and projection, usually `SqueezeExcite`.

    References
    ----------
    Sandler et al.: MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018.
    """

    def __init__(
        self,
        width: Width,
        out_width: Width,
        hidden: Width | None,
        kernel: Width,
        *,
        stride: int,
        shortcut: bool,
        norm: MakeNorm,
        activation: MakeLayer,
        squeeze: nn.Module | None = None,
    ) -> None:
        super().__init__()
        inner = width if hidden is None else hidden
        self.expand = (
            nn.Identity() if hidden is None else conv_norm_act(width, inner, 1, norm=norm, activation=activation)
        )
        self.depthwise = conv_norm_act(
            inner, inner, kernel, stride=stride, groups=inner, norm=norm, activation=activation
        )
        self.squeeze = nn.Identity() if squeeze is None else squeeze
        self.project = conv_norm_act(inner, out_width, 1, norm=norm)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, C, H, W) to (N, C', H / stride, W / stride), rounded up."""
        y: Tensor = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.shortcut else y


class SqueezeExcite(nn.Module):
    """Weigh each channel by what the averages of all channels say, with a piecewise linear gate.

    Parameters
    ----------
    width : int or expression
        Number of channels; in between it is a quarter, rounded to a multiple of eight.

    References
    ----------
    Hu et al.: Squeeze-and-Excitation Networks, CVPR 2018.
    Howard et al.: Searching for MobileNetV3, ICCV 2019, section 5.3.
    """

    def __init__(self, width: Width) -> None:
        super().__init__()
        squeezed = make_divisible(width // 4)
        self.reduce = nn.Conv2d(width, squeezed, 1)
        self.act = nn.ReLU()
        self.restore = nn.Conv2d(squeezed, width, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, C, H, W) to the same shape."""
        averages = x.mean((2, 3), keepdim=True)
        y: Tensor = x * self.gate(self.restore(self.act(self.reduce(averages))))
        return y
