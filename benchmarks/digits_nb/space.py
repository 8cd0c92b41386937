"""The space of digits-NB: four slots and a base width, 768 networks for 8x8 images of digits."""

from __future__ import annotations

from torch import Tensor

import hwnas.nn as nn
from hwnas.space import MutableExpression, Sample

Width = int | MutableExpression

SLOTS = ("slot1", "slot2", "slot3", "slot4")
STAGES = ("stem", "slot1", "pool1", "slot2", "widen", "slot3", "pool2", "slot4", "head")
OPERATORS = ("conv3", "separable3", "conv1", "skip")
WIDTHS = (2, 4, 8)
INPUT_SHAPE = (1, 8, 8)
CLASSES = 10


def convolution(width: Width, out_width: Width, kernel: int) -> nn.Module:
    """Make a convolution that keeps the size of the image, its normalisation and a rectifier."""
    return nn.Sequential(
        nn.Conv2d(width, out_width, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_width),
        nn.ReLU(),
    )


def separable(width: Width, kernel: int) -> nn.Module:
    """Make a depthwise convolution and a pointwise one, each with its normalisation and a rectifier."""
    return nn.Sequential(
        nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *convolution(width, width, 1),
    )


def slot(label: str, width: Width) -> nn.LayerChoice:
    """Make the choice of one operator; all of them keep the shape of their input."""
    return nn.LayerChoice(
        {
            "conv3": convolution(width, width, 3),
            "separable3": separable(width, 3),
            "conv1": convolution(width, width, 1),
            "skip": nn.Identity(),
        },
        label=label,
    )


class Head(nn.Module):
    """Average over the image and classify."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        self.linear = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, C, H, W) to scores, shape (N, 10)."""
        scores: Tensor = self.linear(x.mean((2, 3)))
        return scores


class DigitsBench(nn.ModelSpace):
    """Four slots, each with one of four operators, at one of three base widths; 768 members.

    Between any two slots the shape changes, in size or in width: two members never compute the same function, as
    they would if an operator and a skip could change places.

    Examples
    --------
    >>> DigitsBench().size()
    768
    """

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice(list(WIDTHS), label="width")
        self.stem = convolution(1, width, 3)
        self.slot1 = slot("slot1", width)  # width x 8 x 8
        self.pool1 = nn.AvgPool2d(2)
        self.slot2 = slot("slot2", width)  # width x 4 x 4
        self.widen = convolution(width, width * 2, 1)
        self.slot3 = slot("slot3", width * 2)  # 2 width x 4 x 4
        self.pool2 = nn.AvgPool2d(2)
        self.slot4 = slot("slot4", width * 2)  # 2 width x 2 x 2
        self.head = Head(width * 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 1, 8, 8), to scores, shape (N, 10)."""
        for stage in STAGES:
            x = self.get_submodule(stage)(x)
        return x


def name_of(sample: Sample) -> str:
    """Name a member, such as ``conv3-skip-conv1-skip-4``."""
    return "-".join(str(sample[label]) for label in (*SLOTS, "width"))


def sample_of(name: str) -> Sample:
    """Return the member of a name; the inverse of `name_of`."""
    *operators, width = name.split("-")
    return {**dict(zip(SLOTS, operators, strict=True)), "width": int(width)}


def members() -> list[Sample]:
    """List all 768 members, the width varying fastest."""
    return [
        {"slot1": a, "slot2": b, "slot3": c, "slot4": d, "width": width}
        for a in OPERATORS
        for b in OPERATORS
        for c in OPERATORS
        for d in OPERATORS
        for width in WIDTHS
    ]
