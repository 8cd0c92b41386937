"""Tracing as a relaxation: every candidate of every choice is active, and sizes that are chosen are symbols."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hwnas.errors import UnsupportedError
from hwnas.nn import ModelSpace
from hwnas.profilers.logic import ALWAYS, Logic
from hwnas.profilers.symbols import SymbolTable, listed_values, tabulate
from hwnas.profilers.tables import Table, combined, holds_always
from hwnas.profilers.trace import Join, OpCall
from hwnas.space import Categorical, CategoricalMultiple, MutableExpression, Sample
from hwnas.supernet import MixedInput, Mixture, Relaxation


class TracedMixture(Mixture):
    """All values of a decision; where it matters which, the trace is told."""

    def __init__(self, decision: MutableExpression, table: Table, tracer: Tracer) -> None:
        self.values = tuple(dict.fromkeys(table.values.flat))
        self.weights = None
        self._decision = decision
        self._table = table
        self._tracer = tracer

    @contextmanager
    def where(self, active: Callable[[Any], bool]) -> Iterator[None]:
        """Record what runs inside under the condition that the decision is `active`."""
        with self._tracer.under(self._condition(active)):
            yield

    def _condition(self, holds: Callable[[Any], bool]) -> Table:
        values = np.array([bool(holds(value)) for value in self._table.values.flat], dtype=bool)
        condition = Table(self._table.labels, values.reshape(self._table.values.shape))
        return self._tracer.logic.same(condition)

    def together(
        self, inputs: Sequence[Tensor], candidates: Sequence[Sequence[nn.Module]]
    ) -> list[tuple[list[int], Tensor]]:
        """Run values at once whose inputs have one shape and whose candidates are the same modules.

        A tensor stands for their inputs, so that what candidates cost is found once and not for every input that they
        may read.
        """
        groups: dict[Any, list[list[int]]] = {}
        for position, (tensor, row) in enumerate(zip(inputs, candidates, strict=True)):
            known = groups.setdefault((tensor.dtype, tensor.device, *map(id, row)), [])
            same = (group for group in known if self._tracer.same_shapes(inputs[group[0]], tensor))
            group = next(same, None)
            if group is None:
                known.append([position])
            else:
                group.append(position)
        return [(group, self._any_of(group, inputs)) for known in groups.values() for group in known]

    def _any_of(self, group: list[int], inputs: Sequence[Tensor]) -> Tensor:
        if len(group) == 1:
            return inputs[group[0]]
        chosen = [self._condition(self.values[position].__eq__) for position in group]
        return self._tracer.join([(inputs[position], None) for position in group], chosen=chosen)

    def combine(self, outputs: Sequence[Any]) -> Any:
        """Return the first output, having checked that the others have its shape.

        Raises
        ------
        UnsupportedError
            When the shape of what follows would depend on the decision.
        """
        labels = ", ".join(self._table.labels)
        values: dict[int, list[Any]] = {}
        distinct: dict[int, Any] = {}  # values that were run together have one output
        for value, output in zip(self.values, outputs, strict=True):
            values.setdefault(id(output), []).append(value)
            distinct[id(output)] = output
        for (value, *_), other in zip(list(values.values())[1:], list(distinct.values())[1:], strict=True):
            self._tracer.require_same_shapes(labels, (self.values[0], outputs[0]), (value, other))
        if len(distinct) == 1:
            return outputs[0]
        chosen = [self._condition(each.__contains__) for each in values.values()]
        joined = [
            self._tracer.join([(source, None) for source in same], chosen=chosen)
            for same in zip(*map(pytree.tree_leaves, distinct.values()), strict=True)
        ]
        return pytree.tree_unflatten(joined, pytree.tree_structure(outputs[0]))


class TracedSubset(Mixture):
    """A choice of several tensors: the default ones stand for those that are chosen."""

    def __init__(self, decision: CategoricalMultiple, default: list[int], tracer: Tracer) -> None:
        super().__init__((default,))
        self._decision = decision
        self._tracer = tracer

    def select(self, tensors: Sequence[Tensor], chosen: Sequence[int]) -> list[Tensor]:
        """Return stand-ins, having recorded when each tensor is used.

        Raises
        ------
        UnsupportedError
            When the tensors differ in shape, so that the shape of what follows would depend on the decision.
        """
        for position, tensor in enumerate(tensors):
            self._tracer.require_same_shapes(self._decision.label, ([0], tensors[0]), ([position], tensor))
        options = listed_values(self._decision)
        used = [
            Table((self._decision.label,), np.array([position in option for option in options]))
            for position in range(len(tensors))
        ]
        sources: list[tuple[Tensor, Table | None]] = list(zip(tensors, used, strict=True))
        return [self._tracer.join(sources, like=tensors[position]) for position in chosen]


class Tracer(Relaxation):
    """The relaxation that records instead of training.

    Parameters
    ----------
    space : ModelSpace
        Its dimensions are traced.
    """

    def __init__(self, space: ModelSpace) -> None:
        super().__init__(space.simplify().values())
        self._generic = _generic_sample(space)
        self._tables: dict[MutableExpression, Table] = {}
        self.start({})

    def start(self, fixed: Sample, typical: Sample | None = None) -> None:
        """Forget what was recorded.

        Parameters
        ----------
        fixed : dict
            Labels that have one value in the next trace, and so are no symbols.
        typical : dict, optional
            Values of labels by which the model branches where it does, instead of those with large numbers.
        """
        self.symbols = SymbolTable()
        self.logic = Logic()
        self.conditions: list[Table] = []
        self.timeline: list[OpCall | Join] = []
        self.recording = True
        #: What the next operator that is recorded returns, instead of its output.
        self.in_place_of_output: Tensor | None = None
        self.fixed = fixed
        self.typical = {**self._generic, **(typical or {})}
        self.read: dict[str, None] = {}
        #: Runs a module without choices: see `Repeats.run`.
        self.run: Callable[..., Any]

    def _table(self, decision: MutableExpression) -> Table:
        if decision not in self._tables:
            self._tables[decision] = tabulate(decision)
        return self._tables[decision]

    def mixture(self, decision: MutableExpression) -> Mixture:
        """Return all values of a decision, or the fixed one."""
        if self._is_fixed(decision):
            return Mixture((decision.evaluate(self.fixed),))
        return TracedMixture(decision, self._table(decision), self)

    def _is_fixed(self, decision: MutableExpression) -> bool:
        return all(leaf.label in self.fixed for leaf in decision.leaves())

    def value(self, expression: MutableExpression) -> Any:
        """Return a symbol for an integer, a tuple of symbols for a tuple of integers, and the default otherwise."""
        if self._is_fixed(expression):
            return expression.evaluate(self.fixed)
        table = self._table(expression)
        default = expression.evaluate(self.typical)
        kinds = {type(value) for value in table.values.flat}
        if kinds == {int}:
            return self.symbols.size(table, default)
        if kinds == {tuple} and len({len(value) for value in table.values.flat}) == 1:
            parts = []
            for position, hint in enumerate(default):
                part = np.array([value[position] for value in table.values.flat]).reshape(table.values.shape)
                parts.append(self.symbols.size(Table(table.labels, part), hint))
            return tuple(parts)
        self.read.update(dict.fromkeys(table.labels))
        return default

    def subset(self, decision: CategoricalMultiple) -> Mixture:
        """Return stand-ins for the chosen items: which ones they are changes no shape, if their number is given."""
        if decision.label in self.fixed:
            return Mixture((self.fixed[decision.label],))
        return TracedSubset(decision, self.typical[decision.label], self)

    def side_by_side(self, tensors: Sequence[Tensor], number: Any, dim: int) -> Tensor:
        """Record a concatenation that reads all tensors, and writes as much as those of a sample have."""
        with self.silent():
            shape = list(tensors[0].shape)
            shape[dim] = number * shape[dim]
            self.in_place_of_output = torch.empty(shape, dtype=tensors[0].dtype, device=tensors[0].device)
        return torch.cat(list(tensors), dim)

    def read_number_of_inputs(self, traced: ModelSpace) -> None:
        """Note which free subsets are joined to something whose size depends on how many items they have."""
        for module in traced.modules():
            if isinstance(module, MixedInput) and module.n_chosen is None and module.reduction in ("concat", "none"):
                self.read[module.label] = None

    @contextmanager
    def under(self, condition: Table) -> Iterator[None]:
        """Record what runs inside as that of the members for which a condition holds."""
        self.conditions.append(self.logic.same(ALWAYS if condition.values.all() else condition))
        try:
            yield
        finally:
            self.conditions.pop()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Run operators that no member runs."""
        self.recording = False
        try:
            yield
        finally:
            self.recording = True

    def join(
        self,
        sources: list[tuple[Tensor, Table | None]],
        like: Tensor | None = None,
        chosen: list[Table] | None = None,
    ) -> Tensor:
        """Return a tensor that stands for one of several, without leaving an operator behind."""
        with self.silent():
            result = torch.empty_like(sources[0][0] if like is None else like)  # of which nothing else is a view
        if chosen is None:
            chosen = [Table((), np.asarray(True)) if when is None else when for _, when in sources]
        self.timeline.append(Join(result, sources, chosen))
        return result

    def resample(self, memo: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Decide nothing."""
        return {}

    def export(self, label: str) -> Any:
        """Return the value that decides where Python code branches."""
        return self.typical[label]

    def require_same_shapes(self, labels: str, one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
        """Raise `UnsupportedError` unless the outputs of two values of a decision, (value, output), agree."""
        shapes = [[getattr(leaf, "shape", ()) for leaf in pytree.tree_leaves(output)] for _, output in (one, other)]
        alike = len(shapes[0]) == len(shapes[1]) and all(
            len(a) == len(b) and all(map(self.always_equal, a, b)) for a, b in zip(*shapes, strict=True)
        )
        if not alike:
            first, second = (", ".join(str(tuple(shape)) for shape in found) for found in shapes)
            raise UnsupportedError(
                f"{labels}: the choice {one[0]!r} gives the shape {first} and {other[0]!r} gives {second}. Costs need "
                "candidates that agree in the shape of their output; give them the same stride, padding and number of "
                "channels"
            )

    def same_shapes(self, a: Tensor, b: Tensor) -> bool:
        """Tell whether two tensors have one shape for every sample."""
        return a.dim() == b.dim() and all(map(self.always_equal, a.shape, b.shape))

    def always_equal(self, a: Any, b: Any) -> bool:
        """Tell whether two sizes are equal for every sample."""
        if type(a) is type(b) is int:
            return a == b
        return holds_always(combined(np.equal, [self.symbols.evaluate(a), self.symbols.evaluate(b)]))


def _generic_sample(space: ModelSpace) -> Sample:
    """Return a sample that is typical: with large numbers, because PyTorch treats sizes of zero and one specially."""
    default = space.robust_default()
    largest = {
        label: max(mutable.values)
        for label, mutable in space.simplify().items()
        if isinstance(mutable, Categorical) and all(type(value) in (int, float) for value in mutable.values)
    }
    return {**default, **largest} if space.contains({**default, **largest}) else default
