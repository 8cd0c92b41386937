"""The space of ProxylessNAS: kernel, expansion and presence of 21 inverted bottlenecks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

import hwnas.nn as nn
from hwnas.hub.inverted_bottleneck import InvertedBottleneck, conv_norm_act
from hwnas.hub.published import Published
from hwnas.space import Sample

STAGES = ((2, 4), (2, 4), (2, 4), (1, 4), (2, 4), (1, 1))  # stride, blocks
KERNELS = (3, 5, 7)
EXPANSIONS = (3, 6)

_norm = partial(nn.BatchNorm2d, eps=1e-3)


class ProxylessNASSpace(nn.ModelSpace):
    """Six stages of inverted bottlenecks, each chosen for itself; 6^6 7^15, about 2.2e17 members.

    Every block chooses among kernels of 3, 5 and 7 with expansions of 3 and 6. All blocks but the first one of a stage
    may be skipped. As in the paper, skipping is a candidate of the layer choice beside the others: the branch of a
    block with a shortcut becomes zero, so the block becomes the identity. A depth for each stage would hold fewer
    members, since it can leave out blocks at the end of a stage only, and ProxylessNAS (GPU) skips blocks in the
    middle.

    Parameters
    ----------
    classes : int, default 1000
        Number of classes.
    stem_width : int, default 32
        Channels of the first convolution.
    widths : sequence of int
        Channels of the first block, which is not searched, and of the six stages.
    last_width : int, default 1280
        Channels of the last convolution.
    dropout : float, default 0
        Probability of dropping a feature in front of the classifier.

    Raises
    ------
    ValueError
        When there are not seven widths.

    References
    ----------
    Cai et al.: ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware, ICLR 2019.

    Examples
    --------
    >>> space = ProxylessNASSpace(classes=10, stem_width=8, widths=(8, 8, 8, 16, 16, 24, 32), last_width=64)
    >>> space.size() == 6**6 * 7**15
    True
    """

    input_shape = (3, 224, 224)

    def __init__(
        self,
        classes: int = 1000,
        *,
        stem_width: int = 32,
        widths: Sequence[int] = (16, 32, 40, 80, 96, 192, 320),
        last_width: int = 1280,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(widths) != 1 + len(STAGES):
            raise ValueError(
                f"ProxylessNASSpace: got the widths {tuple(widths)}; expected {1 + len(STAGES)}: one for the first "
                f"block and one for each of {len(STAGES)} stages"
            )
        self.stem = conv_norm_act(3, stem_width, 3, stride=2, norm=_norm, activation=nn.ReLU6)
        self.first = _bottleneck(stem_width, widths[0], 3, None, stride=1, shortcut=False)
        self.stages = nn.Sequential()
        for number, (stride, blocks) in enumerate(STAGES, start=1):
            width, out_width = widths[number - 1 : number + 1]
            stage = nn.Sequential(_choice(f"stage{number}/block0", width, out_width, stride, shortcut=False))
            for index in range(1, blocks):
                stage.append(_choice(f"stage{number}/block{index}", out_width, out_width, 1, shortcut=True))
            self.stages.append(stage)
        self.last = conv_norm_act(widths[-1], last_width, 1, norm=_norm, activation=nn.ReLU6)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(last_width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 3, H, W), to scores, shape (N, classes)."""
        x = self.last(self.stages(self.first(self.stem(x))))
        scores: Tensor = self.classifier(self.dropout(x.mean((2, 3))))
        return scores


def _bottleneck(
    width: int, out_width: int, kernel: int, expansion: int | None, *, stride: int, shortcut: bool
) -> nn.Module:
    hidden = None if expansion is None else width * expansion
    return InvertedBottleneck(
        width, out_width, hidden, kernel, stride=stride, shortcut=shortcut, norm=_norm, activation=nn.ReLU6
    )


def _choice(label: str, width: int, out_width: int, stride: int, *, shortcut: bool) -> nn.LayerChoice:
    candidates: dict[str, nn.Module] = {
        f"k{kernel}_e{expansion}": _bottleneck(width, out_width, kernel, expansion, stride=stride, shortcut=shortcut)
        for kernel in KERNELS
        for expansion in EXPANSIONS
    }
    if shortcut:
        candidates["skip"] = nn.Identity()
    return nn.LayerChoice(candidates, label=label)


def _member(*stages: str) -> Sample:
    """Give the sample of the candidates of each stage, separated by spaces."""
    return {
        f"stage{number}/block{index}": name
        for number, stage in enumerate(stages, start=1)
        for index, name in enumerate(stage.split())
    }


_MOBILE = _member(
    "k5_e3 k3_e3 skip skip",
    "k7_e3 k3_e3 k5_e3 k5_e3",
    "k7_e6 k5_e3 k5_e3 k5_e3",
    "k5_e6 k5_e3 k5_e3 k5_e3",
    "k7_e6 k7_e6 k7_e3 k7_e3",
    "k7_e6",
)
_LOG = "Cai et al. 2019; figures: logs of the authors' repository, mit-han-lab/proxylessnas"
_NOTE = "The paper draws the network, but prints neither figure."

PUBLISHED: dict[str, Published] = {
    "Proxyless-Mobile": Published(
        space=ProxylessNASSpace, sample=_MOBILE, parameters=4.08e6, macs=320.4e6, source=_LOG, note=_NOTE
    ),
    "Proxyless-CPU": Published(
        space=partial(ProxylessNASSpace, stem_width=40, widths=(24, 32, 48, 88, 104, 216, 360), last_width=1432),
        sample=_member(
            "k3_e6 k3_e3 k3_e3 k3_e3",
            "k3_e6 k3_e3 k3_e3 k5_e3",
            "k3_e6 skip skip k3_e3",
            "k5_e6 k3_e3 k3_e3 k3_e3",
            "k5_e6 k5_e3 k5_e3 k3_e3",
            "k5_e6",
        ),
        parameters=4.36e6,
        macs=439.2e6,
        source=_LOG,
        note=_NOTE,
    ),
    "Proxyless-GPU": Published(
        space=partial(ProxylessNASSpace, stem_width=40, widths=(24, 32, 56, 112, 128, 256, 432), last_width=1728),
        sample=_member(
            "k5_e3 skip skip skip",
            "k7_e3 skip skip k3_e3",
            "k7_e6 skip skip k5_e3",
            "k5_e6 skip k3_e3 k5_e3",
            "k7_e6 k7_e6 k7_e6 k5_e6",
            "k7_e6",
        ),
        parameters=7.12e6,
        macs=465.3e6,
        source=_LOG,
        note=_NOTE,
    ),
    "Proxyless-Mobile-14": Published(
        space=partial(ProxylessNASSpace, stem_width=48, widths=(24, 40, 56, 112, 136, 256, 448), last_width=1792),
        sample=_MOBILE,
        parameters=None,
        macs=581e6,
        source="README of the authors' repository, mit-han-lab/proxylessnas, December 2018",
        note="Proxyless-Mobile with wider layers; not in the paper.",
    ),
}
