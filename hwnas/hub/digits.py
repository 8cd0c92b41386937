"""A space of small residual networks for 8x8 images of handwritten digits."""

from __future__ import annotations

from torch import Tensor

import hwnas.nn as nn
from hwnas.space import MutableExpression

Width = int | MutableExpression


class Residual(nn.Module):
    """A branch with a shortcut around it, and a rectifier behind.

    Parameters
    ----------
    branch : torch.nn.Module
        Keeps the shape of its input.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, C, H, W) to the same shape."""
        y: Tensor = self.act(x + self.branch(x))
        return y


class Downsample(nn.Module):
    """Halve the height and the width and change the number of channels.

    Parameters
    ----------
    width, out_width : int or value choice
        Channels before and after.
    """

    def __init__(self, width: Width, out_width: Width) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out_width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_width)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, C, H, W) to (N, C', H/2, W/2)."""
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y


class Head(nn.Module):
    """Average over the image and classify.

    Parameters
    ----------
    width : int or value choice
        Channels of the input.
    classes : int
        Number of classes.
    """

    def __init__(self, width: Width, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, C, H, W) to scores, shape (N, classes)."""
        scores: Tensor = self.linear(x.mean((2, 3)))
        return scores


def convolution(width: Width, kernel: int) -> nn.Module:
    """Make one convolution over all channels."""
    return nn.Sequential(
        nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
    )


def separable(width: Width, kernel: int) -> nn.Module:
    """Make a depthwise convolution and a pointwise one."""
    return nn.Sequential(
        nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
    )


def inverted(width: Width, expansion: int) -> nn.Module:
    """Make an inverted bottleneck: expand, convolve each channel for itself, project."""
    inner = width * expansion
    return nn.Sequential(
        nn.Conv2d(width, inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        nn.Conv2d(inner, width, 1, bias=False),
        nn.BatchNorm2d(width),
    )


class DigitsSpace(nn.ModelSpace):
    """Two stages of one to three residual blocks; 110,592 members.

    Each block is a convolution, a separable convolution with a kernel of 3 or 5, or an inverted bottleneck; one
    width is shared by the whole network, and the second stage is twice as wide.

    Parameters
    ----------
    classes : int, default 10
        Number of classes.

    Examples
    --------
    >>> DigitsSpace().size()
    110592
    """

    input_shape = (1, 8, 8)

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        width = nn.ValueChoice([16, 32, 48], label="width")
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = self._stage("stage1", width)
        self.down = Downsample(width, width * 2)
        self.stage2 = self._stage("stage2", width * 2)
        self.head = Head(width * 2, classes)

    @staticmethod
    def _stage(name: str, width: Width) -> nn.Repeat:
        def block(index: int) -> nn.Module:
            return nn.LayerChoice(
                {
                    "conv3": Residual(convolution(width, 3)),
                    "sep3": Residual(separable(width, 3)),
                    "sep5": Residual(separable(width, 5)),
                    "inverted": Residual(inverted(width, 3)),
                },
                label=f"{name}/block{index}",
            )

        return nn.Repeat(block, (1, 3), label=f"{name}/depth")

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 1, 8, 8), to scores, shape (N, classes)."""
        x = self.stage1(self.stem(x))
        scores: Tensor = self.head(self.stage2(self.down(x)))
        return scores
