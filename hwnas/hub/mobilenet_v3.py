"""The space around MobileNetV3: widths, depths, and kernel, expansion and squeeze-and-excitation of each block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

import hwnas.nn as nn
from hwnas.hub.inverted_bottleneck import InvertedBottleneck, SqueezeExcite, Width, conv_norm_act, make_divisible
from hwnas.hub.published import Published
from hwnas.space import Sample

KERNELS = (3, 5, 7)
# Whole numbers as in TuNAS; the others are those of the published networks, whose hidden layers NetAdapt has trimmed.
EXPANSIONS = (2, 2.3, 2.5, 3, 3.67, 4, 4.5, 5, 6)
WIDTH_MULTIPLIERS = (0.5, 0.625, 0.75, 1.0, 1.25, 1.5, 2.0)  # of TuNAS

_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


@dataclass(frozen=True)
class Stage:
    """Blocks of one width.

    Parameters
    ----------
    width : int
        Channels before they are scaled.
    stride : int
        Stride of the first block.
    activation : type
        Class of the activations inside the blocks.
    """

    width: int
    stride: int
    activation: type[nn.Module]


@dataclass(frozen=True)
class Skeleton:
    """What the search leaves as it is.

    Parameters
    ----------
    stem_width : int
        Channels of the first convolution and of the first block, before they are scaled.
    first_stride : int
        Stride of the first block, which does not expand.
    stages : tuple of Stage
        The stages behind it.
    last_width : int
        Channels of the last convolution, before they are scaled.
    features : int
        Features that the classifier sees.
    """

    stem_width: int
    first_stride: int
    stages: tuple[Stage, ...]
    last_width: int
    features: int


LARGE = Skeleton(
    stem_width=16,
    first_stride=1,
    stages=(
        Stage(24, 2, nn.ReLU),
        Stage(40, 2, nn.ReLU),
        Stage(80, 2, nn.Hardswish),
        Stage(112, 1, nn.Hardswish),
        Stage(160, 2, nn.Hardswish),
    ),
    last_width=960,
    features=1280,
)
SMALL = Skeleton(
    stem_width=16,
    first_stride=2,
    stages=(
        Stage(24, 2, nn.ReLU),
        Stage(40, 2, nn.Hardswish),
        Stage(48, 1, nn.Hardswish),
        Stage(96, 2, nn.Hardswish),
    ),
    last_width=576,
    features=1024,
)


class MobileNetV3Space(nn.ModelSpace):
    """Stages of inverted bottlenecks, whose widths, depths and blocks are chosen.

    Every stage chooses its depth and a multiplier of its width; every block its kernel, the ratio of hidden to incoming
    channels, and whether it has squeeze-and-excitation. All channels are rounded to multiples of eight, hidden ones
    after the incoming ones. Strides and activations are those of MobileNetV3.

    Parameters
    ----------
    classes : int, default 1000
        Number of classes.
    skeleton : Skeleton, default LARGE
        Widths before they are scaled, strides and activations: `LARGE`, `SMALL`, or one of your own.
    width_multipliers : sequence of float
        What a width may be multiplied by.
    expansions : sequence of float
        Ratios of hidden to incoming channels.
    depth : tuple of int, default (1, 4)
        Least and largest number of blocks in a stage.
    dropout : float, default 0.2
        Probability of dropping a feature in front of the classifier.

    Raises
    ------
    ValueError
        When a stage could be empty.

    References
    ----------
    Howard et al.: Searching for MobileNetV3, ICCV 2019.
    Bender et al.: Can Weight Sharing Outperform Random Architecture Search? An Investigation With TuNAS, CVPR 2020.

    Examples
    --------
    >>> space = MobileNetV3Space(classes=10, skeleton=SMALL, width_multipliers=(0.5, 1.0))
    >>> model = space.freeze(space.random(random_state=0))
    >>> model.classifier[-1].out_features
    10
    """

    input_shape = (3, 224, 224)

    def __init__(
        self,
        classes: int = 1000,
        *,
        skeleton: Skeleton = LARGE,
        width_multipliers: Sequence[float] = WIDTH_MULTIPLIERS,
        expansions: Sequence[float] = EXPANSIONS,
        depth: tuple[int, int] = (1, 4),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if depth[0] < 1:
            raise ValueError(
                f"MobileNetV3Space: depth is {depth}; expected at least 1: the first block of a stage sets its width"
            )

        def scaled(width: int, name: str) -> Width:
            multiplier = nn.ValueChoice(width_multipliers, label=f"{name}/multiplier")
            rounded: Width = make_divisible(width * multiplier)
            return rounded

        width = scaled(skeleton.stem_width, "stem")
        self.stem = conv_norm_act(3, width, 3, stride=2, norm=_norm, activation=nn.Hardswish)
        # It has the width of the stem: in this way the shortcut fits whatever the width.
        self.first = _block("first", width, width, None, nn.ReLU, skeleton.first_stride, skeleton.first_stride == 1)
        self.stages = nn.Sequential()
        for number, stage in enumerate(skeleton.stages, start=1):
            name = f"stage{number}"
            out_width = scaled(stage.width, name)
            block = partial(_stage_block, name, width, out_width, stage, expansions)
            self.stages.append(nn.Repeat(block, depth, label=f"{name}/depth"))
            width = out_width
        last_width = scaled(skeleton.last_width, "last")
        self.last = conv_norm_act(width, last_width, 1, norm=_norm, activation=nn.Hardswish)
        self.classifier = nn.Sequential(
            nn.Linear(last_width, skeleton.features),
            nn.Hardswish(),
            nn.Dropout(dropout),
            nn.Linear(skeleton.features, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 3, H, W), to scores, shape (N, classes)."""
        x = self.last(self.stages(self.first(self.stem(x))))
        scores: Tensor = self.classifier(x.mean((2, 3)))
        return scores


