"""What a symbolic forward pass of a whole model space records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hwnas.nn import ModelSpace
from hwnas.profilers.logic import Logic
from hwnas.profilers.symbols import SymbolTable
from hwnas.profilers.tables import Table
from hwnas.space import Sample

Inputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class OpCall:
    """One execution of an operator.

    Parameters
    ----------
    operator : OpOverload
        For instance ``aten.convolution.default``.
    args, kwargs
        Its arguments; tensors are fake and have symbolic shapes.
    output : Any
        What it returned.
    conditions : tuple of Table
        Boolean tables; the operator runs in the members for which all of them hold.
    module : str
        Path of the innermost module that ran it.
    caller : int
        Position of the call of that module in `Trace.modules`, or -1.
    """

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    conditions: tuple[Table, ...]
    module: str
    caller: int


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module, with what it needs to be run on its own.

    Parameters
    ----------
    module : str
        Its path; empty for the space itself.
    args, kwargs
        Its arguments; tensors are fake and have symbolic shapes.
    conditions : tuple of Table
        As for `OpCall`.
    caller : int
        Position of the call around this one in `Trace.modules`, or -1.
    needed : Table
        Boolean: where an operator that ran inside reaches the output. Nowhere when there is no operator inside.
    """

    module: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    conditions: tuple[Table, ...]
    caller: int
    needed: Table


@dataclass(frozen=True)
class Join:
    """A tensor that stands for one of several, depending on choices.

    Parameters
    ----------
    result : Tensor
        What the rest of the model sees.
    sources : list of (Tensor, Table or None)
        Where it may come from, and when; None where the source runs only if it is used anyway.
    chosen : list of Table
        Boolean: when the result is each source, also where that is None in `sources`.
    """

    result: Tensor
    sources: list[tuple[Tensor, Table | None]]
    chosen: list[Table]


@dataclass
class Trace:
    """What a symbolic forward pass recorded.

    Parameters
    ----------
    symbols : SymbolTable
        Turns sizes into tables.
    logic : Logic
        Combines conditions.
    space : ModelSpace
        The traced copy of the space.
    conditions : tuple of Table
        Boolean tables that say for which samples the whole trace holds. They are part of the conditions of every
        call as well.
    fixed : dict
        The labels that were held at one value.
    typical : dict
        The sample that decided where Python code branches.
    inputs : tuple of Tensor
        The fake inputs of the model.
    outputs : tuple of Tensor
        The fake outputs of the model.
    timeline : list of OpCall and Join
        In the order of execution.
    modules : list of ModuleCall
        In the order in which the calls began.
    read : tuple of str
        Labels of values that no symbol can stand for, a float or a string for instance. The trace holds for the values
        that were read, and perhaps for others.
    """

    symbols: SymbolTable
    logic: Logic
    space: ModelSpace
    conditions: tuple[Table, ...] = ()
    fixed: Sample = field(default_factory=dict)
    typical: Sample = field(default_factory=dict)
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    timeline: list[OpCall | Join] = field(default_factory=list)
    modules: list[ModuleCall] = field(default_factory=list)
    read: tuple[str, ...] = ()

    @property
    def operators(self) -> list[OpCall]:
        """The operators in the order of execution."""
        return [event for event in self.timeline if isinstance(event, OpCall)]


def storage_of(tensor: Tensor) -> int:
    """Return what identifies the memory of a tensor, which its views share.

    A trace keeps all its tensors, so no identity is used twice.
    """
    identity: int = tensor.untyped_storage()._cdata
    return identity
