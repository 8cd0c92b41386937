"""Pooling that several operations of a cell apply to the same tensor."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from hwnas.supernet.fused import is_observed

_ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}


class SharedPooling:
    """Runs each kind of pooling once on each tensor, as long as the forward pass of a cell lasts."""

    def __init__(self) -> None:
        self._done: dict[tuple[Any, ...], tuple[Tensor, int, Any]] = {}

    def of(self, candidate: nn.Module) -> Any:
        """Return what runs in the place of a candidate.

        Parameters
        ----------
        candidate : torch.nn.Module
            Of any class.

        Returns
        -------
        callable
            The candidate itself, unless it is a `torch.nn.MaxPool2d` or a `torch.nn.AvgPool2d` without hooks. What
            runs for these gives out the output of an equal one where that has read the same tensor.
        """
        if type(candidate) not in _ARGUMENTS or is_observed(candidate) or _has_any_global_hook():
            return candidate
        return partial(self._run, candidate)

    def _run(self, pooling: nn.Module, x: Tensor) -> Any:
        key = (id(x), type(pooling), *(getattr(pooling, name) for name in _ARGUMENTS[type(pooling)]))
        found = self._done.get(key)
        if found is None or found[1] != x._version:
            found = self._done[key] = (x, x._version, pooling(x))  # x too, so that no other tensor gets its identity
        return found[2]
