"""Runs of a module that are followed once, and written down again wherever it reads a tensor of the same kind.

The cells of a network have the same candidates over and over: a few dozen runs stand for thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from hwnas.profilers.trace import ModuleCall, OpCall, Trace, storage_of


@dataclass(frozen=True)
class _Run:
    """What a run left in a trace.

    Parameters
    ----------
    path : str
        Of the module.
    x, output : Any
        What it read, and what it returned.
    first : int
        Position of its first call in `Trace.modules`.
    calls, operators : list
        All of its calls and operators.
    made : list of (Tensor, Tensor or None)
        The tensors that operators returned, each once, and the one whose memory it shares, if that was there before.
    """

    path: str
    x: Any
    output: Any
    first: int
    calls: list[ModuleCall]
    operators: list[OpCall]
    made: list[tuple[Tensor, Tensor | None]]


class Repeats:
    """Runs modules without choices, each once for every kind of input.

    Parameters
    ----------
    trace : Trace
        Where runs are recorded.
    conditions : list of Table
        Those that hold at present.
    callers : list of int
        Positions in `Trace.modules` of the calls that are under way.
    names : dict
        Paths of modules by identity.
    mode : FakeTensorMode
        To which all tensors belong.
    """

    def __init__(
        self, trace: Trace, conditions: list[Any], callers: list[int], names: dict[int, str], mode: FakeTensorMode
    ) -> None:
        self._trace, self._conditions, self._callers, self._names = trace, conditions, callers, names
        self._mode = mode
        self._known: dict[Any, _Run | None] = {}

    def run(self, module: nn.Module, place: str, x: Any) -> Any:
        """Return what a module returns, having recorded what it runs.

        Parameters
        ----------
        module : torch.nn.Module
            Without choices. It may stand at several places.
        place : str
            Where it stands this time, seen from the module that runs it.
        x : Any
            What it reads.
        """
        path = f"{self._trace.modules[self._callers[-1]].module}.{place}"
        key = (id(module), *_kind(x)) if _is_plain(x) else None
        known = self._known.get(key)
        if known is not None:
            return self._again(known, path, x)
        self._names.update((id(part), f"{path}.{name}".rstrip(".")) for name, part in module.named_modules())
        first, start = len(self._trace.modules), len(self._trace.timeline)
        output = module(x)
        if key is not None and key not in self._known:
            self._known[key] = self._recorded(_Run(path, x, output, first, self._trace.modules[first:], [], []), start)
        return output

    def _recorded(self, run: _Run, start: int) -> _Run | None:
        """Return a run with its operators; None when it is more than they say."""
        memory: dict[int, Tensor] = {}
        seen = {id(run.x)}
        for event in self._trace.timeline[start:]:
            if not isinstance(event, OpCall) or len(event.conditions) != len(self._conditions):
                return None
            for tensor in _tensors((event.args, event.kwargs)):
                memory.setdefault(storage_of(tensor), tensor)
                seen.add(id(tensor))
            for tensor in _tensors(event.output):
                if id(tensor) in seen:
                    continue  # of an operator that works in place
                base = memory.setdefault(storage_of(tensor), tensor)
                if not _is_plain(tensor) or (base is tensor and tensor.storage_offset() != 0):
                    return None
                run.made.append((tensor, None if base is tensor else base))
                seen.add(id(tensor))
            run.operators.append(event)
        return run

    def _again(self, run: _Run, path: str, x: Tensor) -> Any:
        fresh: dict[int, Tensor] = {id(run.x): x}
        with _disable_current_modes():  # nothing of this is part of the model
            for tensor, base in run.made:
                fresh[id(tensor)] = self._like(tensor, None if base is None else fresh.get(id(base), base))

        def renewed(tensor: Tensor) -> Tensor:
            return fresh.get(id(tensor), tensor)

        shift, caller = len(self._trace.modules) - run.first, self._callers[-1]
        conditions = tuple(self._conditions)

        def placed(call: Any) -> dict[str, Any]:
            return {
                "args": _mapped(renewed, call.args),
                "kwargs": _mapped(renewed, call.kwargs),
                "conditions": conditions,
                "module": path + call.module[len(run.path) :],
                "caller": caller if call.caller < run.first else call.caller + shift,
            }

        self._trace.modules += [replace(call, **placed(call)) for call in run.calls]
        self._trace.timeline += [
            OpCall(call.operator, output=_mapped(renewed, call.output), **placed(call)) for call in run.operators
        ]
        return _mapped(renewed, run.output)

    def _like(self, tensor: Tensor, base: Tensor | None) -> Tensor:
        """Make a tensor, in memory of its own or in that of another one."""
        memory = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        if base is not None:
            memory.set_(base.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
        return FakeTensor(self._mode, memory, tensor.device)


def _is_plain(x: Any) -> bool:
    return type(x) is FakeTensor and not x._has_symbolic_sizes_strides and not x.requires_grad


def _kind(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, x.device, x.shape, x.stride(), x.storage_offset()


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_iter(tree) if isinstance(leaf, Tensor))


def _mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Replace the tensors in nested arguments. The trees are small and many; pytree takes several times as long."""
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) in (tuple, list):
        return type(tree)([_mapped(function, part) for part in tree])
    if type(tree) is dict:
        return {key: _mapped(function, part) for key, part in tree.items()}
    return tree