def _stage_block(
    name: str, width: Width, out_width: Width, stage: Stage, expansions: Sequence[float], index: int
) -> nn.Module:
    label = f"{name}/block{index}"
    incoming, stride = (width, stage.stride) if index == 0 else (out_width, 1)
    hidden = make_divisible(incoming * nn.ValueChoice(expansions, label=f"{label}/expansion"))
    return _block(label, incoming, out_width, hidden, stage.activation, stride, index > 0)


def _block(
    label: str,
    width: Width,
    out_width: Width,
    hidden: Width | None,
    activation: type[nn.Module],
    stride: int,
    shortcut: bool,
) -> nn.Module:
    squeeze = {"off": nn.Identity(), "on": SqueezeExcite(width if hidden is None else hidden)}
    return InvertedBottleneck(
        width,
        out_width,
        hidden,
        nn.ValueChoice(KERNELS, label=f"{label}/kernel"),
        stride=stride,
        shortcut=shortcut,
        norm=_norm,
        activation=activation,
        squeeze=nn.LayerChoice(squeeze, label=f"{label}/se"),
    )


Block = tuple[int, float, str]  # kernel, expansion, squeeze-and-excitation


def _member(multiplier: float, first_se: str, *stages: Sequence[Block]) -> Sample:
    """Give the sample of networks whose widths are all scaled alike."""
    sample: Sample = {"stem/multiplier": multiplier, "first/kernel": 3, "first/se": first_se}
    for number, blocks in enumerate(stages, start=1):
        sample |= {f"stage{number}/multiplier": multiplier, f"stage{number}/depth": len(blocks)}
        for index, (kernel, expansion, se) in enumerate(blocks):
            label = f"stage{number}/block{index}"
            sample |= {f"{label}/kernel": kernel, f"{label}/expansion": expansion, f"{label}/se": se}
    return sample | {"last/multiplier": multiplier}


def _large(multiplier: float) -> Sample:
    return _member(
        multiplier,
        "off",
        [(3, 4, "off"), (3, 3, "off")],
        [(5, 3, "on"), (5, 3, "on"), (5, 3, "on")],
        [(3, 6, "off"), (3, 2.5, "off"), (3, 2.3, "off"), (3, 2.3, "off")],
        [(3, 6, "on"), (3, 6, "on")],
        [(5, 6, "on"), (5, 6, "on"), (5, 6, "on")],
    )


def _small(multiplier: float) -> Sample:
    return _member(
        multiplier,
        "on",
        [(3, 4.5, "off"), (3, 3.67, "off")],
        [(5, 4, "on"), (5, 6, "on"), (5, 6, "on")],
        [(5, 3, "on"), (5, 3, "on")],
        [(5, 6, "on"), (5, 6, "on"), (5, 6, "on")],
    )


_small_space = partial(MobileNetV3Space, skeleton=SMALL)
_SOURCE = "Howard et al. 2019 (arXiv 1905.02244v5), tables 1, 2 and 3"
_SCALED = "The features in front of the classifier are not scaled, as in the authors' repository, tensorflow/models."

PUBLISHED: dict[str, Published] = {
    "MobileNetV3-Large 1.0": Published(
        space=MobileNetV3Space,
        sample=_large(1.0),
        parameters=5.4e6,
        macs=219e6,
        source=_SOURCE,
        note="The authors' repository prints 217M multiply-adds for the same layers. torchvision has 5,483,032 "
        "parameters as well.",
    ),
    "MobileNetV3-Large 0.75": Published(
        space=MobileNetV3Space,
        sample=_large(0.75),
        parameters=4.0e6,
        macs=155e6,
        source=_SOURCE,
        note=_SCALED,
    ),
    "MobileNetV3-Small 1.0": Published(
        space=_small_space,
        sample=_small(1.0),
        parameters=2.5e6,
        macs=56e6,
        source=_SOURCE,
        note="Table 2 marks the last convolution as having squeeze-and-excitation. The authors' repository has none "
        "there, and neither has this model: it would have 2.7M parameters. torchvision has 2,542,856 as well.",
    ),
    "MobileNetV3-Small 0.75": Published(
        space=_small_space,
        sample=_small(0.75),
        parameters=2.0e6,
        macs=44e6,
        source=_SOURCE,
        note=_SCALED + " The deviation is within one unit of the last printed digit: 43.4M and 2.04M.",
    ),
}
