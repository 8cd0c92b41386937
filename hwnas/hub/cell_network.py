"""What the cell spaces share: a network of cells, each of which reads the two before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

import hwnas.nn as nn
from hwnas.hub.cell_operators import OPERATORS, FactorizedReduce, Operator, relu_conv_norm
from hwnas.nn.cell import MergeOp
from hwnas.space import MutableExpression, Sample

Dataset = Literal["cifar", "imagenet"]
Channels = int | MutableExpression


class CellNetwork(nn.ModelSpace):
    """A stack of cells in three stages; base of the cell spaces, which say what their cells are made of.

    Every node of a cell adds up two operators. All normal cells are alike, and so are all reduction cells, which begin
    the second and the third stage: there the operators that read the inputs of the cell have a stride of 2, and all
    operators have twice the channels. The inputs are brought to one shape first, by pointwise convolutions or, where
    the older one is larger, by a `FactorizedReduce`. The labels are those of `hwnas.nn.Cell`, below ``normal`` and
    ``reduce``.

    Parameters
    ----------
    width : int, default 16
        Channels of the operators in the first stage.
    num_cells : int, default 20
        Number of cells, reduction cells included and those of the stem excluded.
    dataset : {"cifar", "imagenet"}
        For images of 32 x 32 pixels the stem is a convolution; for larger ones it divides height and width by 8.
    classes : int, optional
        Number of classes; 10 or 1000, as the dataset has, unless given.
    always_output : mapping of str to sequence of int, optional
        For ``"normal"`` and ``"reduce"``, nodes that are part of the output of the cell even where other nodes read
        them; see `hwnas.nn.Cell`.

    Raises
    ------
    ValueError
        When an argument is impossible.

    References
    ----------
    Radosavovic et al.: On Network Design Spaces for Visual Recognition, ICCV 2019.
    """

    operator_names: ClassVar[tuple[str, ...]] = ("skip_connect",)
    operators: ClassVar[Mapping[str, Operator]] = OPERATORS
    num_nodes: ClassVar[int] = 5
    merge_op: ClassVar[MergeOp] = "loose_end"
    normal_label: ClassVar[str] = "normal"
    reduction_label: ClassVar[str] = "reduce"
    stem_of_cells: ClassVar[bool] = False  # two reduction cells bring large images to size, instead of convolutions
    last_activation: ClassVar[type[nn.Module]] = nn.ReLU

    def __init__(
        self,
        width: int = 16,
        num_cells: int = 20,
        dataset: Dataset = "cifar",
        classes: int | None = None,
        *,
        always_output: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if dataset not in ("cifar", "imagenet"):
            raise ValueError(f"{name}: dataset is {dataset!r}; expected 'cifar' or 'imagenet'")
        least = 8 if dataset == "imagenet" else 2
        if not isinstance(width, int) or width < least:
            raise ValueError(f"{name}: width is {width!r}; expected an int from {least} up")
        if not isinstance(num_cells, int) or num_cells < 3:
            raise ValueError(f"{name}: num_cells is {num_cells!r}; expected an int from 3 up, a cell for each stage")
        kept = dict(always_output or {})
        if unknown := kept.keys() - {self.normal_label, self.reduction_label}:
            raise ValueError(
                f"{name}: always_output names {sorted(unknown)}; its cells are {self.normal_label!r} and "
                f"{self.reduction_label!r}"
            )
        if any(node < 2 for node in kept.get(self.reduction_label, ())):
            raise ValueError(
                f"{name}: always_output names the inputs of the cell {self.reduction_label!r}, 0 or 1, which are "
                "larger than its output; expected nodes from 2 up"
            )
        self.input_shape = (3, 32, 32) if dataset == "cifar" else (3, 224, 224)
        plan = [(self.normal_label, width, 1)] * num_cells
        for start, factor in ((num_cells // 3, 2), (2 * num_cells // 3, 4)):
            plan[start:] = [(self.normal_label, factor * width, 1)] * (num_cells - start)
            plan[start] = (self.reduction_label, factor * width, 2)
        if dataset == "imagenet" and self.stem_of_cells:
            plan = [(self.reduction_label, width // 4, 2), (self.reduction_label, width // 2, 2), *plan]
        older, newer, halve = self._make_stem(dataset, width)
        self.cells = nn.ModuleList()
        for label, channels, stride in plan:
            cell = nn.Cell(
                {key: partial(_operation, self.operators[key], channels, stride) for key in self.operator_names},
                self.num_nodes,
                num_ops_per_node=2,
                num_predecessors=2,
                merge_op=self.merge_op,
                preprocessor=Align(older, newer, channels, halve),
                always_output=kept.get(label, ()),
                label=label,
            )
            self.cells.append(cell)
            older, newer, halve = newer, cell.num_output_nodes * channels, stride == 2
        self.act = self.last_activation()
        self.head = nn.Linear(newer, classes or (10 if dataset == "cifar" else 1000))

    def _make_stem(self, dataset: Dataset, width: int) -> tuple[Channels, Channels, bool]:
        """Make the stem; return its channels, and whether the first tensor is larger than the second."""
        self.second_stem: nn.Module = nn.Identity()
        if dataset == "imagenet" and not self.stem_of_cells:
            self.stem = nn.Sequential(
                nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width // 2),
                relu_conv_norm(width // 2, width, 3, 2),
            )
            self.second_stem = relu_conv_norm(width, width, 3, 2)
            return width, width, True
        channels, stride = (3 * width, 1) if dataset == "cifar" else (32, 2)
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        return channels, channels, False

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 3, H, W), to scores, shape (N, classes)."""
        older = self.stem(x)
        newer = self.second_stem(older)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        scores: Tensor = self.head(self.act(newer).mean((2, 3)))
        return scores


