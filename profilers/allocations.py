"""Which memory a traced forward pass allocates, and which operators read it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.utils import _pytree as pytree

from hwnas.errors import UnsupportedError
from hwnas.profilers.logic import ALWAYS
from hwnas.profilers.tables import Table
from hwnas.profilers.trace import Join, OpCall, Trace, storage_of
from hwnas.supernet import MixedInput

INPUT = "input"


@dataclass
class Allocation:
    """The memory of one or several tensors that are views of each other.

    Parameters
    ----------
    name : str
        Path of the module that wrote it, or ``"input"``.
    size : Table
        In bytes; zero in members that do not allocate it.
    where : Table
        Boolean: the members that do.
    step : int
        Position of the operator that writes it in the timeline; -1 for inputs.
    uses : list of (int, Table)
        Positions of the operators that read or write it, and in which members; the position behind the last one
        stands for the caller of the model.
    """

    name: str
    size: Table
    where: Table
    step: int
    uses: list[tuple[int, Table]] = field(default_factory=list)


def allocations_of(trace: Trace, *, uses: bool = True) -> list[Allocation]:
    """Return what the inputs and the operators of a trace allocate, in the order of execution.

    Views and results of in-place operators share the memory of what they were made from. Weights, and views of
    them, are left out, as is what operators allocate for themselves while they run.

    Parameters
    ----------
    trace : Trace
        Of the whole space.
    uses : bool
        Whether to find out which operators read and write what is allocated, which takes longest.

    Raises
    ------
    UnsupportedError
        When a sum has as many terms as a choice of any number of inputs: the trace does not say how many.
    """
    for module in trace.space.modules():
        if isinstance(module, MixedInput) and module.n_chosen is None and module.label not in trace.fixed:
            raise UnsupportedError(
                f"InputChoice {module.label!r}: memory is not known for a choice of any number of inputs, since every "
                "number of them writes other intermediate sums; give it n_chosen"
            )
    ledger = _Ledger(trace, uses)
    here = trace.logic.all(trace.conditions)
    for tensor in trace.inputs:
        ledger.allocate(tensor, INPUT, here, -1)
    for step, event in enumerate(trace.timeline):
        if isinstance(event, Join):
            ledger.join(event)
        else:
            ledger.run(event, step)
    for tensor in trace.outputs:
        ledger.use(tensor, len(trace.timeline), here)
    return ledger.allocations


class _Ledger:
    """Knows for the storage of every tensor what it may be: allocations, each with a condition."""

    def __init__(self, trace: Trace, uses: bool) -> None:
        self._uses = uses
        self.allocations: list[Allocation] = []
        self._symbols = trace.symbols
        self._logic = trace.logic
        self._known: dict[int, list[tuple[Allocation, Table]]] = {}

    def allocate(self, tensor: Tensor, name: str, where: Table, step: int) -> None:
        # Sizes that vary one by one: the product of all may have too many symbols for one table.
        size = self._symbols.evaluate(tensor.element_size())
        for extent in tensor.shape:
            size = self._logic.product(size, self._symbols.evaluate(extent))
        made = Allocation(name, self._logic.masked(size, [where]), where, step)
        self.allocations.append(made)
        self._known[storage_of(tensor)] = [(made, ALWAYS)]

    def run(self, call: OpCall, step: int) -> None:
        where = self._logic.all(call.conditions)
        read = [leaf for leaf in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
        for tensor in read:
            self.use(tensor, step, where)
        for tensor in pytree.tree_leaves(call.output):
            if not isinstance(tensor, Tensor) or storage_of(tensor) in self._known:
                continue
            if call.operator.is_view:  # of a weight
                self._known[storage_of(tensor)] = []
            else:
                self.allocate(tensor, call.module, where, step)

    def join(self, join: Join) -> None:
        known: list[tuple[Allocation, Table]] = []
        if self._uses:
            for (source, _), chosen in zip(join.sources, join.chosen, strict=True):
                for allocation, condition in self._known.get(storage_of(source), []):
                    when = self._logic.all([condition, chosen])
                    if when.values.any():
                        known.append((allocation, when))
        self._known[storage_of(join.result)] = known

    def use(self, tensor: Tensor, step: int, where: Table) -> None:
        if not self._uses:
            return
        for allocation, condition in self._known.get(storage_of(tensor), []):
            when = self._logic.all([where, condition])
            if when.values.any():
                allocation.uses.append((step, when))
