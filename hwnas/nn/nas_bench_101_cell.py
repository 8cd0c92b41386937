"""`NasBench101Cell`: a cell whose connections and operations are chosen freely, within a number of edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.errors import UnsupportedError
from hwnas.nn.freezing import freeze_module
from hwnas.nn.holding import module_mutables
from hwnas.nn.mutable_module import MutableModule
from hwnas.nn.nas_bench_101_graph import NasBench101Graph, Operation
from hwnas.space import Categorical, CategoricalMultiple, Constraint, Label, Mutable, MutableExpression, Sample, length
from hwnas.space.labels import resolve_label

OperationFactory = Callable[[int], nn.Module]
Projection = Callable[[int, int], nn.Module]


class NasBench101Cell(MutableModule):
    """The cell of NAS-Bench-101: any directed acyclic graph of at most so many nodes and edges.

    Every node between IN and OUT adds up what it reads and applies its operation. OUT concatenates what it reads.
    Whoever reads IN reads a projection of it with the right number of channels; OUT adds that projection to the
    concatenation. How many channels a node has follows from the graph, see `NasBench101Graph.channels`, so the modules
    are made when the cell is frozen: they are newly initialised, except in the default graph, a chain of all nodes
    with the first operation, which is also what the cell computes as long as it is not frozen. Nodes that are on no
    path from IN to OUT are left out.

    Labels are ``{label}/num_nodes``, with probabilities in proportion to 2 to the power of the number;
    ``{label}/op{i}`` for the operation of node i; and ``{label}/input{i}`` for the nodes that node i reads, any but
    none of the earlier ones. Those of nodes that a smaller cell does not have are inactive, and their edges do not
    count. Cells of one label have the same graph, whatever their numbers of channels.

    Parameters
    ----------
    op_candidates : sequence or mapping of callable
        Each makes an operation for a number of channels, which it keeps. A sequence is chosen from by position, a
        mapping by name.
    in_features, out_features : int
        Channels of IN and of OUT.
    projection : callable
        Makes a module from a number of channels to another one.
    max_num_nodes : int, default 7
        Largest number of nodes, IN and OUT included.
    max_num_edges : int, default 9
        Largest number of edges, before nodes are left out.
    label : str, optional
        Prefix of the labels of the cell.

    Raises
    ------
    ValueError
        When there are no candidates or the numbers do not fit together.
    TypeError
        When a callable returns something that is no module.
    UnsupportedError
        When a callable returns a module with choices in it.

    Examples
    --------
    >>> import torch
    >>> import hwnas.nn as nn
    >>> cell = nn.NasBench101Cell(
    ...     {"conv": lambda n: nn.Conv2d(n, n, 3, padding=1), "pool": lambda n: nn.MaxPool2d(3, 1, 1)},
    ...     in_features=8,
    ...     out_features=16,
    ...     projection=lambda n, m: nn.Conv2d(n, m, 1),
    ...     label="cell",
    ... )
    >>> sample = {"cell/num_nodes": 4, "cell/op1": "conv", "cell/op2": "pool"}
    >>> sample |= {"cell/input1": [0], "cell/input2": [0, 1], "cell/input3": [0, 2]}
    >>> cell.freeze(sample)(torch.zeros(1, 8, 6, 6)).shape
    torch.Size([1, 16, 6, 6])

    References
    ----------
    Ying, Klein, Christiansen, Real, Murphy, Hutter: NAS-Bench-101: Towards Reproducible Neural Architecture Search,
    ICML 2019.
    """

    def __init__(
        self,
        op_candidates: Sequence[OperationFactory] | Mapping[str, OperationFactory],
        in_features: int,
        out_features: int,
        projection: Projection,
        max_num_nodes: int = 7,
        max_num_edges: int = 9,
        label: str | None = None,
    ) -> None:
        super().__init__()
        self.label = resolve_label(label, "cell")
        where = f"NasBench101Cell {self.label!r}"
        if not op_candidates:
            raise ValueError(f"{where}: there are no op_candidates; give at least one")
        if max_num_nodes < 2 or max_num_edges < 1:
            raise ValueError(
                f"{where}: max_num_nodes is {max_num_nodes} and max_num_edges is {max_num_edges}; expected at least "
                "2 nodes, IN and OUT, and 1 edge"
            )
        if out_features < max_num_nodes - 2:
            raise ValueError(
                f"{where}: out_features is {out_features}, too few to be divided among the {max_num_nodes - 2} nodes "
                "that OUT may concatenate"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.projection = projection
        named = op_candidates.items() if isinstance(op_candidates, Mapping) else enumerate(op_candidates)
        self.op_candidates: dict[Operation, OperationFactory] = {name: factory for name, factory in named}
        self._make_choices(max_num_nodes, max_num_edges)
        self.default_graph = self.graph(self.default())
        self.default_cell = self._build(self.default_graph)

    def _make_choices(self, max_num_nodes: int, max_num_edges: int) -> None:
        last = max_num_nodes - 1
        sizes = range(2, max_num_nodes + 1)
        self.num_nodes = Categorical(
            sizes,
            weights=[2**size / sum(2**other for other in sizes) for size in sizes],
            default=min(max_num_nodes, max_num_edges + 1),  # a chain has one edge less than nodes
            label=self._label("num_nodes"),
        )
        self.operations = [Categorical(self.op_candidates, label=self._label(f"op{node}")) for node in range(1, last)]
        self.inputs = [
            CategoricalMultiple(range(node), default=[node - 1], label=self._label(f"input{node}"))
            for node in range(1, last + 1)
        ]
        self.edge_limits = {
            size: EdgeLimit(self.inputs[: size - 1], max_num_edges)
            for size in sizes
            if size * (size - 1) // 2 > max_num_edges
        }

    def _label(self, name: str) -> Label:
        return Label(f"{self.label}/{name}")

    def graph(self, sample: Sample) -> NasBench101Graph:
        """Return the graph of a sample, without the nodes that are on no path from IN to OUT."""
        return NasBench101Graph.from_sample(sample, self.label).pruned()

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield the number of nodes, then what chooses their operations and inputs, and the limit on the edges."""
        yield self.num_nodes
        last = len(self.inputs) if sample is None else sample[self.num_nodes.label] - 1
        for node in range(1, last + 1):
            if node < last:
                yield self.operations[node - 1]
            yield self.inputs[node - 1]
        for size, limit in self.edge_limits.items():
            if sample is None or size == last + 1:
                yield limit
        yield from self.registered_mutables()

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to the modules that the graph needs."""
        graph = self.graph(sample)
        if graph == self.default_graph:
            return freeze_module(self.default_cell, sample, memo)
        reference = next(self.default_cell.parameters(), None)
        with nullcontext() if reference is None else reference.device:
            built = self._build(graph)
        if reference is not None:
            built.to(reference.dtype)
        return freeze_module(built.train(self.training), sample, {})

    def _build(self, graph: NasBench101Graph) -> BuiltNasBench101Cell:
        channels = graph.channels(self.in_features, self.out_features)
        last = len(graph.inputs)
        projections = {
            node: self._plain(self.projection(self.in_features, channels[node]), "projection")
            for node, sources in enumerate(graph.inputs, 1)
            if 0 in sources
        }
        operations = [
            self._plain(self.op_candidates[name](channels[node]), f"op_candidates[{name!r}]")
            for node, name in zip(range(1, last), graph.operations, strict=True)
        ]
        return BuiltNasBench101Cell(graph.inputs, channels, projections, operations)

    def _plain(self, module: Any, what: str) -> nn.Module:
        if not isinstance(module, nn.Module):
            raise TypeError(f"NasBench101Cell {self.label!r}: {what} returned {module!r}; expected a torch.nn.Module")
        if isinstance(module, Mutable) or any(True for _ in module_mutables(module)):
            raise UnsupportedError(
                f"NasBench101Cell {self.label!r}: {what} returned a module with choices in it, but modules are made "
                "only when the graph is known; give every choice as a candidate of its own"
            )
        return module

    def forward(self, x: Tensor) -> Tensor:
        """Run the default graph.

        Parameters
        ----------
        x : Tensor, shape (N, in_features, *)
            Input.

        Returns
        -------
        Tensor, shape (N, out_features, *)
            Output.
        """
        y: Tensor = self.default_cell(x)
        return y

    def extra_repr(self) -> str:
        """Show the label and the candidates."""
        return f"label={str(self.label)!r}, op_candidates={list(self.op_candidates)}"


class BuiltNasBench101Cell(nn.Module):
    """What a `NasBench101Cell` becomes when it is frozen.

    Parameters
    ----------
    inputs : sequence of sequence of int
        What each node after IN reads.
    channels : sequence of int
        Channels of each node.
    projections : mapping of int to torch.nn.Module
        Of IN, for each node that reads it.
    operations : sequence of torch.nn.Module
        Of the nodes between IN and OUT.
    """

    def __init__(
        self,
        inputs: Sequence[Sequence[int]],
        channels: Sequence[int],
        projections: Mapping[int, nn.Module],
        operations: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        self.inputs = [list(sources) for sources in inputs]
        self.channels = list(channels)
        self.projections = nn.ModuleDict({str(node): module for node, module in projections.items()})
        self.operations = nn.ModuleList(operations)

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, channels of IN, *) to (N, channels of OUT, *)."""
        return run_graph(x, self.inputs, self.channels, self._project, self._operate)

    def _project(self, x: Tensor, node: int) -> Tensor:
        y: Tensor = self.projections[str(node)](x)
        return y

    def _operate(self, x: Tensor, node: int) -> Tensor:
        y: Tensor = self.operations[node - 1](x)
        return y

    def extra_repr(self) -> str:
        """Show the graph and the channels."""
        return f"inputs={self.inputs}, channels={self.channels}"


