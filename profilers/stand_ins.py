"""Tensors that stand in for those that PyTorch would compute, where only their shape is asked for.

With symbolic sizes most of the time of a trace would go into the strides of slices, and into operators that PyTorch
decomposes to find out about shapes that are plain.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hwnas.profilers.symbols import Size
from hwnas.profilers.tables import combined, holds_always
from hwnas.profilers.tracer import Tracer

aten = torch.ops.aten
_LIKE_INPUT = frozenset(
    {
        aten.relu, aten.silu, aten.gelu, aten.elu, aten.sigmoid, aten.tanh, aten.hardtanh, aten.hardswish,
        aten.hardsigmoid, aten.leaky_relu, aten.mish, aten.softplus,
    }
)  # fmt: skip
_NORMS = frozenset({aten.native_batch_norm, aten._native_batch_norm_legit_no_training})


_LAYERS = frozenset(
    {
        torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d,
        torch.conv_transpose3d, F.linear, F.batch_norm, F.layer_norm, F.group_norm,
    }
)  # fmt: skip


def output_like_input(func: Any, args: tuple[Any, ...]) -> Any:
    """Return the output of an operator that has the shape of its input, padded perhaps, or None for all others."""
    packet = func.overloadpacket
    if packet is aten.constant_pad_nd:  # PyTorch would ask for the sizes as plain numbers
        sizes, pads = list(args[0].shape), args[1]
        for axis in range(len(pads) // 2):
            sizes[-1 - axis] += pads[2 * axis] + pads[2 * axis + 1]
        return args[0].new_empty(sizes)
    if packet in _LIKE_INPUT and args[0].is_floating_point() and func._overloadname == "default":
        return torch.empty_like(args[0])
    if packet in _NORMS and not (packet is aten.native_batch_norm and args[5]):  # no statistics of the batch to return
        nothing = args[0].new_empty(0)
        return torch.empty_like(args[0]), nothing, nothing
    return None


class StandInWeights(TorchFunctionMode):
    """Gives layers weights without values, and makes slices of weights without cutting them.

    A slice is contiguous, as it is in a member, which has it as a parameter of its own. Weights of one shape share a
    stand-in: PyTorch takes a millisecond for each that it has not seen.

    Parameters
    ----------
    tracer : Tracer
        Knows the sizes that are symbols.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer
        self._made: dict[Any, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the weights that layers and slices read, and leave all other functions alone."""
        kwargs = kwargs or {}
        if func is Tensor.__getitem__ and not isinstance(args[0], FakeTensor):
            shape = self._cut(args[0].shape, args[1])
            if shape is not None:
                return self._weight(args[0], shape)
        elif func in _LAYERS:
            args = [self._known(value) for value in args]
            kwargs = {name: self._known(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _known(self, value: Any) -> Any:
        real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self._weight(value, list(value.shape)) if real else value

    def _cut(self, shape: torch.Size, index: Any) -> list[Size] | None:
        """Return the shape of a slice, or None when it is no plain one."""
        places = list(index) if isinstance(index, tuple) else [index]
        if places and places[0] is ...:
            places = [slice(None)] * (len(shape) - len(places) + 1) + places[1:]
        if len(places) > len(shape) or not all(isinstance(place, slice) and place.step is None for place in places):
            return None
        cut: list[Size] = list(shape)
        for axis, place in enumerate(places):
            start = 0 if place.start is None else place.start
            stop = shape[axis] if place.stop is None else place.stop
            if not self._ascend(0, start, stop, shape[axis]):
                return None  # from the end, or beyond it
            cut[axis] = stop - start
        return cut

    def _ascend(self, *sizes: Any) -> bool:
        if not all(isinstance(size, int | torch.SymInt) for size in sizes):
            return False
        tables = [self._tracer.symbols.evaluate(size) for size in sizes]
        return all(holds_always(combined(np.less_equal, pair)) for pair in itertools.pairwise(tables))

    def _weight(self, weight: Tensor, shape: list[Size]) -> Tensor:
        sizes = (size.node.expr if isinstance(size, torch.SymInt) else size for size in shape)
        # Whether a product is folded depends on which of its operands are trained.
        key = (weight.dtype, weight.device, weight.requires_grad, *sizes)
        if key not in self._made:
            with self._tracer.silent():
                made = torch.empty(shape, dtype=weight.dtype, device=weight.device)
                self._made[key] = made.requires_grad_(weight.requires_grad)
        return self._made[key]
