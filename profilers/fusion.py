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
from dataclasses import replace
from typing import Any, Final

import numpy as np
from torch import Tensor

from hwnas.profilers.kernel import Kernel
from hwnas.profilers.liveness import tensors_of
from hwnas.profilers.member_graphs import ACTIVATIONS, POOLS, Bools, Ints, MemberGraphs
from hwnas.profilers.trace import OpCall, Trace

_PURE: Final = frozenset({*ACTIVATIONS.values(), *POOLS.values(), "Add", "ReduceMean"})


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
        return list(self._rules(choices).kernels(self._numbered))

    def _rules(self, choices: Mapping[str, Ints]) -> MemberGraphs:
        return _Run(self._trace, self._block, choices)

    def _numbered(self, kernel: Kernel) -> int:
        if kernel not in self._number:
            self._number[kernel] = len(self.kernels)
            self.kernels.append(kernel)
        return self._number[kernel]


class _Run(MemberGraphs):
    """The rules, one after the other."""

    def __init__(self, trace: Trace, block: int, choices: Mapping[str, Ints]) -> None:
        super().__init__(trace, choices)
        self._block = block
        self._merge()
        self._readers = self._count()
        self._take_in()
        self._activated, self._summed = self._nowhere(), self._nowhere()
        # Whether what an operator returns is in the blocked layout; copied into it; copied out of it.
        self._blocked, self._entered, self._left = (self._nowhere() for _ in range(3))
        self._activate()
        self._lay_out()

    def _merge(self) -> None:
        """Let equal operators on equal tensors be one, and leave out additions of zero."""
        equals: dict[Any, list[tuple[int, int]]] = {}
        for position, event in enumerate(self._events):
            if self._kind[position] in _PURE and self._needed[position].any():
                read = self._read(position)
                if self._kind[position] == "Add" and isinstance(event.args[1], int | float) and event.args[1] == 0:
                    # The ends of a graph keep their names, so there it stays.
                    inside = (read[0] != self._input) & np.all([end != position for end in self._outputs], axis=0)
                    self._stands[position][inside] = read[0][inside]
                numbers = repr([each for each in event.args if not isinstance(each, Tensor)]), repr(event.kwargs)
                # A parameter equals itself alone.
                attributes = numbers, tuple(id(each) for each in tensors_of(event.args) if id(each) not in self._made)
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

    def _take_in(self) -> None:
        """Let convolutions take normalisations and constants of channels behind them into their weights."""
        for position, kind in enumerate(self._kind):
            where = self._alive(position)
            if not where.any() or kind not in ("BatchNormalization", "Add"):
                continue
            (source, *_) = self._read(position)
            folded = where & self._is_kind(source, "Conv") & (self._readers[source, self._members] == 1)
            if kind == "Add":
                folded &= self._adds_to_channels(self._events[position])
            self._absorb(position, folded, source)

    def _adds_to_channels(self, event: OpCall) -> Any:
        """Tell where an addition adds a parameter that has one value for each channel."""
        x, addend, *_ = event.args
        if not isinstance(addend, Tensor) or id(addend) in self._made or id(x) not in self._made:
            return False
        before = addend.ndim - x.ndim + 1  # sizes in front of that of the channels
        if before not in (0, 1):
            return False
        ones = [self._size(size) == 1 for size in (*addend.shape[:before], *addend.shape[before + 1 :])]
        return np.all([self._size(addend.shape[before]) == self._size(x.shape[1]), *ones], axis=0)

    def _activate(self) -> None:
        """Let each convolution compute the activation that alone reads it."""
        for position, kind in enumerate(self._kind):
            if kind in ACTIVATIONS.values():
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
            elif kind in POOLS.values():
                fits = wants = alive & self._whole_blocks(event.args[0])
            elif kind in ("Gemm", "ReduceMean"):
                fits = wants = np.zeros(self._n, bool)
            else:
                fits = wants = alive & blocked.all(0) & ~self._adds_constant(position)
            if kind == "Concat":
                fits = wants = fits & np.all([self._whole_blocks(tensor) for tensor in event.args[0]], axis=0)
            elif kind == "Add":
                self._compute_sum(position, fits)
            elif kind in ACTIVATIONS.values():
                self._compute_activation(position, fits)
            alive = self._alive(position)
            self._blocked[position] = fits & alive
            for source, is_blocked in zip(read, blocked, strict=True):
                for copied, copies in ((self._entered, wants & ~is_blocked), (self._left, ~wants & is_blocked)):
                    copied[source, self._members] |= alive & copies
        for output in self._outputs:
            source = self._resolved(output)
            self._left[source, self._members] |= self._blocked[source, self._members]

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
                constant = self._adds_constant(position)
                flags = [self._activated[position], self._summed[position], constant, self._blocked[position]]
                yield event.module, self._numbers(numbered, kind, self._description(event, kind), flags, alive)
            yield from self._copies(numbered, position, event.module, self._first(event.output))
        yield from self._copies(numbered, self._input, "", self._trace.inputs[0])

    def _copies(
        self, numbered: Callable[[Kernel], int], row: int, module: str, tensor: Tensor
    ) -> Iterator[tuple[str, Ints]]:
        """Yield the changes of layout of a tensor."""
        for copied, name in ((self._entered, "ReorderInput"), (self._left, "ReorderOutput")):
            if copied[row].any():
                flags = [np.zeros(self._n, bool)] * 4
                description = 1, (), tensor.shape, tensor.shape[1]
                yield module, self._numbers(numbered, name, description, flags, copied[row])

    def _flagged(self, kernel: Kernel, flags: Sequence[bool]) -> Kernel:
        activation, summed, constant, blocked = flags
        kernel = replace(kernel, activation=activation, sum=summed, constant=constant)
        if blocked:
            return self._filled(kernel)
        return replace(kernel, operator="plain Conv") if kernel.operator == "Conv" else kernel

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
