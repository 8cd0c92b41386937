"""The space of NAS-Bench-201, and its members as the benchmark writes them."""

from __future__ import annotations

import re

import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.hub.published import Published
from hwnas.space import Sample

CELL = "cell"
"""Label of the cell that all positions share."""


class Zero(nn.Module):
    """No connection: zeros of the shape of the input."""

    always_zero = True  # a super-net leaves it out of mixtures

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (*) to zeros of shape (*)."""
        return torch.zeros_like(x)


def relu_conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Module:
    """Make a rectifier, a convolution and a batch normalisation."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


OPERATIONS = {
    "none": lambda n, m: Zero(),
    "skip_connect": lambda n, m: nn.Identity(),
    "nor_conv_1x1": lambda n, m: relu_conv_norm(n, m, 1),
    "nor_conv_3x3": lambda n, m: relu_conv_norm(n, m, 3),
    "avg_pool_3x3": lambda n, m: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
}
"""What a connection may compute, from and to as many channels."""


class Reduction(nn.Module):
    """A residual block that halves the height and the width.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels before and after.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            relu_conv_norm(in_channels, out_channels, 3, stride=2), relu_conv_norm(out_channels, out_channels, 3)
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(in_channels, out_channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, C, H, W) to (N, C', H/2, W/2)."""
        y: Tensor = self.branch(x) + self.shortcut(x)
        return y


class NASBench201Space(nn.ModelSpace):
    """Networks of one cell repeated in three stages, with a residual block that reduces between stages.

    Labels are ``cell/{i}_{j}`` for the operation from tensor i to tensor j of the cell. Of the 15,625 members 6,466 are
    different in the sense of the benchmark, see `canonical`.

    Parameters
    ----------
    classes : int, default 10
        Number of classes.
    channels : int, default 16
        Channels of the first stage; each stage has twice as many as the one before.
    cells : int, default 5
        Cells in each stage.

    Examples
    --------
    >>> NASBench201Space(channels=4, cells=1).size()
    15625

    References
    ----------
    Dong, Yang: NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search, ICLR 2020.
    """

    input_shape = (3, 32, 32)

    def __init__(self, classes: int = 10, channels: int = 16, cells: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        body: list[nn.Module] = []
        for stage in range(3):
            if stage > 0:
                body.append(Reduction(channels, 2 * channels))
                channels *= 2
            body += [nn.NasBench201Cell(OPERATIONS, channels, channels, label=CELL) for _ in range(cells)]
        self.body = nn.Sequential(*body)
        self.norm = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 3, H, W), to scores, shape (N, classes)."""
        scores: Tensor = self.classifier(self.norm(self.body(self.stem(x))).mean((2, 3)))
        return scores

    @staticmethod
    def from_string(text: str) -> Sample:
        """Read a member as the benchmark writes it.

        Parameters
        ----------
        text : str
            What leads to each tensor after the first, joined by ``+``; each a list of ``operation~source`` between
            bars.

        Returns
        -------
        dict
            The sample.

        Raises
        ------
        ValueError
            When the text has another form, or an operation is unknown.

        Examples
        --------
        >>> text = "|none~0|+|skip_connect~0|none~1|+|none~0|none~1|nor_conv_3x3~2|"
        >>> NASBench201Space.from_string(text)["cell/2_3"]
        'nor_conv_3x3'
        """
        sample: Sample = {}
        for target, node in enumerate(text.strip().split("+"), 1):
            if re.fullmatch(r"\|([^|~]+~\d+\|)+", node) is None:
                raise _malformed(text)
            for source, edge in enumerate(node.strip("|").split("|")):
                operation, number = edge.split("~")
                if operation not in OPERATIONS:
                    raise ValueError(f"unknown operation {operation!r} in {text!r}; expected {', '.join(OPERATIONS)}")
                if int(number) != source:
                    raise _malformed(text)
                sample[f"{CELL}/{source}_{target}"] = operation
        if list(sample) != EDGES:
            raise _malformed(text)
        return sample

    @staticmethod
    def to_string(sample: Sample) -> str:
        """Write a member as the benchmark does; `from_string` reads it.

        Parameters
        ----------
        sample : dict
            Holds the labels of the cell.

        Returns
        -------
        str
            For example ``|none~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|``.
        """
        return "+".join(
            "|" + "".join(f"{sample[f'{CELL}/{source}_{target}']}~{source}|" for source in range(target))
            for target in range(1, 4)
        )

    @staticmethod
    def canonical(sample: Sample) -> str:
        """Return a text that two members share when the benchmark counts them as one.

        Each tensor is written as the sum of what leads to it, in alphabetical order: the input is ``0``; a connection
        without a source, or from a tensor that is nothing but that, is ``#``; a skip stands for its source; any other
        operation follows its source. This is cautious: it keeps every ``#`` as a term, and does not reorder a sum that
        is passed on into another one, so that some members that compute the same have different texts.

        Parameters
        ----------
        sample : dict
            Holds the labels of the cell.

        Returns
        -------
        str
            One of 6,466 texts.

        Examples
        --------
        >>> skip = "|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"
        >>> NASBench201Space.canonical(NASBench201Space.from_string(skip))
        '#+#+0'
        """
        tensors = ["0"]
        for target in range(1, 4):
            terms = []
            for source, text in enumerate(tensors):
                operation = sample[f"{CELL}/{source}_{target}"]
                if operation == "none" or text == "#":
                    terms.append("#")
                elif operation == "skip_connect":
                    terms.append(text)
                else:
                    terms.append(f"({text})@{operation}")
            tensors.append("+".join(sorted(terms)))
        return tensors[-1]


EDGES = [f"{CELL}/{source}_{target}" for target in range(1, 4) for source in range(target)]
"""The labels, in the order of the text."""


def _malformed(text: str) -> ValueError:
    return ValueError(
        f"{text!r} is no cell of NAS-Bench-201; expected the form "
        "|op~0|+|op~0|op~1|+|op~0|op~1|op~2| with names of operations for op"
    )


def _published(text: str, parameters: float | None, macs: float | None, source: str, note: str) -> Published:
    return Published(NASBench201Space, NASBench201Space.from_string(text), parameters, macs, source, note)


_TABLE = "Dong and Yang 2020, table of the benchmark for CIFAR-10"
_EVERY = "|{0}~0|+|{0}~0|{0}~1|+|{0}~0|{0}~1|{0}~2|"

PUBLISHED: dict[str, Published] = {
    "NAS-Bench-201 smallest": _published(
        _EVERY.format("none"),
        0.073306e6,
        7.78305e6,
        _TABLE,
        "The smallest figures of the table. Its operations include the 10 biases of the classifier.",
    ),
    "NAS-Bench-201 largest": _published(
        _EVERY.format("nor_conv_3x3"),
        1.531546e6,
        220.11969e6,
        _TABLE,
        "The largest figures of the table. Its operations include the 10 biases of the classifier.",
    ),
    "NAS-Bench-201 best": _published(
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|",
        None,
        None,
        _TABLE,
        "The highest mean test accuracy on CIFAR-10, 94.37 percent; its size is not among the figures taken here.",
    ),
}
"""Members of which the benchmark states the size, and the best one on CIFAR-10."""
