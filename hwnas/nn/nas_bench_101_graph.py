"""`NasBench101Graph`: which node of a NAS-Bench-101 cell reads which, and what each computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hwnas.space import Sample

Operation = int | str


@dataclass(frozen=True)
class NasBench101Graph:
    """The graph of a cell. Node 0 is IN, the last one is OUT, and an edge always leads to a later node.

    Parameters
    ----------
    operations : tuple of int or str
        What the nodes between IN and OUT compute.
    inputs : tuple of tuple of int
        What each node after IN reads, in ascending order; the last one belongs to OUT.

    Examples
    --------
    >>> graph = NasBench101Graph(("conv", "pool"), ((0,), (0,), (0, 1)))
    >>> graph.pruned()  # nothing reads node 2
    NasBench101Graph(operations=('conv',), inputs=((0,), (0, 1)))
    >>> graph.pruned().channels(16, 32)
    [16, 32, 32]

    References
    ----------
    Ying, Klein, Christiansen, Real, Murphy, Hutter: NAS-Bench-101: Towards Reproducible Neural Architecture Search,
    ICML 2019.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[tuple[int, ...], ...]

    @property
    def num_nodes(self) -> int:
        """Number of nodes, IN and OUT included."""
        return len(self.inputs) + 1

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        return sum(map(len, self.inputs))

    @classmethod
    def from_sample(cls, sample: Sample, label: str) -> NasBench101Graph:
        """Read the graph of the cell of a label from a sample, as it was drawn: not pruned."""
        last = sample[f"{label}/num_nodes"] - 1
        return cls(
            tuple(sample[f"{label}/op{node}"] for node in range(1, last)),
            tuple(tuple(sample[f"{label}/input{node}"]) for node in range(1, last + 1)),
        )

    def to_sample(self, label: str) -> Sample:
        """Write the graph as values of the active labels of a cell."""
        return {
            f"{label}/num_nodes": self.num_nodes,
            **{f"{label}/op{node}": operation for node, operation in enumerate(self.operations, 1)},
            **{f"{label}/input{node}": list(sources) for node, sources in enumerate(self.inputs, 1)},
        }

    def pruned(self) -> NasBench101Graph:
        """Leave out the nodes that are on no path from IN to OUT.

        Returns
        -------
        NasBench101Graph
            The rest, in the same order.

        Raises
        ------
        ValueError
            When no path leads from IN to OUT.
        """
        last = len(self.inputs)
        from_in = {0}
        for node, sources in enumerate(self.inputs, 1):
            if not from_in.isdisjoint(sources):
                from_in.add(node)
        to_out = {last}
        for node in range(last, 0, -1):
            if node in to_out:
                to_out.update(self.inputs[node - 1])
        if last not in from_in:
            raise ValueError(f"no path leads from IN to OUT in a cell with the inputs {self.inputs}")
        kept = sorted(from_in & to_out)
        place = {node: i for i, node in enumerate(kept)}
        return NasBench101Graph(
            tuple(self.operations[node - 1] for node in kept[1:-1]),
            tuple(tuple(place[source] for source in self.inputs[node - 1] if source in place) for node in kept[1:]),
        )

    def channels(self, in_features: int, out_features: int) -> list[int]:
        """Infer the number of channels of each node of a pruned graph.

        The channels of OUT are divided evenly among the nodes that it concatenates, the first ones getting one more
        where this leaves a rest. Any other node has as many as the widest node that reads it.

        Parameters
        ----------
        in_features, out_features : int
            Channels of IN and of OUT.

        Returns
        -------
        list of int
            One number for each node. Along every edge that does not start at IN they stay the same or get smaller
            by one.
        """
        last = len(self.inputs)
        channels = [in_features, *[0] * (last - 1), out_features]
        joined = [node for node in self.inputs[-1] if node > 0]
        for place, node in enumerate(joined):
            channels[node] = out_features // len(joined) + (place < out_features % len(joined))
        for node in range(last - 1, 0, -1):
            if node not in joined:
                channels[node] = max(channels[reader] for reader in self._readers(node))
        return channels

    def canonical(self) -> NasBench101Graph:
        """Return the representative of all cells that compute the same up to the order of their nodes.

        Two graphs have the same representative exactly if, once they are pruned, one becomes the other by renaming
        nodes. The nodes are divided into classes by colour refinement, starting from the longest way from IN and
        the operation. Whatever renames the nodes keeps the classes, so it is enough to try all orders inside each
        class and to take the smallest graph.

        Returns
        -------
        NasBench101Graph
            Pruned, with the nodes sorted by the longest way from IN.
        """
        graph = self.pruned()
        colours = graph._refined()
        classes = [
            [node for node in range(1, len(graph.inputs)) if colours[node] == colour]
            for colour in sorted(set(colours[1:-1]))
        ]
        orders = itertools.product(*map(itertools.permutations, classes))
        return min(
            (graph._reordered([0, *itertools.chain(*order), len(graph.inputs)]) for order in orders),
            key=lambda candidate: candidate.inputs,
        )

    def _refined(self) -> list[int]:
        """Return a colour for each node of a pruned graph, independent of the order of the nodes."""
        depth = [0]
        for sources in self.inputs:
            depth.append(1 + max(depth[source] for source in sources))
        names = sorted(set(self.operations))
        colours = _ranks([(0, -1), *((d, names.index(o)) for d, o in zip(depth[1:-1], self.operations, strict=True))])
        colours.append(len(colours))  # OUT is like no other node
        while True:
            described = [
                (
                    colours[node],
                    tuple(sorted(colours[source] for source in (self.inputs[node - 1] if node else ()))),
                    tuple(sorted(colours[reader] for reader in self._readers(node))),
                )
                for node in range(self.num_nodes)
            ]
            refined = _ranks(described)
            if len(set(refined)) == len(set(colours)):
                return refined
            colours = refined

    def _readers(self, node: int) -> Iterator[int]:
        return (reader for reader, sources in enumerate(self.inputs, 1) if node in sources)

    def _reordered(self, order: list[int]) -> NasBench101Graph:
        place = {node: i for i, node in enumerate(order)}
        return NasBench101Graph(
            tuple(self.operations[node - 1] for node in order[1:-1]),
            tuple(tuple(sorted(place[source] for source in self.inputs[node - 1])) for node in order[1:]),
        )


def _ranks(keys: list[Any]) -> list[int]:
    """Replace each key by its place among the different keys in ascending order."""
    place = {key: i for i, key in enumerate(sorted(set(keys)))}
    return [place[key] for key in keys]
