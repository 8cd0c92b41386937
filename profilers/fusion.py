"""Which kernels ONNX Runtime makes of the members of a traced space, for many members at once.

What runs in the end is not what a model is written with. Equal operators on one tensor run once, an activation or a sum
is computed by the convolution in front if nothing else needs what that one returns, and convolutions work on a blocked
layout that other operators make them leave and enter again. All of that depends on the neighbours, so in a cell on most
of its choices. Here the few rules are applied to the operators of a trace, on arrays over members: see
`graph_optimizer` and `nchwc_transformer` in the sources of ONNX Runtime 1.2x for the rules themselves. That they are
met is for `kernels_of_session` to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwnas.cost import Intermediate
from hwnas.errors import UnsupportedError
from hwnas.profilers.liveness import CONSTANT, tensors_of
from hwnas.profilers.tables import Table
from hwnas.profilers.trace import Join, OpCall, Trace

Ints = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]

aten = torch.ops.aten

_NOTHING: Final = frozenset({aten.alias, aten.detach, aten.lift_fresh, aten.clone})
_ACTIVATIONS: Final = {
    aten.relu: "Relu",
    aten.sigmoid: "Sigmoid",
    aten.tanh: "Tanh",
    aten.hardtanh: "Clip",
}
_POOLS: Final = {aten.avg_pool2d: "AveragePool", aten.max_pool2d_with_indices: "MaxPool"}
_NORMS: Final = frozenset({aten.native_batch_norm, aten._native_batch_norm_legit_no_training})
_KINDS: Final = {
    **_ACTIVATIONS,
    **_POOLS,
    **dict.fromkeys(_NORMS, "BatchNormalization"),
    aten.convolution: "Conv",
    aten.add: "Add",
    aten.mean: "ReduceMean",
    aten.addmm: "Gemm",
    aten.cat: "Concat",
}
_PURE: Final = frozenset({*_ACTIVATIONS.values(), *_POOLS.values(), "Add", "ReduceMean"})


@dataclass(frozen=True)
class Kernel:
    """What one node of an optimised graph computes.

    Parameters
    ----------
    operator : str
        For instance ``"Conv"``, ``"ReorderInput"``.
    window : tuple of int
        Kernel size and stride of convolutions and poolings.
    groups : int
        Of a convolution.
    shape : tuple of int
        Of the first tensor that it reads.
    channels : int
        That it writes.
    activation, sum : bool
        Whether a convolution computes an activation or adds another tensor besides.
    constant : bool
        Whether an addition adds a constant.
    """

    operator: str
    window: tuple[int, ...]
    groups: int
    shape: tuple[int, ...]
    channels: int
    activation: bool = False
    sum: bool = False
    constant: bool = False

    @property
    def written(self) -> int:
        """Elements that it writes."""
        if self.operator in ("ReduceMean", "Gemm"):
            return self.shape[0] * self.channels
        stride = self.window[2] if self.window else 1
        return self.shape[0] * self.channels * int(np.prod([-(-size // stride) for size in self.shape[2:]]))

    @property
    def traffic(self) -> int:
        """Elements that it reads and writes, without weights."""
        twice = self.sum or (self.operator == "Add" and not self.constant)
        return int(np.prod(self.shape)) + self.written * (2 if twice else 1)

    @property
    def weights(self) -> int:
        """Elements of its weights."""
        if self.operator == "Add":
            return self.written if self.constant else 0
        if self.operator in ("Conv", "Gemm"):
            return self.channels * self.shape[1] // self.groups * int(np.prod(self.window[:2]))
        return 0

    @property
    def macs(self) -> int:
        """Multiply-adds; a pooling counts each element of its window."""
        if self.operator in ("Conv", "Gemm"):
            return self.written * self.shape[1] // self.groups * int(np.prod(self.window[:2]))
        return self.written * int(np.prod(self.window[:2])) if self.window else 0

    @property
    def family(self) -> str:
        """What it has in common with kernels of other shapes, and with those that compute something besides."""
        depthwise = "depthwise " if self.groups > 1 else ""
        window = "x".join(map(str, self.window[:2])) + (f" by {self.window[2]}" if self.window[2:] > (1,) else "")
        few = " of few channels" if self.operator == "Conv" and self.shape[1] < 8 else ""
        return f"{depthwise}{self.operator} {window}{few}".strip()


class Fusion:
    """The kernels of members of a space.

    Parameters
    ----------
    trace : Trace
        Of the whole space.
    block : int
        How many channels ONNX Runtime puts side by side; 0 where it has no blocked layout.
    """

    def __init__(self, trace: Trace, block: int) -> None:
        self._trace, self._block = trace, block
        self._events = trace.operators
        self.kernels: list[Kernel] = []
        self._number: dict[Kernel, int] = {}

    def run(self, choices: Mapping[str, Ints]) -> list[tuple[str, Ints]]:
        """Find what runs in some members.

        Parameters
        ----------
        choices : mapping of str to ndarray, shape (members,)
            For every label the positions of the chosen values.

        Returns
        -------
        list of (str, ndarray)
            For each operator of the trace that is left in some member the path of its module and the number of its
            kernel in `kernels`, -1 where it is not run, shape (members,). Changes of layout are operators of their own.

        Raises
        ------
        UnsupportedError
            When a member has an operator whose fusion is not known here; it is named.
        """
        return list(_Run(self._trace, self._events, self._block, choices).kernels(self._numbered))

    def _numbered(self, kernel: Kernel) -> int:
        if kernel not in self._number:
            self._number[kernel] = len(self.kernels)
            self.kernels.append(kernel)
        return self._number[kernel]


class _Run:
    """The rules, one after the other, on arrays of shape (operators, members).

    Row i stands for what operator i returns; two more rows stand for the inputs and for anything constant.
    """

    def __init__(self, trace: Trace, events: Sequence[OpCall], block: int, choices: Mapping[str, Ints]) -> None:
        self._trace, self._events, self._block, self._choices = trace, events, block, choices
        self._n = len(next(iter(choices.values()))) if choices else 1
        self._members = np.arange(self._n)
        self._input, self._constant = len(events), len(events) + 1
        self._kind = [_KINDS.get(event.operator.overloadpacket, "") for event in events]
        self._sources: list[Ints] = []  # for each operator, shape (tensors that it reads, members)
        self._outputs = self._connect()
        self._needed = self._reach()
        rows = (len(events) + 2, self._n)
        # The operator whose kernel computes each one, once some are merged into others.
        self._stands = np.repeat(np.arange(rows[0], dtype=np.int16)[:, None], self._n, 1)
        self._merge()
        self._readers = self._count()
        self._activated, self._summed = np.zeros(rows, bool), np.zeros(rows, bool)
        # Whether what an operator returns is in the blocked layout; copied into it; copied out of it.
        self._blocked, self._entered, self._left = (np.zeros(rows, bool) for _ in range(3))
        self._activate()
        self._lay_out()

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
        return [made.get(id(tensor), constant) for tensor in self._trace.outputs]

    def _reach(self) -> Bools:
        """Find which operators the outputs need."""
        needed = np.zeros((len(self._events) + 2, self._n), bool)
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
        readers = np.zeros((len(self._events) + 2, self._n), dtype=np.int16)
        for position in range(len(self._events)):
            alive = self._alive(position)
            for source in self._read(position):
                readers[source, self._members] += alive
        for output in self._outputs:
            readers[self._resolved(output), self._members] += 1
        return readers

    def _is_kind(self, rows: Ints, kind: str) -> Bools:
        return np.array([*(each == kind for each in self._kind), False, False])[rows]

    def _merge(self) -> None:
        """Fold normalisations into convolutions, and let equal operators on equal tensors be one."""
        readers = self._count()
        equals: dict[Any, list[tuple[int, int]]] = {}
        for position, event in enumerate(self._events):
            kind, needed = self._kind[position], self._needed[position]
            if not needed.any():
                continue
            read = self._read(position)
            if kind == "BatchNormalization":
                folded = needed & self._is_kind(read[0], "Conv") & (readers[read[0], self._members] == 1)
                self._stands[position][folded] = read[0][folded]
            elif kind in _PURE:
                attributes = repr([each for each in event.args if not isinstance(each, Tensor)])
                known = equals.setdefault((event.operator, attributes, len(read)), [])
                earliest, latest = int(read.min()), int(read[read < self._input].max(initial=-1))
                for other, last in known:
                    if last < earliest:
                        continue  # it never reads what this one reads
                    same = self._alive(other) & self._alive(position)
                    # Constants are weights of their own even where they are equal.
                    same &= ((self._read(other) == read) & (read != self._constant)).all(0)
                    self._stands[position][same] = other
                known.append((position, latest if (read != self._input).all() else self._input))

    def _absorb(self, position: int, where: Bools, into: Ints) -> None:
        """Let convolutions compute what an operator behind them did."""
        rows, members = into[where], self._members[where]
        self._stands[position][where] = rows
        self._readers[rows, members] = self._readers[position][where]

    def _activate(self) -> None:
        """Let each convolution compute the activation that alone reads it."""
        for position, kind in enumerate(self._kind):
            if kind in _ACTIVATIONS.values():
                self._compute_activation(position, self._needed[position])

    def _convolves(self, rows: Ints) -> Bools:
        """Tell which operators are convolutions that only one other reads and that compute no activation yet."""
        at = rows, self._members
        # In the blocked layout a normalisation is a convolution of each channel for itself.
        convolves = self._is_kind(rows, "Conv") | (self._is_kind(rows, "BatchNormalization") & self._blocked[at])
        return np.asarray(convolves & (self._readers[at] == 1) & ~self._activated[at])

    def _compute_activation(self, position: int, where: Bools) -> None:
        (source,) = self._read(position)
        fused = where & self._alive(position) & self._convolves(source)
        self._activated[source[fused], self._members[fused]] = True
        self._absorb(position, fused, source)

    def _compute_sum(self, position: int, where: Bools) -> None:
        for source in self._read(position):
            fused = where & self._alive(position) & self._convolves(source) & ~self._summed[source, self._members]
            self._summed[source[fused], self._members[fused]] = True
            self._absorb(position, fused, source)

    def _lay_out(self) -> None:
        """Put what convolutions and poolings read into the blocked layout, and out again where others read it."""
        for position, (event, kind) in enumerate(zip(self._events, self._kind, strict=True)):
            alive = self._alive(position)
            if not alive.any():
                continue
            read = self._read(position)
            blocked = self._blocked[read, self._members]
            # `fits`: it runs in the blocked layout; `wants`: it reads that.
            if kind == "Conv":
                fits, wants = self._layout_of_convolution(event, alive)
            elif kind in _POOLS.values():
                fits = wants = alive & self._whole_blocks(event.args[0])
            elif kind in ("Gemm", "ReduceMean"):
                fits = wants = np.zeros(self._n, bool)
            else:
                fits = wants = alive & blocked.all(0)
            if kind == "Concat":
                fits = wants = fits & np.all([self._whole_blocks(tensor) for tensor in event.args[0]], axis=0)
            elif kind == "Add":
                self._compute_sum(position, fits)
            elif kind in _ACTIVATIONS.values():
                self._compute_activation(position, fits)
            alive = self._alive(position)
            self._blocked[position] = fits & alive
            for source, is_blocked in zip(read, blocked, strict=True):
                for copied, copies in ((self._entered, wants & ~is_blocked), (self._left, ~wants & is_blocked)):
                    copied[source, self._members] |= alive & copies
        for output in self._outputs:
            source = self._resolved(output)
            self._left[source, self._members] |= self._blocked[source, self._members]

    def _size(self, size: Any) -> Any:
        return size if isinstance(size, int) else self._at(self._trace.symbols.evaluate(size))

    def _whole_blocks(self, tensor: Tensor) -> Any:
        return np.logical_and(self._block > 0, self._size(tensor.shape[1]) % max(self._block, 1) == 0)

    def _layout_of_convolution(self, event: OpCall, alive: Bools) -> tuple[Bools, Bools]:
        """Tell where a convolution writes the blocked layout, and where it reads it."""
        x, groups = event.args[0], self._size(event.args[8])
        read, written = self._size(x.shape[1]), self._size(event.output.shape[1])
        few = np.logical_and(groups == 1, read < self._block)
        dense = (groups == 1) & (few | (read % 4 == 0))
        depthwise = (groups > 1) & (groups == read) & (groups == written)
        whole = (read % max(self._block, 1) == 0) & (written // groups % max(self._block, 1) == 0)
        fits = alive & (self._block > 0) & (x.ndim == 4) & (dense | depthwise | ((groups > 1) & whole))
        return fits, fits & ~few

    def kernels(self, numbered: Callable[[Kernel], int]) -> Iterator[tuple[str, Ints]]:
        """Yield what runs, see `Fusion.run`."""
        for position, (event, kind) in enumerate(zip(self._events, self._kind, strict=True)):
            alive = self._alive(position)
            if alive.any():
                constant = (self._read(position) == self._constant).any(0) if kind == "Add" else np.zeros(self._n, bool)
                if kind == "Add" and len(self._sources[position]) == 1:
                    constant[:] = True
                flags = [self._activated[position], self._summed[position], constant, self._blocked[position]]
                yield event.module, self._numbers(numbered, kind, self._description(event, kind), flags, alive)
            for copied, name in ((self._entered, "ReorderInput"), (self._left, "ReorderOutput")):
                where = copied[position]
                if where.any():
                    shape = self._first(event.output).shape
                    flags = [np.zeros(self._n, bool)] * 4
                    yield event.module, self._numbers(numbered, name, (1, (), shape, shape[1]), flags, where)

    @staticmethod
    def _first(output: Any) -> Tensor:
        return tensors_of(output)[0]

    def _description(self, event: OpCall, kind: str) -> tuple[Any, Sequence[Any], Sequence[Any], Any]:
        """Return groups, window, shape of what is read, and channels that are written, as they stand in the trace."""
        output = self._first(event.output)
        if kind == "Conv":
            x, weight, _, stride, *_ = event.args
            return event.args[8], (*weight.shape[2:], stride[0]), x.shape, output.shape[1]
        if kind in _POOLS.values():
            x, size, *rest = event.args
            stride = rest[0] if rest and len(rest[0]) else size
            return 1, (size[0], size[-1], stride[0]), x.shape, output.shape[1]
        if kind == "ReduceMean":
            return 1, (), event.args[0].shape, output.shape[1]
        if kind == "Gemm":
            return 1, (), event.args[1].shape, output.shape[1]
        return 1, (), output.shape, output.shape[1]

    def _filled(self, kernel: Kernel) -> Kernel:
        """Return a kernel that writes the blocked layout, in which channels are filled up to whole blocks."""

        def whole(channels: int) -> int:
            return -(-channels // self._block) * self._block

        batch, read, *sizes = kernel.shape
        depthwise = kernel.groups == read > 1
        if kernel.operator == "BatchNormalization":
            kernel, depthwise = replace(kernel, operator="Conv", window=(1, 1, 1)), True
        if kernel.operator != "Conv" or depthwise or kernel.groups > 1 or read >= self._block:
            read = whole(read)
        groups = read if depthwise else kernel.groups
        return replace(kernel, shape=(batch, read, *sizes), channels=whole(kernel.channels), groups=groups)

    def _numbers(
        self, numbered: Callable[[Kernel], int], operator: str, description: Any, flags: Sequence[Bools], where: Bools
    ) -> Ints:
        """Return the number of what an operator is in each member; -1 where it is not run."""
        groups, window, shape, channels = description
        sizes = [self._size(size) for size in (groups, *window, *shape, channels)]
        columns = np.stack([np.broadcast_to(each, self._n) for each in (*flags, *sizes)])[:, where]
        varying = [row for row, values in enumerate(columns) if (values != values[0]).any()]
        _, first, inverse = np.unique(
            columns[varying] if varying else columns[:1], axis=1, return_index=True, return_inverse=True
        )
        found = []
        for column in columns[:, first].T:
            activation, summed, constant, blocked = map(bool, column[:4])
            n = 5 + len(window)
            kernel = Kernel(
                operator,
                tuple(map(int, column[5:n])),
                int(column[4]),
                tuple(map(int, column[n:-1])),
                int(column[-1]),
                activation,
                summed,
                constant,
            )
            if blocked:
                kernel = self._filled(kernel)
            elif operator == "Conv":
                kernel = replace(kernel, operator="plain Conv")
            found.append(numbered(kernel))
        numbers = np.full(self._n, -1)
        numbers[where] = np.array(found)[inverse.reshape(-1)]
        return numbers
