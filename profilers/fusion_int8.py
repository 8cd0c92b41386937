"""Which kernels ONNX Runtime makes of quantised members of a traced space, for many members at once.

`hwnas.export.quantise` puts conversions to integers and back around what has integer kernels, and ONNX Runtime makes
one kernel of each such operator with the conversions around it. An activation that cuts off at zero vanishes in the
operator in front where nothing else reads that one; elsewhere a conversion back and one to integers stay in its place.
Equal operators are not merged, since each has a scale of its own. Convolutions compute with channels last, and the
transpositions around them are pushed on through their neighbours where fewer are left then: see `nhwc_transformer` and
`transpose_optimization` in the sources of ONNX Runtime 1.2x for the rules. That they are met is for `kernels_of` to
tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from hwnas.errors import UnsupportedError
from hwnas.profilers.fusion import Fusion
from hwnas.profilers.kernel import Kernel
from hwnas.profilers.member_graphs import Bools, Ints, MemberGraphs
from hwnas.profilers.trace import Trace

_INTEGER_KERNELS: Final = {
    "Conv": "QLinearConv",
    "Add": "QLinearAdd",
    "AveragePool": "QLinearAveragePool",
    "Concat": "QLinearConcat",
    "Sigmoid": "QLinearSigmoid",
    "ReduceMean": "QLinearGlobalAveragePool",
    "Gemm": "QGemm",
}
_CLAMPS: Final = ("Relu", "Clip")
_FIXED_LAYOUT: Final = ("BatchNormalization", "Gemm")  # no transposition is pushed through
_LAYOUTS: Final = ("AveragePool", "Concat", "GlobalAveragePool")  # their kernels differ by layout
TO_LAST: Final = "Transpose to channels last"
TO_FIRST: Final = "Transpose to channels first"


class QuantisedFusion(Fusion):
    """The kernels of members of a space that are quantised.

    Parameters
    ----------
    trace : Trace
        Of the whole space.
    """

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace, 0)

    def _rules(self, choices: Mapping[str, Ints]) -> MemberGraphs:
        return _Run(self._trace, choices)


class _Run(MemberGraphs):
    """The rules, one after the other."""

    def __init__(self, trace: Trace, choices: Mapping[str, Ints]) -> None:
        super().__init__(trace, choices)
        self._check()
        self._readers = self._count()
        self._integers = self._nowhere()  # whether what an operator returns is held as integers
        self._quantise()
        # Whether an operator runs with channels last; what it returns is copied to channels last; to channels first.
        self._last, self._entered, self._left = (self._nowhere() for _ in range(3))
        self._lay_out()

    def _check(self) -> None:
        for position, event in enumerate(self._events):
            kind = self._kind[position]
            plane = kind != "ReduceMean" or (
                event.args[0].ndim == 4 and sorted(axis % 4 for axis in event.args[1]) == [2, 3]
            )
            clamps = kind != "Clip" or event.args[1:2] == (0,)
            if self._needed[position].any() and not (plane and clamps):
                raise UnsupportedError(
                    f"{event.module}: it is not known here how ONNX Runtime fuses this {kind} in int8"
                )

    def _quantise(self) -> None:
        """Find what is held as integers, and let operators compute the clamping that alone reads them."""
        for position, kind in enumerate(self._kind):
            if kind in _INTEGER_KERNELS:
                alive = self._alive(position)
                for row in (position, *self._read(position)):
                    self._integers[row, self._members] |= alive
        for position, kind in enumerate(self._kind):
            if kind not in (*_CLAMPS, "MaxPool"):
                continue
            (source,) = self._read(position)
            at = source, self._members
            held = self._alive(position) & self._integers[at]
            self._integers[position] |= held
            if kind == "MaxPool":
                continue
            computes = self._is_kind(source, *_INTEGER_KERNELS)
            vanishes = held & computes & (self._readers[at] == 1)
            # What it returns still counts as read by one: cutting it off again changes nothing, so that vanishes too.
            self._stands[position][vanishes] = source[vanishes]

    def _rank(self, row: int) -> Any:
        """Return how many sizes of what an operator returns are not one."""
        tensor = self._trace.inputs[0] if row == self._input else self._first(self._events[row].output)
        return np.sum([np.broadcast_to(np.not_equal(self._size(size), 1), self._n) for size in tensor.shape], axis=0)

    def _ranks(self, rows: Ints) -> Ints:
        ranks = np.zeros(self._n, int)
        for row in np.unique(rows[rows != self._constant]):
            ranks = np.where(rows == row, self._rank(int(row)), ranks)
        return ranks

    def _flattens(self, position: int) -> bool:
        return self._kind[position] == "ReduceMean" and self._first(self._events[position].output).ndim == 2

    def _leading(self) -> Bools:
        """Find what convolutions read, at once or through operators with which a transposition can change places."""
        leading = self._nowhere()
        for position in reversed(range(len(self._events))):
            kind, leads = self._kind[position], self._alive(position)
            if kind != "Conv":
                leads = leads & leading[position] & (kind not in _FIXED_LAYOUT)
            for source in self._read(position):
                leading[source, self._members] |= leads
        return leading

    def _lay_out(self) -> None:
        """Put convolutions into channels last, and what is next to them where that saves transpositions."""
        leading, last = self._leading(), self._nowhere()  # what is returned with channels last
        for position, kind in enumerate(self._kind):
            alive, read = self._alive(position), self._read(position)
            if not alive.any():
                continue
            lasts = last[read, self._members]
            if kind == "Conv":
                moved = alive
            elif kind in _FIXED_LAYOUT:
                moved = np.zeros(self._n, bool)
            else:
                moved = alive & lasts.any(0)
                if kind != "MaxPool" and moved.any():
                    ranks = np.stack([self._ranks(source) for source in read])
                    saved = np.where(lasts, ranks, -ranks).sum(0)
                    moved &= saved > np.where(leading[position], 0, self._rank(position))
            self._last[position] = last[position] = moved
            if self._flattens(position):
                self._left[position] = moved
                last[position] = False
            for source, is_last in zip(read, lasts, strict=True):
                self._entered[source, self._members] |= moved & ~is_last
                self._left[source, self._members] |= alive & ~moved & is_last
        for output in self._outputs:
            source = self._resolved(output)
            self._left[source, self._members] |= last[source, self._members]

    def kernels(self, numbered: Callable[[Kernel], int]) -> Iterator[tuple[str, Ints]]:
        """Yield what runs, see `Fusion.run`."""
        image = self._trace.inputs[0].shape
        yield "", self._simple(numbered, "QuantizeLinear", image, self._integers[self._input])
        yield "", self._simple(numbered, TO_LAST, image, self._entered[self._input])
        for position, (event, kind) in enumerate(zip(self._events, self._kind, strict=True)):
            alive = self._alive(position)
            if not alive.any():
                continue
            shape = self._first(event.output).shape
            vanishes = self._integers[position] if kind in _CLAMPS else np.zeros(self._n, bool)
            flags = [self._adds_constant(position), self._last[position]]
            operator = _INTEGER_KERNELS.get(kind, kind)
            description = self._description(event, kind)
            yield event.module, self._numbers(numbered, operator, description, flags, alive & ~vanishes)
            if kind not in _INTEGER_KERNELS:
                (source,) = self._read(position)
                read, made = self._integers[source, self._members], self._integers[position]
                converts = alive & ~(read & (kind == "MaxPool"))  # a maximum of integers is one
                yield event.module, self._simple(numbered, "DequantizeLinear", event.args[0].shape, converts & read)
                yield event.module, self._simple(numbered, "QuantizeLinear", shape, converts & made)
            pooled = (*shape, 1, 1) if self._flattens(position) else shape
            if self._flattens(position):
                yield event.module, self._simple(numbered, "Flatten", shape, alive)
            for copied, name in ((self._entered, TO_LAST), (self._left, TO_FIRST)):
                yield event.module, self._simple(numbered, name, pooled, copied[position])
        for output, tensor in zip(self._outputs, self._trace.outputs, strict=True):
            held = self._integers[self._resolved(output), self._members] & (output != self._constant)
            yield "", self._simple(numbered, "DequantizeLinear", tensor.shape, held)

    def _simple(self, numbered: Callable[[Kernel], int], operator: str, shape: Sequence[Any], where: Bools) -> Ints:
        """Return the numbers of an operator that is known by its name and the shape of what it works on."""
        flags = [np.zeros(self._n, bool)] * 2
        return self._numbers(numbered, operator, (1, (), shape, shape[1]), flags, where)

    def _flagged(self, kernel: Kernel, flags: Sequence[bool]) -> Kernel:
        constant, last = flags
        kernel = replace(kernel, constant=constant)
        if kernel.computes in _LAYOUTS and kernel.operator.startswith("Q") and not last:
            return replace(kernel, operator=f"plain {kernel.operator}")
        return replace(kernel, operator="NhwcMaxPool") if kernel.operator == "MaxPool" and last else kernel