def run_graph(
    x: Tensor,
    inputs: Sequence[Sequence[int]],
    channels: Sequence[int],
    project: Callable[[Tensor, int], Tensor],
    operate: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """Run the graph of a cell.

    Parameters
    ----------
    x : Tensor, shape (N, channels of IN, *)
        IN.
    inputs : sequence of sequence of int
        What each node after IN reads.
    channels : sequence of int
        Channels of each node.
    project : callable
        Projects IN for the node of a number.
    operate : callable
        Applies the operation of the node of a number.

    Returns
    -------
    Tensor, shape (N, channels of OUT, *)
        OUT.
    """
    last = len(inputs)
    nodes = [x]
    for node, sources in enumerate(inputs, 1):
        read = [nodes[source] for source in sources if source > 0]
        # Of a source that has one channel more than the node the last one is left out.
        terms = [tensor[:, : channels[node]] for tensor in read]
        if read and node == last:
            terms = [torch.cat(read, 1)]
        if 0 in sources:
            terms.append(project(x, node))
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        nodes.append(operate(total, node) if node < last else total)
    return nodes[-1]


class EdgeLimit(Constraint):
    """The condition that the nodes of a cell read not more than so many nodes in all.

    Parameters
    ----------
    inputs : sequence of CategoricalMultiple
        What each node reads.
    max_num_edges : int
        The largest sum of their sizes.
    """

    def __init__(self, inputs: Sequence[CategoricalMultiple], max_num_edges: int) -> None:
        self.inputs = list(inputs)
        self.max_num_edges = max_num_edges

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield what each node reads."""
        yield from self.inputs

    def holds(self, sample: Sample) -> bool:
        """Tell whether there are few enough edges, from as few of the labels as possible."""
        fewest = len(self.inputs)
        most = sum(len(choice.values) for choice in self.inputs)
        for choice in reversed(self.inputs):  # the last node has the most to choose from, so it decides soonest
            if most <= self.max_num_edges:
                return True
            edges = len(sample[choice.label])
            fewest += edges - 1
            most += edges - len(choice.values)
            if fewest > self.max_num_edges:
                return False
        return True

    def as_expression(self) -> MutableExpression:
        """Return the condition as a formula."""
        edges: MutableExpression = sum(map(length, self.inputs[1:]), length(self.inputs[0]))
        return edges <= self.max_num_edges

    def violation(self, sample: Sample) -> str | None:
        """Say how many edges there are, if they are too many."""
        if self.holds(sample):
            return None
        edges = {str(choice.label): len(sample[choice.label]) for choice in self.inputs}
        return f"the cell has {sum(edges.values())} edges, {edges}; expected at most {self.max_num_edges}"

    def __repr__(self) -> str:
        """Return the labels and the limit."""
        labels = ", ".join(choice.label for choice in self.inputs)
        return f"EdgeLimit(number of edges in {labels} <= {self.max_num_edges})"
