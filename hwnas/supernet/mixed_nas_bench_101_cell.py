"""`NasBench101Cell` in a super-net."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from hwnas.errors import UnsupportedError
from hwnas.nn import NasBench101Cell, NasBench101Graph
from hwnas.nn.freezing import freeze_module
from hwnas.nn.nas_bench_101_cell import BuiltNasBench101Cell, run_graph
from hwnas.space import Mutable, Sample
from hwnas.supernet.base import BaseSuperNetModule
from hwnas.supernet.members import SlicedModule
from hwnas.supernet.mixture import Mixture
from hwnas.supernet.relaxation import Relaxation


class MixedNasBench101Cell(BaseSuperNetModule, NasBench101Cell):
    """One graph of a `NasBench101Cell` at a time.

    How many channels a node has depends on the graph: OUT divides its channels among the nodes that it reads. Each
    node has every operation once, at the number of channels of OUT, which it has where OUT reads it alone, and a graph
    uses prefixes of the parameters; the same holds for projections. Weights belong to the place of a node in the
    graph without dead nodes, so that samples of one graph are one model.

    Several graphs at once have no meaning as a mixture: their nodes differ in the number of channels, and a channel of
    OUT comes from one node in one graph and from another node in the next.

    Attributes
    ----------
    shared_operations : torch.nn.ModuleList
        For each node between IN and OUT the list of the candidates.
    shared_projections : torch.nn.ModuleList
        Of IN, for each node after it.
    """

    _search_machinery = True
    shared_operations: nn.ModuleList
    shared_projections: nn.ModuleList

    @classmethod
    def adopt(cls, module: nn.Module, relaxation: Relaxation) -> Self:
        """Take over the modules of the default graph, and make all others."""
        assert isinstance(module, NasBench101Cell)
        mixed = super().adopt(module, relaxation)
        built, last = module.default_cell, len(module.inputs)
        widths = [
            module.out_features // joined + rest
            for joined in range(1, max(last, 2))
            for rest in range(1 + (module.out_features % joined > 0))
        ]
        reference = next(built.parameters(), None)

        def share(what: str, make: Callable[[int], nn.Module], made: nn.Module | None, of: list[int]) -> SlicedModule:
            largest = module._plain(make(max(of)), what) if made is None else made
            if reference is not None:
                largest.to(reference.device, reference.dtype)
            return SlicedModule(largest, make, of, f"NasBench101Cell {module.label!r}, {what}").train(module.training)

        default = module.default_graph
        mixed.shared_operations = nn.ModuleList(
            nn.ModuleList(
                share(
                    f"op_candidates[{name!r}]",
                    factory,
                    built.operations[node - 1] if default.operations[node - 1 : node] == (name,) else None,
                    widths,
                )
                for name, factory in module.op_candidates.items()
            )
            for node in range(1, last)
        )
        mixed.shared_projections = nn.ModuleList(
            share(
                "projection",
                partial(module.projection, module.in_features),
                built.projections["1"] if node == 1 else None,  # of a chain, the first node alone reads IN
                widths if node < last else [module.out_features],
            )
            for node in range(1, last + 1)
        )
        del mixed.default_cell
        return mixed

    def own_mutables(self) -> Iterator[Mutable]:
        """Yield the number of nodes, and what chooses their operations and inputs."""
        yield self.num_nodes
        yield from self.operations
        yield from self.inputs

    def forward(self, x: Tensor) -> Tensor:
        """Run the present graph.

        Parameters
        ----------
        x : Tensor, shape (N, in_features, *)
            Input.

        Returns
        -------
        Tensor, shape (N, out_features, *)
            Output.
        """
        graph = self._present_graph()
        channels = graph.channels(self.in_features, self.out_features)

        def project(x: Tensor, node: int) -> Tensor:
            y: Tensor = self._projection(node, graph)(x, channels[node])
            return y

        def operate(x: Tensor, node: int) -> Tensor:
            y: Tensor = self._operation(node, graph)(x, channels[node])
            return y

        return run_graph(x, graph.inputs, channels, project, operate)

    def _operation(self, node: int, graph: NasBench101Graph) -> SlicedModule:
        """Return the operation of a node of a graph."""
        candidates = self.shared_operations[node - 1]
        assert isinstance(candidates, nn.ModuleList)
        chosen = candidates[list(self.op_candidates).index(graph.operations[node - 1])]
        assert isinstance(chosen, SlicedModule)
        return chosen

    def _projection(self, node: int, graph: NasBench101Graph) -> SlicedModule:
        """Return the projection of IN for a node of a graph; that for OUT is the last one, however many nodes."""
        chosen = self.shared_projections[-1 if node == len(graph.inputs) else node - 1]
        assert isinstance(chosen, SlicedModule)
        return chosen

    def _present_graph(self) -> NasBench101Graph:
        last = self._only(self.relaxation.mixture(self.num_nodes)) - 1
        operations = [self._only(self.relaxation.mixture(choice)) for choice in self.operations[: last - 1]]
        inputs = [tuple(self._only(self.relaxation.subset(choice))) for choice in self.inputs[:last]]
        return NasBench101Graph(tuple(operations), tuple(inputs)).pruned()

    def _only(self, mixture: Mixture) -> Any:
        if mixture.weights is not None or len(mixture.values) > 1:
            raise UnsupportedError(
                f"NasBench101Cell {self.label!r}: the number of channels of a node depends on the whole graph, so "
                "there is no forward pass for several graphs at once"
            )
        return mixture.values[0]

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to the modules that the graph needs, with the slices of the parameters here."""
        graph = self.graph(sample)
        channels = graph.channels(self.in_features, self.out_features)
        nodes = range(1, graph.num_nodes)
        built = BuiltNasBench101Cell(
            graph.inputs,
            channels,
            {
                node: self._projection(node, graph).member(channels[node])
                for node, sources in zip(nodes, graph.inputs, strict=True)
                if 0 in sources
            },
            [self._operation(node, graph).member(channels[node]) for node in nodes[:-1]],
        )
        return freeze_module(built.train(self.training), sample, {})

    @classmethod
    def mutate(
        cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> BaseSuperNetModule | bool:
        """Replace a `NasBench101Cell`.

        Raises
        ------
        UnsupportedError
            When several graphs would be active at once.
        """
        if not isinstance(module, NasBench101Cell) or isinstance(module, BaseSuperNetModule):
            return False
        relaxation = mutate_kwargs["relaxation"]
        if relaxation.differentiable:
            raise UnsupportedError(
                f"NasBench101Cell {module.label!r} (at {name}): the number of channels of a node depends on the whole "
                "graph, so there is no mixture of several graphs; use a strategy that samples one architecture, such "
                "as RandomOneShot"
            )
        return cls.adopt(module, relaxation)
