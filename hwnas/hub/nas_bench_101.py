"""The space of NAS-Bench-101, and its members as the benchmark writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

import hwnas.nn as nn
from hwnas.hub.published import Published
from hwnas.space import Sample

CELL = "cell"
"""Label of the cell that all positions share."""

IN, OUT = "input", "output"

MAX_NODES, MAX_EDGES = 7, 9


def conv_norm_relu(in_channels: int, out_channels: int, kernel: int) -> nn.Module:
    """Make a convolution, a batch normalisation and a rectifier.

    PyTorch's momentum is the share of the new batch, the paper's 0.997 that of the past.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels, eps=1e-5, momentum=0.003),
        nn.ReLU(),
    )


def projection(in_channels: int, out_channels: int) -> nn.Module:
    """Make what changes the number of channels of the input of a cell."""
    return conv_norm_relu(in_channels, out_channels, 1)


OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "conv1x1-bn-relu": lambda n: conv_norm_relu(n, n, 1),
    "conv3x3-bn-relu": lambda n: conv_norm_relu(n, n, 3),
    "maxpool3x3": lambda n: nn.MaxPool2d(3, stride=1, padding=1),
}
"""What a node may compute."""


class NASBench101Space(nn.ModelSpace):
    """Networks of one cell repeated in three stacks, with max pooling between stacks.

    A cell has at most 7 nodes and 9 edges; labels are those of `hwnas.nn.NasBench101Cell` with the prefix ``cell``.
    There are 423,624 members whose cells do not become each other by leaving out dead nodes and renaming the others,
    see `hwnas.nn.NasBench101Graph.canonical`.

    Parameters
    ----------
    classes : int, default 10
        Number of classes.
    channels : int, default 128
        Channels of the stem and of the first stack; each stack has twice as many as the one before.
    cells : int, default 3
        Cells in each stack.

    Examples
    --------
    >>> space = NASBench101Space(channels=8, cells=1)
    >>> space.random(random_state=0)["cell/num_nodes"]
    6

    References
    ----------
    Ying, Klein, Christiansen, Real, Murphy, Hutter: NAS-Bench-101: Towards Reproducible Neural Architecture Search,
    ICML 2019.
    """

    input_shape = (3, 32, 32)

    def __init__(self, classes: int = 10, channels: int = 128, cells: int = 3) -> None:
        super().__init__()
        body: list[nn.Module] = [conv_norm_relu(3, channels, 3)]
        made: list[nn.NasBench101Cell] = []
        before = channels
        for stack in range(3):
            if stack > 0:
                body.append(nn.MaxPool2d(2))
                channels *= 2
            for _ in range(cells):
                made.append(nn.NasBench101Cell(OPERATIONS, before, channels, projection, MAX_NODES, MAX_EDGES, CELL))
                made[-1].edge_limits = made[0].edge_limits  # the same for all, so it is enough to check it once
                body.append(made[-1])
                before = channels
        self.body = nn.Sequential(*body)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 3, H, W), to scores, shape (N, classes)."""
        scores: Tensor = self.classifier(self.body(x).mean((2, 3)))
        return scores

    @staticmethod
    def from_matrix(matrix: Sequence[Sequence[int]], operations: Sequence[str]) -> Sample:
        """Read a member as the benchmark writes it.

        Parameters
        ----------
        matrix : sequence of sequence of int
            Upper triangular; 1 in row i and column j is an edge from node i to node j.
        operations : sequence of str
            One for each node: ``input``, names of `OPERATIONS`, ``output``.

        Returns
        -------
        dict
            The values of the active labels. Nodes that are on no path from the input to the output are left out.

        Raises
        ------
        ValueError
            When the cell is none of the benchmark.

        Examples
        --------
        >>> NASBench101Space.from_matrix([[0, 1, 1], [0, 0, 1], [0, 0, 0]], ["input", "maxpool3x3", "output"])
        {'cell/num_nodes': 3, 'cell/op1': 'maxpool3x3', 'cell/input1': [0], 'cell/input2': [0, 1]}
        """
        rows = [[int(entry) for entry in row] for row in matrix]
        size = len(rows)
        if any(len(row) != size for row in rows) or len(operations) != size or size < 2:
            raise ValueError(f"expected a square matrix and one operation for each row, got {rows} and {operations}")
        if any(entry not in ((0, 1) if i < j else (0,)) for i, row in enumerate(rows) for j, entry in enumerate(row)):
            raise ValueError(f"expected 0 and 1 above the diagonal of the matrix and 0 elsewhere, got {rows}")
        if (operations[0], operations[-1]) != (IN, OUT) or not set(operations[1:-1]) <= set(OPERATIONS):
            raise ValueError(
                f"expected {IN!r}, any of {', '.join(OPERATIONS)}, and {OUT!r} as operations, got {list(operations)}"
            )
        inputs = tuple(tuple(i for i in range(j) if rows[i][j]) for j in range(1, size))
        graph = nn.NasBench101Graph(tuple(operations[1:-1]), inputs).pruned()
        if graph.num_nodes > MAX_NODES or graph.num_edges > MAX_EDGES:
            raise ValueError(
                f"the cell has {graph.num_nodes} nodes and {graph.num_edges} edges; expected at most {MAX_NODES} and "
                f"{MAX_EDGES}"
            )
        return graph.to_sample(CELL)

    @staticmethod
    def to_matrix(sample: Sample) -> tuple[list[list[int]], list[str]]:
        """Write a member as the benchmark does; `from_matrix` reads it.

        Parameters
        ----------
        sample : dict
            Holds the active labels of the cell.

        Returns
        -------
        matrix : list of list of int
            The edges, without nodes that are on no path from the input to the output.
        operations : list of str
            What each node computes.
        """
        graph = nn.NasBench101Graph.from_sample(sample, CELL).pruned()
        matrix = [[int(i in sources) for sources in ((), *graph.inputs)] for i in range(graph.num_nodes)]
        return matrix, [IN, *map(str, graph.operations), OUT]


_CONV1, _CONV3, _POOL = OPERATIONS

PUBLISHED: dict[str, Published] = {
    "NAS-Bench-101 inception-like": Published(
        NASBench101Space,
        NASBench101Space.from_matrix(
            [
                [0, 1, 1, 1, 0, 1, 0],
                [0, 0, 0, 0, 0, 0, 1],
                [0, 0, 0, 0, 0, 0, 1],
                [0, 0, 0, 0, 1, 0, 0],
                [0, 0, 0, 0, 0, 0, 1],
                [0, 0, 0, 0, 0, 0, 1],
                [0, 0, 0, 0, 0, 0, 0],
            ],
            [IN, _CONV1, _CONV3, _CONV3, _CONV3, _POOL, OUT],
        ),
        2694282,
        None,
        "Ying et al. 2019, notebook of the benchmark",
        "The example of the benchmark: an Inception cell with two 3x3 convolutions in place of a 5x5 one.",
    ),
    "NAS-Bench-101 first": Published(
        NASBench101Space,
        NASBench101Space.from_matrix(
            [
                [0, 1, 0, 0, 1, 1, 0],
                [0, 0, 1, 0, 0, 0, 0],
                [0, 0, 0, 1, 0, 0, 1],
                [0, 0, 0, 0, 0, 1, 0],
                [0, 0, 0, 0, 0, 1, 0],
                [0, 0, 0, 0, 0, 0, 1],
                [0, 0, 0, 0, 0, 0, 0],
            ],
            [IN, _CONV3, _POOL, _CONV3, _CONV3, _CONV1, OUT],
        ),
        8555530,
        None,
        "Ying et al. 2019, the first record of the benchmark",
        "",
    ),
    "NAS-Bench-101 largest": Published(
        NASBench101Space,
        NASBench101Space.from_matrix(
            [
                [0, 1, 1, 1, 1, 0, 0],
                [0, 0, 1, 0, 0, 0, 0],
                [0, 0, 0, 1, 0, 0, 0],
                [0, 0, 0, 0, 1, 0, 0],
                [0, 0, 0, 0, 0, 1, 0],
                [0, 0, 0, 0, 0, 0, 1],
                [0, 0, 0, 0, 0, 0, 0],
            ],
            [IN, _CONV3, _CONV3, _CONV3, _CONV3, _CONV3, OUT],
        ),
        49979274,
        None,
        "Ying et al. 2019, the largest number of parameters in the benchmark",
        "",
    ),
}
"""Members of which the benchmark states the number of parameters."""
