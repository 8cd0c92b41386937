"""`Cell` in a super-net, and the operations of cells that are made by callables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from hwnas.nn.cell import Cell, ChosenCell
from hwnas.nn.cell_factory import FactoryChoice
from hwnas.nn.freezing import freeze_module
from hwnas.space import Mutable, MutableExpression, Sample
from hwnas.supernet.base import BaseSuperNetModule
from hwnas.supernet.mixed_candidates import MixedCandidates, nonzero_positions, part_of
from hwnas.supernet.mixture import Mixture
from hwnas.supernet.relaxation import Relaxation
from hwnas.supernet.sharing import sharing


class MixedCell(BaseSuperNetModule, Cell, ChosenCell):  # the last one is what is left when it is frozen
    """The mixture of the graphs of a `Cell`.

    Its inputs and operations are replaced one by one, by `MixedInput`, `MixedLayer` and `MixedFactoryChoice`. What
    is left to the cell is its output, which for loose ends depends on what the nodes read:

    - Where every decision has one value, the loose ends of that sample are concatenated, as in the frozen cell.
    - Where several are active at once, all nodes are, each multiplied by the probability that nothing reads it. A
      node depends on its own decisions and those before it, being a loose end on those after it: for linear
      operations the result is therefore exactly the expectation, zeros standing for nodes that are not output.

    A layer behind the cell has weights for each node, not for each position in the concatenation; see
    `hwnas.supernet.behind_cell`. Operations share poolings and ReLUs of a node.
    """

    _search_machinery = True

    def forward(self, *inputs: Tensor | Sequence[Tensor]) -> Any:
        """Run all nodes and merge them; see `ChosenCell.forward`."""
        with sharing(operation for node in self.ops for operation in node):  # type: ignore[attr-defined]
            return super().forward(*inputs)

    def own_mutables(self) -> Iterator[Mutable]:
        """Yield the number of loose ends."""
        if isinstance(self.num_output_nodes, MutableExpression):
            yield self.num_output_nodes

    def _read(self, selector: nn.Module, operation: nn.Module, states: list[Tensor]) -> Tensor:
        if isinstance(operation, MixedFactoryChoice):
            result: Tensor = operation(states)
            return result
        return super()._read(selector, operation, states)

    def _merge(self, states: list[Tensor]) -> Tensor:
        if self.merge_op == "all":
            return super()._merge(states)
        read = {str(selector.label): self.relaxation.subset(selector.choice) for _, selector in self._selectors()}
        if any(mixture.weights is not None for mixture in read.values()):
            parts = [self._weighted(node, states[node], read) for node in self._possible_outputs()]
            return torch.cat(parts, self.concat_dim)
        number = self.relaxation.value(self._number())
        if isinstance(number, int):
            loose = self.output_nodes({label: mixture.values[0] for label, mixture in read.items()})
            return torch.cat([states[node] for node in loose], self.concat_dim)
        # A symbol, which stands for every sample at once: only the size matters.
        return self.relaxation.side_by_side(
            [states[node] for node in self._possible_outputs()], number, self.concat_dim
        )

    def _number(self) -> MutableExpression:
        number = self.num_output_nodes
        assert isinstance(number, MutableExpression)
        return number

    def _possible_outputs(self) -> list[int]:
        total = self.num_predecessors + self.num_nodes
        return [node for node in range(total) if node >= self.num_predecessors or node in self.always_output]

    def _weighted(self, node: int, state: Tensor, read: dict[str, Mixture]) -> Tensor:
        """Multiply a node by the probability that it is output."""
        if node in self.always_output:
            return state
        probability = state.new_ones(())
        for later, selector in self._selectors():
            if later > node:
                probability = probability * (1 - _weight_of(node, read[selector.label], probability))
        return state * probability

    @classmethod
    def mutate(
        cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> BaseSuperNetModule | bool:
        """Replace a `Cell`."""
        if not isinstance(module, Cell) or isinstance(module, BaseSuperNetModule):
            return False
        return cls.adopt(module, mutate_kwargs["relaxation"])


def _weight_of(item: int, mixture: Mixture, like: Tensor) -> Tensor:
    """Return how far an item of a choice of one is active."""
    if mixture.weights is None:
        return like.new_tensor(float(item in mixture.values[0]))
    if item not in mixture.values:
        return like.new_zeros(())
    return mixture.weights[mixture.values.index(item)].to(like.dtype)


class MixedFactoryChoice(MixedCandidates, FactoryChoice):
    """The mixture over what an operation of a cell reads and what it computes.

    Every candidate is made once for every input that it may read, when the super-net is made: which module a
    callable makes, its stride for example, may depend on the input. They all have weights of their own. The
    weight of a candidate on an input is the product of the two.

    Attributes
    ----------
    made : torch.nn.ModuleList
        For each input the list of the candidates.
    """

    _search_machinery = True
    made: nn.ModuleList

    @classmethod
    def adopt(cls, module: nn.Module, relaxation: Relaxation) -> Self:
        """Take over the operation of the default sample, and make all others."""
        assert isinstance(module, FactoryChoice)
        rows = [module.make_several(module.names, source) for source in module.source.values]
        (default_source,) = module.source.default_value()
        row = rows[list(module.source.values).index(default_source)]
        row[module.names.index(module.choice.default_value())] = module.default_operation
        return cls.adopt_made(module, rows, relaxation)

    @classmethod
    def adopt_made(cls, module: FactoryChoice, made: Sequence[Sequence[nn.Module]], relaxation: Relaxation) -> Self:
        """Take over a choice, given for each input the list of the candidates."""
        mixed = super().adopt(module, relaxation)
        del mixed.default_operation
        mixed.made = nn.ModuleList(map(nn.ModuleList, made))
        return mixed

    def candidate(self, name: int | str, source: int) -> nn.Module:
        """Return the candidate `name` for an operation that reads `source`."""
        row = self.made[list(self.source.values).index(source)]
        assert isinstance(row, nn.ModuleList)
        return row[self.names.index(name)]

    def own_mutables(self) -> Iterator[Mutable]:
        """Yield the choice of the candidate; that of the input belongs to the cell."""
        yield self.choice

    def named_candidates(self) -> dict[Any, list[nn.Module]]:
        """Return each candidate, by its name: one module for every input."""
        return {name: [self.candidate(name, source) for source in self.source.values] for name in self.names}

    def forward(self, states: Sequence[Tensor]) -> Any:
        """Run the active candidates on the active inputs, and mix their outputs.

        Parameters
        ----------
        states : sequence of Tensor
            The nodes that the operation may read.
        """
        sources = self.relaxation.subset(self.source)
        if sources.weights is None:  # exactly one
            sources = self.relaxation.mixture(self.source[0])
        names = self.relaxation.mixture(self.choice)
        if type(sources) is type(names) is Mixture and sources.weights is not None and names.weights is not None:
            return self._run_all(sources, names, [states[source] for source in sources.values])
        candidates = [[self.candidate(name, source) for name in names.values] for source in sources.values]
        read: dict[int, Any] = {}
        for positions, state in sources.together([states[source] for source in sources.values], candidates):
            with sources.where({sources.values[position] for position in positions}.__contains__):
                read |= dict.fromkeys(positions, self.run(names, candidates[positions[0]], state))
        return sources.combine([read[position] for position in range(len(sources.values))])

    def _run_all(self, sources: Mixture, names: Mixture, inputs: Sequence[Tensor]) -> Any:
        """Mix the outputs of all active candidates on all active inputs as one sum."""
        positions = [self.names.index(name) for name in names.values]
        made: Any = self.made
        of_source = {source: list(row) for source, row in zip(self.source.values, made, strict=True)}
        rows = [[of_source[source][position] for position in positions] for source in sources.values]
        kept = nonzero_positions(names, rows, inputs)
        if len(kept) < len(names.values):
            names, rows = part_of(names, kept), [[row[k] for k in kept] for row in rows]
        outputs = [output for row, x in zip(rows, inputs, strict=True) for output in self.run_each(names, row, x)]
        assert sources.weights is not None
        assert names.weights is not None
        weights = torch.outer(sources.weights, names.weights).flatten()
        joint = Mixture(list(itertools.product(sources.values, names.values)), weights)
        return self.mix(joint, [candidate for row in rows for candidate in row], outputs)

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to the chosen candidate, with the weights that it has here."""
        (source,) = sample[self.source.label]
        return freeze_module(self.candidate(sample[self.label], source), sample, memo)

    @classmethod
    def mutate(
        cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> BaseSuperNetModule | bool:
        """Replace a `FactoryChoice`."""
        if not isinstance(module, FactoryChoice) or isinstance(module, BaseSuperNetModule):
            return False
        return cls.adopt(module, mutate_kwargs["relaxation"])
