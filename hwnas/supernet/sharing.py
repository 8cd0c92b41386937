"""What several operations of a cell compute of the same tensor, computed once: poolings and ReLUs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

# What decides about the output, besides the input.
_ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.ReLU: (),
}


class SharedResults:
    """Results of the modules with which candidates begin, for the tensors of a cell."""

    def __init__(self) -> None:
        self._done: dict[tuple[Any, ...], tuple[Tensor, int, Any]] = {}

    def run(self, module: nn.Module, x: Any, following: nn.Module | None) -> Any:
        """Call a module, unless an equal one has read the same tensor.

        Parameters
        ----------
        module : torch.nn.Module
            Nothing may watch it. Only results of `torch.nn.MaxPool2d`, `torch.nn.AvgPool2d` and `torch.nn.ReLU` are
            shared, of the latter unless it works in place.
        x : Any
            What it reads.
        following : torch.nn.Module, optional
            What reads the result inside the candidate: a convolution or a batch normalisation does not change it, of
            others that is not known. None where it is the output of the candidate, which cells do not change.
        """
        if not _may_be_shared(module, x, following):
            return module(x)
        key = (id(x), type(module), *(getattr(module, name) for name in _ARGUMENTS[type(module)]))
        found = self._done.get(key)
        if found is None or found[1] != x._version:
            found = self._done[key] = (x, x._version, module(x))  # x too, so that no other tensor gets its identity
        return found[2]


def _may_be_shared(module: nn.Module, x: Any, following: nn.Module | None) -> bool:
    if type(module) not in _ARGUMENTS or not isinstance(x, Tensor) or getattr(module, "inplace", False):
        return False
    return following is None or isinstance(following, _ConvNd | _BatchNorm)


@contextmanager
def sharing(operations: Iterable[nn.Module]) -> Iterator[None]:
    """Let mixtures of candidates share results, as long as the forward pass of a cell lasts.

    Parameters
    ----------
    operations : iterable of torch.nn.Module
        Of one cell. Those that are no `MixedCandidates` do not know of it.
    """
    if torch.compiler.is_compiling():
        yield
        return
    shared, sharers = SharedResults(), list(operations)
    for operation in sharers:
        vars(operation)["shared"] = shared
    try:
        yield
    finally:
        for operation in sharers:
            vars(operation).pop("shared", None)
