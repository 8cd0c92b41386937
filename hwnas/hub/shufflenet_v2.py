"""The space of ShuffleNet V2 blocks: the kind of each block, and how wide it is inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.hub.inverted_bottleneck import Width, conv_norm_act
from hwnas.hub.published import Published
from hwnas.space import Sample, to_int

KERNELS = (3, 5, 7)
SCALES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
"""Widths inside the blocks among which the channel search of Guo et al. chooses."""


class ShuffleUnit(nn.Module):
    """Change one part of the channels, keep or project the other, and mix the two.

    Parameters
    ----------
    branch : torch.nn.Module
        What becomes of the second half of the channels, or of all of them where there is a projection.
    projection : torch.nn.Module, optional
        Makes the unchanged part out of all channels; without it, it is the first half of them.

    References
    ----------
    Ma et al.: ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018, figure 3.
    """

    def __init__(self, branch: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.projection = projection

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, C, H, W) to (N, C', H', W'); the shape stays without a projection."""
        if self.projection is None:
            kept, x = x.chunk(2, dim=1)
        else:
            kept = self.projection(x)
        y = torch.cat([kept, self.branch(x)], dim=1)
        # Take a channel of the first half and one of the second in turn, so that each half of the next unit sees both.
        mixed: Tensor = y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return mixed