class Align(nn.Module):
    """Bring the two inputs of a cell to one shape.

    Parameters
    ----------
    older, newer : int or expression
        Channels of the output of the cell before the last one, and of the last one.
    channels : int
        Channels of both afterwards.
    halve : bool
        Whether the older one is twice as high and wide.
    """

    def __init__(self, older: Channels, newer: Channels, channels: int, halve: bool) -> None:
        super().__init__()
        self.older = FactorizedReduce(older, channels) if halve else relu_conv_norm(older, channels)
        self.newer = relu_conv_norm(newer, channels)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Map shapes (N, C, H, W) and (N, C', H', W') to twice (N, channels, H', W')."""
        return [self.older(inputs[0]), self.newer(inputs[1])]


def _operation(operator: Operator, channels: int, stride: int, node: int, op: int, source: int) -> nn.Module:
    """Make an operator; it has the stride of the cell where it reads an input of the cell."""
    return operator(channels, stride if source < 2 else 1)


def cell_sample(label: str, *nodes: tuple[tuple[str, int], tuple[str, int]]) -> Sample:
    """Write a cell as a sample.

    Parameters
    ----------
    label : str
        Label of the cell.
    *nodes : tuple
        For each node its two operators, each with the node that it reads: 0 for the older input, 1 for the newer one,
        2 for the first node.

    Returns
    -------
    dict
        The part of a sample that decides about the cell.

    Examples
    --------
    >>> cell_sample("normal", (("sep_conv_3x3", 0), ("skip_connect", 1)))
    {'normal/op_2_0': 'sep_conv_3x3', 'normal/input_2_0': [0], 'normal/op_2_1': 'skip_connect', 'normal/input_2_1': [1]}
    """
    sample: Sample = {}
    for index, node in enumerate(nodes, start=2):
        for k, (operator, source) in enumerate(node):
            sample |= {f"{label}/op_{index}_{k}": operator, f"{label}/input_{index}_{k}": [source]}
    return sample
