"""What each member of a traced space runs, and what reads what, for many members at once: before anything is fused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwnas.cost import Intermediate
from hwnas.errors import UnsupportedError
from hwnas.profilers.kernel import Kernel
from hwnas.profilers.liveness import CONSTANT, tensors_of
from hwnas.profilers.tables import Table
from hwnas.profilers.trace import Join, OpCall, Trace

Ints = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]

aten = torch.ops.aten

_NOTHING: Final = frozenset({aten.alias, aten.detach, aten.lift_fresh, aten.clone})
ACTIVATIONS: Final = {
    aten.relu: "Relu",
    aten.sigmoid: "Sigmoid",
    aten.tanh: "Tanh",
    aten.hardtanh: "Clip",
}
POOLS: Final = {aten.avg_pool2d: "AveragePool", aten.max_pool2d_with_indices: "MaxPool"}
_NORMS: Final = frozenset({aten.native_batch_norm, aten._native_batch_norm_legit_no_training})
KINDS: Final = {
    **ACTIVATIONS,
    **POOLS,
    **dict.fromkeys(_NORMS, "BatchNormalization"),
    aten.convolution: "Conv",
    aten.add: "Add",
    aten.mean: "ReduceMean",
    aten.addmm: "Gemm",
    aten.cat: "Concat",
}


class MemberGraphs(ABC):
    """The operators of members, on arrays of shape (operators, members).

    Row i stands for what operator i returns; two more rows stand for the inputs and for anything constant. Rules say
    which operators are left in the end, and what their kernels are.

    Parameters
    ----------
    trace : Trace
        Of the whole space.
    choices : mapping of str to ndarray, shape (members,)
        For every label the positions of the chosen values.

    Raises
    ------
    UnsupportedError
        When a member has an operator that is not known here; it is named. When the space has several inputs.
    """

    def __init__(self, trace: Trace, choices: Mapping[str, Ints]) -> None:
        if len(trace.inputs) != 1:
            raise UnsupportedError("fused kernels are known of spaces with one input only")
        self._trace, self._events, self._choices = trace, trace.operators, choices
        self._n = len(next(iter(choices.values()))) if choices else 1
        self._members = np.arange(self._n)
        self._input, self._constant = len(self._events), len(self._events) + 1
        self._kind = [KINDS.get(event.operator.overloadpacket, "") for event in self._events]
        self._sources: list[Ints] = []  # for each operator, shape (tensors that it reads, members)
        self._outputs = self._connect()
        self._needed = self._reach()
        # The operator whose kernel computes each one, once some are merged into others.
        self._stands = np.repeat(np.arange(self._rows, dtype=np.int16)[:, None], self._n, 1)
        self._fold()

    @abstractmethod
    def kernels(self, numbered: Callable[[Kernel], int]) -> Iterator[tuple[str, Ints]]:
        """Yield for each operator that is left the path of its module and its number in each member, -1 for none."""

    @abstractmethod
    def _flagged(self, kernel: Kernel, flags: Sequence[bool]) -> Kernel:
        """Return a kernel with what the rules say about it."""

    @property
    def _rows(self) -> int:
        return len(self._events) + 2

    def _nowhere(self) -> Bools:
        return np.zeros((self._rows, self._n), bool)

    def _at(self, table: Table) -> Any:
        return table.values[tuple(map(self._place, table.labels))]

    def _place(self, label: str) -> Any:
        if isinstance(label, Intermediate):
            return label.table[tuple(map(self._place, label.labels))]
        return self._choices[label]

    def _connect(self) -> list[Ints]:
        """Find which operator makes what each one reads; return those that make the outputs."""
        made: dict[int, Ints] = {id(tensor): np.full(self._n, self._input) for tensor in self._trace.inputs}
        constant = np.full(self._n, self._constant)
        for event in self._trace.timeline:
            if isinstance(event, Join):
                result = constant
                for (source, _), chosen in zip(event.sources, event.chosen, strict=True):
                    result = np.where(self._at(chosen), made.get(id(source), constant), result)
                made[id(event.result)] = result
                continue
            read = [made[id(tensor)] for tensor in tensors_of((event.args, event.kwargs)) if id(tensor) in made]
            packet = event.operator.overloadpacket
            position = len(self._sources)
            self._sources.append(np.stack(read or [constant]).astype(np.int16))
            kept = constant
            if packet in _NOTHING:
                kept = self._sources[-1][0]
            elif packet not in CONSTANT:
                kept = np.where((self._sources[-1] == self._constant).all(0), self._constant, position)
            made.update((id(tensor), kept) for tensor in tensors_of(event.output))
        self._made = frozenset(made)
        return [made.get(id(tensor), constant) for tensor in self._trace.outputs]

    def _reach(self) -> Bools:
        """Find which operators the outputs need."""
        needed = self._nowhere()
        for output in self._outputs:
            needed[output, self._members] = True
        for position in reversed(range(len(self._events))):
            for source in self._sources[position]:
                needed[source, self._members] |= needed[position]
        for position, event in enumerate(self._events):
            if not self._kind[position] and needed[position].any():
                operator = event.operator.overloadpacket
                raise UnsupportedError(f"{event.module}: it is not known here how ONNX Runtime fuses {operator}")
        return needed

    def _resolved(self, rows: Ints) -> Ints:
        # Twice: a copy of an operator stands for the first one, which may stand for the convolution in front.
        once = self._stands[rows, self._members]
        return self._stands[once, self._members]

    def _read(self, position: int) -> Ints:
        return np.stack([self._resolved(source) for source in self._sources[position]])

    def _alive(self, position: int) -> Bools:
        alive: Bools = self._needed[position] & (self._stands[position] == position)
        return alive

    def _count(self) -> Ints:
        """Count how often each tensor is read."""
        readers = np.zeros((self._rows, self._n), dtype=np.int16)
        for position in range(len(self._events)):
            alive = self._alive(position)
            for source in self._read(position):
                readers[source, self._members] += alive
        for output in self._outputs:
            readers[self._resolved(output), self._members] += 1
        return readers

    def _is_kind(self, rows: Ints, *kinds: str) -> Bools:
        return np.asarray(np.isin([*self._kind, "", ""], kinds)[rows])

    def _adds_constant(self, position: int) -> Bools:
        """Tell where an operator is the addition of a constant."""
        if self._kind[position] != "Add":
            return np.zeros(self._n, bool)
        # A number is no tensor, so an addition of one reads a single tensor.
        return np.asarray((self._read(position) == self._constant).any(0) | (len(self._sources[position]) == 1))

    def _fold(self) -> None:
        """Fold normalisations into convolutions that nothing else reads, as exporters do."""
        readers = self._count()
        for position, kind in enumerate(self._kind):
            if kind == "BatchNormalization":
                (source, *_) = self._read(position)
                folded = self._needed[position] & self._is_kind(source, "Conv") & (readers[source, self._members] == 1)
                self._stands[position][folded] = source[folded]

    def _size(self, size: Any) -> Any:
        return size if isinstance(size, int) else self._at(self._trace.symbols.evaluate(size))

    @staticmethod
    def _first(output: Any) -> Tensor:
        return tensors_of(output)[0]

    def _description(self, event: OpCall, kind: str) -> tuple[Any, Sequence[Any], Sequence[Any], Any]:
        """Return groups, window, shape of what is read, and channels that are written, as they stand in the trace."""
        output = self._first(event.output)
        if kind == "Conv":
            x, weight, _, stride, *_ = event.args
            return event.args[8], (*weight.shape[2:], stride[0]), x.shape, output.shape[1]
        if kind in POOLS.values():
            x, size, *rest = event.args
            stride = rest[0] if rest and len(rest[0]) else size
            return 1, (size[0], size[-1], stride[0]), x.shape, output.shape[1]
        if kind == "ReduceMean":
            return 1, (), event.args[0].shape, output.shape[1]
        if kind == "Gemm":
            return 1, (), event.args[1].shape, output.shape[1]
        return 1, (), output.shape, output.shape[1]

    def _numbers(
        self, numbered: Callable[[Kernel], int], operator: str, description: Any, flags: Sequence[Bools], where: Bools
    ) -> Ints:
        """Return the number of what an operator is in each member; -1 where it is not run."""
        numbers = np.full(self._n, -1)
        if not where.any():
            return numbers
        groups, window, shape, channels = description
        sizes = [self._size(size) for size in (groups, *window, *shape, channels)]
        columns = np.stack([np.broadcast_to(each, self._n) for each in (*flags, *sizes)])[:, where]
        varying = [row for row, values in enumerate(columns) if (values != values[0]).any()]
        _, first, inverse = np.unique(
            columns[varying] if varying else columns[:1], axis=1, return_index=True, return_inverse=True
        )
        n = len(flags)
        end = n + 1 + len(window)
        found = []
        for column in columns[:, first].T:
            sizes = [int(each) for each in column]
            kernel = Kernel(operator, tuple(sizes[n + 1 : end]), sizes[n], tuple(sizes[end:-1]), sizes[-1])
            found.append(numbered(self._flagged(kernel, [bool(each) for each in column[:n]])))
        numbers[where] = np.array(found)[inverse.reshape(-1)]
        return numbers