class ShuffleNetV2Space(nn.ModelSpace):
    """Stages of ShuffleNet V2 units, each chosen for itself; 4^20, about 1.1e12 members.

    A unit has a separable convolution with a kernel of 3, 5 or 7 (``shuffle3``, ``shuffle5``, ``shuffle7``), or three
    with a kernel of 3 (``xception``). With more than one scale, its channels inside are chosen as well.

    Parameters
    ----------
    classes : int, default 1000
        Number of classes.
    stem_width : int, default 16
        Channels of the first convolution.
    widths : sequence of int
        Channels of each stage: even numbers that grow, starting above `stem_width`.
    depths : sequence of int
        Units of each stage. The first one halves the height and the width.
    last_width : int, default 1024
        Channels of the last convolution.
    scales : sequence of float, default (1.0,)
        Channels inside a unit, as a multiple of half the channels of its stage; `SCALES` for those of the paper.
    stem_pool : bool, default False
        Whether maximum pooling halves the image behind the stem, as in ShuffleNet V2 itself.
    dropout : float, default 0
        Probability of dropping a feature in front of the classifier.

    Raises
    ------
    ValueError
        When there is not one depth for each width, the widths are not as described, or a scale leaves no channel.

    References
    ----------
    Guo et al.: Single Path One-Shot Neural Architecture Search with Uniform Sampling, ECCV 2020.
    Ma et al.: ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018.

    Examples
    --------
    >>> space = ShuffleNetV2Space(classes=10, stem_width=4, widths=(8, 16), depths=(1, 2), last_width=32)
    >>> space.size()
    64
    >>> ShuffleNetV2Space(stem_width=4, widths=(8, 16), depths=(1, 2), last_width=32, scales=(0.5, 1.0)).size()
    512
    """

    input_shape = (3, 224, 224)

    def __init__(
        self,
        classes: int = 1000,
        *,
        stem_width: int = 16,
        widths: Sequence[int] = (64, 160, 320, 640),
        depths: Sequence[int] = (4, 4, 8, 4),
        last_width: int = 1024,
        scales: Sequence[float] = (1.0,),
        stem_pool: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(stem_width, widths, depths, scales)
        self.stem = conv_norm_act(3, stem_width, 3, stride=2, activation=nn.ReLU)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if stem_pool else nn.Identity()
        self.stages = nn.Sequential()
        width = stem_width
        for number, (out_width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
            stage = nn.Sequential()
            for index in range(depth):
                stage.append(_choice(f"stage{number}/block{index}", width, out_width, scales, down=index == 0))
                width = out_width
            self.stages.append(stage)
        self.last = conv_norm_act(width, last_width, 1, activation=nn.ReLU)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(last_width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 3, H, W), to scores, shape (N, classes)."""
        x = self.last(self.stages(self.pool(self.stem(x))))
        scores: Tensor = self.classifier(self.dropout(x.mean((2, 3))))
        return scores


def _check(stem_width: int, widths: Sequence[int], depths: Sequence[int], scales: Sequence[float]) -> None:
    if len(widths) != len(depths):
        raise ValueError(
            f"ShuffleNetV2Space: got {len(widths)} widths and {len(depths)} depths; give one of each a stage"
        )
    for width, out_width in zip((stem_width, *widths), widths, strict=False):
        if out_width % 2 or out_width <= width:
            raise ValueError(
                f"ShuffleNetV2Space: the widths are {(stem_width, *widths)}, the stem first; behind {width}, "
                f"{out_width} is not possible. Expected even widths that grow from stage to stage"
            )
    if not scales or min(scales) * (widths[0] // 2) < 1:
        raise ValueError(
            f"ShuffleNetV2Space: the scales are {tuple(scales)}; expected at least one scale, and each to leave at "
            f"least one channel inside the units of {widths[0]} channels"
        )


def _choice(label: str, width: int, out_width: int, scales: Sequence[float], *, down: bool) -> nn.LayerChoice:
    scale = scales[0] if len(scales) == 1 else nn.ValueChoice(scales, label=f"{label}/scale")
    inner = to_int(out_width // 2 * scale)
    # The projection keeps its width, so that the branch makes the rest. The published costs are those of this rule.
    inside, outside = (width, out_width - width) if down else (out_width // 2, out_width // 2)
    stride = 2 if down else 1

    def unit(kernel: int, layers: Iterable[nn.Module]) -> ShuffleUnit:
        projection = nn.Sequential(*_separable(width, width, kernel, stride)) if down else None
        return ShuffleUnit(nn.Sequential(*layers), projection)

    candidates: dict[str, nn.Module] = {
        f"shuffle{kernel}": unit(
            kernel,
            [conv_norm_act(inside, inner, 1, activation=nn.ReLU), *_separable(inner, outside, kernel, stride)],
        )
        for kernel in KERNELS
    }
    candidates["xception"] = unit(
        3,
        [
            *_separable(inside, inner, 3, stride),
            *_separable(inner, inner, 3, 1),
            *_separable(inner, outside, 3, 1),
        ],
    )
    return nn.LayerChoice(candidates, label=label)


def _separable(width: Width, out_width: Width, kernel: int, stride: int) -> list[nn.Module]:
    return [
        conv_norm_act(width, width, kernel, stride=stride, groups=width),
        conv_norm_act(width, out_width, 1, activation=nn.ReLU),
    ]


_KINDS = ("shuffle3", "shuffle5", "shuffle7", "xception")


def _member(depths: Sequence[int], kinds: str, scales: Sequence[float] = ()) -> Sample:
    """Give the sample of kinds by number, as the authors write them: 0 to 2 for the kernels, 3 for xception."""
    labels = [f"stage{number}/block{index}" for number, depth in enumerate(depths, 1) for index in range(depth)]
    chosen: Sample = {label: _KINDS[int(kind)] for label, kind in zip(labels, kinds, strict=True)}
    return chosen | {f"{label}/scale": scale for label, scale in zip(labels, scales, strict=bool(scales))}


_DEPTHS = (4, 8, 4)
_PLAIN = _member(_DEPTHS, "0" * 16)
_SEARCHED_DEPTHS = (4, 4, 8, 4)
_MA = "Ma et al. 2018, table 5"
_ROUNDED = "The printed multiply-adds are the exact ones, rounded up."
_HALVED = "torchvision projects to half the outgoing channels instead, and so has slightly fewer."

_original = partial(ShuffleNetV2Space, stem_width=24, depths=_DEPTHS, stem_pool=True)

PUBLISHED: dict[str, Published] = {
    "ShuffleNetV2 0.5x": Published(
        space=partial(_original, widths=(48, 96, 192)),
        sample=_PLAIN,
        parameters=1.4e6,
        macs=41e6,
        source=_MA,
        note=_ROUNDED + " torchvision has 1,366,792 parameters as well.",
    ),
    "ShuffleNetV2 1.0x": Published(
        space=partial(_original, widths=(116, 232, 464)),
        sample=_PLAIN,
        parameters=2.3e6,
        macs=146e6,
        source=_MA,
        note=f"{_ROUNDED} {_HALVED}",
    ),
    "ShuffleNetV2 1.5x": Published(
        space=partial(_original, widths=(176, 352, 704)),
        sample=_PLAIN,
        parameters=3.5e6,
        macs=299e6,
        source=_MA,
        note=f"{_ROUNDED} {_HALVED}",
    ),
    "ShuffleNetV2 2.0x": Published(
        space=partial(_original, widths=(244, 488, 976), last_width=2048),
        sample=_PLAIN,
        parameters=7.4e6,
        macs=591e6,
        source=_MA,
        note=f"{_ROUNDED} {_HALVED}",
    ),
    "SPOS blocks": Published(
        space=ShuffleNetV2Space,
        sample=_member(_SEARCHED_DEPTHS, "21012020202300003233"),
        parameters=3.5e6,
        macs=323e6,
        source="README of the authors' repository, megvii-model/SinglePathOneShot",
        note="The result that the authors released after the paper, whose own has 319M multiply-adds (table 3) and is "
        "not printed. The printed parameters are cut off, and leave out the bias of the classifier.",
    ),
    "SPOS blocks and channels": Published(
        space=partial(ShuffleNetV2Space, scales=SCALES),
        sample=_member(
            _SEARCHED_DEPTHS,
            "00311100202110202132",
            (1.4, 1.2, 0.8, 1.2, 0.6, 1.4, 0.8, 1.0, 0.6, 1.2, 1.6, 1.2, 1.0, 1.4, 1.6, 1.0, 1.0, 1.2, 1.0, 0.8),
        ),
        parameters=3.4e6,
        macs=328e6,
        source="Guo et al. 2020, table 3; architecture and parameters: megvii-model/ShuffleNet-Series, OneShot",
    ),
}
