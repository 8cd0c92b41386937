"""`NasBench101Cell` in a trace: every node runs every operation at every number of channels that it may have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from hwnas.nn import NasBench101Cell
from hwnas.profilers.symbols import listed_values
from hwnas.profilers.tables import Table, combined, disjunction
from hwnas.profilers.tracer import Tracer
from hwnas.space import Categorical, CategoricalMultiple, Mutable
from hwnas.supernet import BaseSuperNetModule, Relaxation

Case = tuple[Tensor, Table]
"""A tensor, and when it is meant."""


class TracedNasBench101Cell(BaseSuperNetModule, NasBench101Cell):
    """All graphs of a `NasBench101Cell`.

    How many channels a node has, and whether it is on a path to OUT, is decided by the nodes behind it: OUT divides
    its channels among those that it reads, and every other node has as many as the widest node that reads it, which is
    the one from which the first of those is reached. So this is folded from OUT backwards. The state behind a node
    says which of the nodes that OUT reads each node up to there reaches first, if any. It follows from the state
    behind the next node and from what that node reads, has few values, and is the same in all cells of one label.

    Every node reads an earlier one, so all nodes are on a path from IN.

    Attributes
    ----------
    by_width : torch.nn.ModuleDict
        For each number of channels the candidates, and the projection behind them.
    """

    _search_machinery = True
    by_width: nn.ModuleDict

    @classmethod
    def adopt(cls, module: nn.Module, relaxation: Relaxation) -> Self:
        """Take over a cell, and make its candidates at all numbers of channels."""
        assert isinstance(module, NasBench101Cell)
        mixed = super().adopt(module, relaxation)
        out, most = module.out_features, max(1, len(module.inputs) - 1)
        widths = {_width(out, place, joined) for joined in range(1, most + 1) for place in range(joined)}
        mixed.by_width = nn.ModuleDict(
            {
                str(width): nn.ModuleList(
                    [
                        *(module._plain(make(width), "a candidate") for make in module.op_candidates.values()),
                        module._plain(module.projection(module.in_features, width), "projection"),
                    ]
                )
                for width in sorted(widths)
            }
        ).train(module.training)
        return mixed

    def own_mutables(self) -> Iterator[Mutable]:
        """Yield the number of nodes, and what chooses their operations and inputs."""
        yield self.num_nodes
        yield from self.operations
        yield from self.inputs

    @property
    def _tracer(self) -> Tracer:
        assert isinstance(self.relaxation, Tracer)
        return self.relaxation

    def forward(self, x: Tensor) -> Tensor:
        """Run all graphs.

        Parameters
        ----------
        x : Tensor, shape (N, in_features, *)
            Input.

        Returns
        -------
        Tensor, shape (N, out_features, *)
            Stands for the output of every graph.
        """
        tracer = self._tracer
        widths = self.widths()
        nodes: list[list[Case]] = [[]]  # by node and width; IN is read by projections alone
        results: list[Case] = []
        for node, width in enumerate(widths, 1):
            is_out = self.is_out(node)
            if is_out.values.any():
                with tracer.under(is_out):
                    results.append((self._output(x, node, nodes), is_out))
            cases: list[Case] = []
            for channels in _distinct(width):
                here = Table(width.labels, width.values == channels)
                with tracer.under(here):
                    cases.append((self._node(x, node, channels, nodes, widths), here))
            nodes.append(cases)
        return self._one_of(results)

    def _node(
        self, x: Tensor, node: int, channels: int, nodes: Sequence[Sequence[Case]], widths: Sequence[Table]
    ) -> Tensor:
        """Run an inner node at one number of channels."""
        terms: list[Case] = []
        for source in range(1, node):
            cases = [
                (self._cut(tensor, channels), when) for tensor, when in nodes[source] if tensor.shape[1] >= channels
            ]
            if cases:
                terms.append((self._one_of(cases), self.reads(node, source)))
        *candidates, projection = self.by_width[str(channels)].children()
        total = self._sum(terms, projection, x, node)
        operation = self._values(self.operations[node - 1])
        outputs: list[Case] = []
        for name, candidate in zip(self.op_candidates, candidates, strict=True):
            chosen = _where(operation, name.__eq__)
            if chosen.values.any():
                with self._tracer.under(chosen):
                    outputs.append((candidate(total), chosen))
        return self._one_of(outputs)

    def _output(self, x: Tensor, out: int, nodes: Sequence[Sequence[Case]]) -> Tensor:
        """Concatenate the nodes that OUT reads, and add the projection."""
        read = self._values(self.inputs[out - 1])
        joined: list[Case] = []
        for number in range(1, out):
            as_many = _where(read, partial(_are, number=number))
            if not as_many.values.any():
                continue
            with self._tracer.under(as_many):
                parts = []
                for place in range(number):
                    channels = _width(self.out_features, place, number)
                    cases = [
                        (tensor, _where(read, partial(_is_place, number=number, place=place, node=node)))
                        for node in range(1, out)
                        for tensor, _ in nodes[node]
                        if tensor.shape[1] == channels
                    ]
                    parts.append(self._one_of([case for case in cases if case[1].values.any()]))
                joined.append((torch.cat(parts, 1), as_many))
        projection = list(self.by_width[str(self.out_features)].children())[-1]
        any_joined = disjunction(when for _, when in joined)
        terms = [(self._one_of(joined), any_joined)] if joined else []
        return self._sum(terms, projection, x, out)

    def _sum(self, terms: Sequence[Case], projection: nn.Module, x: Tensor, node: int) -> Tensor:
        """Add up what a node reads, one after the other, and the projection of IN at the end."""
        total: Tensor | None = None
        some = Table((), np.asarray(False))  # whether there is anything to add to
        from_in = self.reads(node, 0)
        for number in range(len(terms) + 1):
            if number < len(terms):
                term, when = terms[number]
            elif from_in.values.any():
                with self._tracer.under(from_in):
                    term, when = projection(x), from_in
            else:
                break
            if total is None:
                total, some = term, when
                continue
            both, either = combined(np.logical_and, [some, when]), combined(np.logical_or, [some, when])
            cases = [(total, _but_not(some, when)), (term, _but_not(when, some))]
            if both.values.any():
                with self._tracer.under(both):
                    cases.append((total + term, both))
            total, some = self._one_of([case for case in cases if case[1].values.any()]), either
        assert total is not None  # every node reads one
        return total

    def _one_of(self, cases: Sequence[Case]) -> Tensor:
        if len(cases) == 1:
            return cases[0][0]
        return self._tracer.join([(tensor, None) for tensor, _ in cases], chosen=[when for _, when in cases])

    @staticmethod
    def _cut(tensor: Tensor, channels: int) -> Tensor:
        return tensor if tensor.shape[1] == channels else tensor[:, :channels]

    def widths(self) -> list[Table]:
        """Return for every node behind IN its number of channels, 0 where it is on no path to OUT or is OUT itself."""
        sizes = self._values(self.num_nodes)
        state = Table(sizes.labels, _objects([size - 1 for size in sizes.values.flat]).reshape(sizes.values.shape))
        found = []
        for node in range(len(self.inputs), 0, -1):
            of_node = _mapped(partial(self._width_in, node=node), state)
            found.append(Table(of_node.labels, of_node.values.astype(np.int64)).narrowed(1))
            step = np.frompyfunc(partial(_behind, node=node), 2, 1)
            state = combined(step, [state, self._values(self.inputs[node - 1])]).narrowed(1)
        return found[::-1]

    def _width_in(self, state: Any, node: int) -> int:
        if isinstance(state, int) or state[1][node - 1] is None:
            return 0
        return _width(self.out_features, state[1][node - 1], state[0])

    def is_out(self, node: int) -> Table:
        """Return where a node is OUT."""
        return _where(self._values(self.num_nodes), (node + 1).__eq__)

    def reads(self, node: int, source: int) -> Table:
        """Return where a node reads an earlier one."""
        return _where(self._values(self.inputs[node - 1]), lambda sources: source in sources)

    def parameters_held(self) -> Iterator[Table]:
        """Yield how many parameters the operations and projections have, in the graphs in which they are."""
        sizes = {
            int(width): [sum(p.numel() for p in made.parameters()) for made in modules.children()]
            for width, modules in self.by_width.items()
        }
        names = list(self.op_candidates)
        for node, width in enumerate(self.widths(), 1):
            projection = _mapped(lambda w: sizes[w][-1] if w else 0, width)
            yield combined(np.multiply, [projection, self.reads(node, 0)])
            if node < len(self.inputs):
                held = np.frompyfunc(lambda w, name: sizes[w][names.index(name)] if w else 0, 2, 1)
                yield combined(held, [width, self._values(self.operations[node - 1])])
            of_out = _mapped(lambda is_out: sizes[self.out_features][-1] if is_out else 0, self.is_out(node))
            yield combined(np.multiply, [of_out, self.reads(node, 0)])

    def _values(self, choice: Categorical | CategoricalMultiple) -> Table:
        fixed = self._tracer.fixed
        if choice.label in fixed:
            return Table((), _objects([fixed[choice.label]])[0, ...])
        return Table((choice.label,), _objects(listed_values(choice)))

    @classmethod
    def mutate(
        cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> BaseSuperNetModule | bool:
        """Replace a `NasBench101Cell`."""
        if not isinstance(module, NasBench101Cell) or isinstance(module, BaseSuperNetModule):
            return False
        return cls.adopt(module, mutate_kwargs["relaxation"])


def _behind(state: Any, sources: Sequence[int], node: int) -> Any:
    """Return the state in front of a node, given that behind it and what the node reads.

    Behind OUT the state is the number of OUT. From there on it is how many nodes OUT reads, and for each node up to
    there the position of the first of them that it reaches, or None.
    """
    inner = _inner(sources)
    if isinstance(state, int):
        if state != node:
            return state
        return len(inner), tuple(inner.index(each) if each in inner else None for each in range(1, node))
    joined, places = state
    own = places[node - 1]

    def first(each: int) -> int | None:
        reached = [place for place in (places[each - 1], own if each in inner else None) if place is not None]
        return min(reached, default=None)

    return joined, tuple(map(first, range(1, node)))


def _inner(sources: Sequence[int]) -> list[int]:
    """Return the sources without IN."""
    return [source for source in sources if source > 0]


def _are(sources: Sequence[int], number: int) -> bool:
    return len(_inner(sources)) == number


def _is_place(sources: Sequence[int], number: int, place: int, node: int) -> bool:
    inner = _inner(sources)
    return len(inner) == number and inner[place] == node


def _width(out_features: int, place: int, joined: int) -> int:
    """Return the channels of one of the nodes that OUT reads: the first ones get the rest."""
    return out_features // joined + (place < out_features % joined)


def _distinct(width: Table) -> list[int]:
    return sorted({int(value) for value in width.values.flat} - {0})


def _mapped(function: Callable[[Any], Any], table: Table) -> Table:
    return Table(table.labels, _objects(list(map(function, table.values.flat))).reshape(table.values.shape))


def _where(table: Table, holds: Callable[[Any], Any]) -> Table:
    return Table(table.labels, _mapped(lambda value: bool(holds(value)), table).values.astype(bool))


def _but_not(one: Table, other: Table) -> Table:
    return combined(lambda a, b: a & ~b, [one, other])


def _objects(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
