"""Cutting a model space into units whose latencies add up.

A unit is a module without choices about structure inside, as large as possible: a candidate block, a stem, a head.
ONNX Runtime fuses within such a module as it does in the whole net. Operators that run between units, in the `forward`
of a container, are units of their own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hwnas.cost.intermediate import base_labels
from hwnas.nn import MutableModule, module_mutables
from hwnas.nn.freezing import freeze_module
from hwnas.profilers.liveness import Liveness, either, operators_with, tensors_of
from hwnas.profilers.logic import NEVER
from hwnas.profilers.macs import FORMULAS
from hwnas.profilers.profiler import domain_of
from hwnas.profilers.symbols import tabulate
from hwnas.profilers.tables import Table, at, check_table_size, length_of, possible, realised, union
from hwnas.profilers.trace import ModuleCall, OpCall, Trace
from hwnas.space import Mutable, MutableExpression, Sample
from hwnas.supernet import BaseSuperNetModule, MixedOperation

MAX_UNIT = 512  # a module with more members than that is not measured as a whole but in parts


@dataclass(frozen=True)
class Unit:
    """A part of a model space that is measured on its own.

    Parameters
    ----------
    name : str
        Path of the module, or of the module and the operator.
    labels : tuple of str
        The labels on which the part itself depends. Where sizes are computed from very many combinations of labels, an
        intermediate stands for which sizes they are.
    conditions : tuple of Table
        Boolean tables: a member runs the part where all of them hold.
    make : callable
        Gives for a sample of `labels`, or of those that decide about them, the part as a plain module and tensors to
        call it with.
    """

    name: str
    labels: tuple[str, ...]
    conditions: tuple[Table, ...]
    make: Callable[[Sample], Workpiece]


@dataclass(frozen=True)
class Workpiece:
    """A plain module and the tensors that it is called with."""

    module: nn.Module
    inputs: tuple[Tensor, ...]

    def identify(self) -> Identity:
        """Run the module once and tell what it computes."""
        text, traffic, weights, macs = canonical_operators(self.module, self.inputs)
        return Identity(hashlib.sha256(text.encode()).hexdigest()[:32], traffic, weights, macs)


@dataclass(frozen=True)
class Identity:
    """What a workpiece computes.

    Parameters
    ----------
    key : str
        A hash of operators, attributes, shapes and types; weights and names do not matter.
    traffic : int
        Number of elements that enter and leave.
    weights : int
        Number of elements that are neither.
    macs : int
        Multiply-adds, of the operators of which they are known.
    """

    key: str
    traffic: int
    weights: int
    macs: int


class _Call(nn.Module):
    """A function or a module with everything but the tensors filled in."""

    def __init__(self, function: Callable[..., Any], leaves: list[Any], structure: Any, tensors: list[int]) -> None:
        super().__init__()
        self.function = function
        self._leaves, self._structure, self._tensors = leaves, structure, tensors

    def forward(self, *tensors: Tensor) -> Any:
        leaves = list(self._leaves)
        for position, tensor in zip(self._tensors, tensors, strict=True):
            leaves[position] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        return self.function(*args, **kwargs)


def units_of(trace: Trace) -> Iterator[Unit]:
    """Cut a traced space into units.

    Parameters
    ----------
    trace : Trace
        Of the whole space.

    Yields
    ------
    Unit
        In the order of execution, modules before loose operators.
    """
    modules = dict(trace.space.named_modules(remove_duplicate=False))
    operators, domain = operators_with(trace), domain_of(trace.space)
    # For each call of a module: when an operator inside is left in an exported member.
    live = [NEVER] * len(trace.modules)
    for event, found in operators:
        caller = event.caller
        while caller >= 0:
            live[caller] = either(trace.logic, live[caller], found.live)
            caller = trace.modules[caller].caller
    inside: list[bool] = []  # for each call of a module: whether it belongs to a unit already
    for position, call in enumerate(trace.modules):
        covered = call.caller >= 0 and inside[call.caller]
        unit = None if covered else _module_unit(trace, domain, modules[call.module], call, live[position])
        inside.append(covered or unit is not None)
        # Where no operator runs inside, an identity for instance, nothing is left to measure.
        if unit is not None and call.needed.values.any() and live[position].values.any():
            yield unit
    for event, found in operators:
        loose = event.caller < 0 or not inside[event.caller]
        if loose and found.live.values.any() and not _is_nothing(event):
            yield from _operator_units(trace, domain, event, found)


def _is_nothing(call: OpCall) -> bool:
    """Tell whether an operator leaves no node behind."""
    aten = torch.ops.aten
    return call.operator.overloadpacket in (aten.detach, aten.alias, aten.lift_fresh, aten.sym_size)


def _module_unit(trace: Trace, domain: dict[str, Any], module: nn.Module, call: ModuleCall, live: Table) -> Unit | None:
    parts = list(module.modules())
    if any(isinstance(part, BaseSuperNetModule) and not isinstance(part, MixedOperation) for part in parts):
        return None
    mutables = [module] if isinstance(module, MutableModule) else list(module_mutables(module))
    labels, shape = _cases(trace, mutables, (call.args, call.kwargs), domain)
    is_leaf = not any(True for _ in module.children())
    if not is_leaf and math.prod(shape) > MAX_UNIT:
        return None
    check_table_size(shape, labels)

    def make(sample: Sample) -> Workpiece:
        frozen = freeze_module(module, {**trace.fixed, **sample}, {}).eval()
        return _workpiece(trace, frozen, call.args, call.kwargs, sample, domain)

    return Unit(call.module, labels, (*call.conditions, call.needed, live), make)


def _operator_units(trace: Trace, domain: dict[str, Any], call: OpCall, found: Liveness) -> Iterator[Unit]:
    """Yield an operator, and apart from it the same one where a tensor that it reads is a constant."""
    labels, shape = _cases(trace, [], (call.args, call.kwargs), domain)
    check_table_size(shape, labels)
    name = f"{call.module}:{call.operator.overloadpacket.__name__}".lstrip(":")

    def unit(name: str, inputs: frozenset[int], condition: Table) -> Unit:
        def make(sample: Sample) -> Workpiece:
            return _workpiece(trace, call.operator, call.args, call.kwargs, sample, domain, inputs)

        return Unit(name, labels, (*call.conditions, found.live, condition), make)

    yield unit(name, found.inputs, found.whole)
    partly = Table(found.whole.labels, ~found.whole.values)
    if partly.values.any() and len(found.inputs) > 1:
        first = next(id(each) for each in tensors_of((call.args, call.kwargs)) if id(each) in found.inputs)
        yield unit(f"{name} with a constant", frozenset({first}), partly)


def _cases(
    trace: Trace, mutables: Sequence[Mutable], arguments: Any, domain: dict[str, Any]
) -> tuple[tuple[str, ...], list[int]]:
    """Return the labels that tell the members of a part apart, and how many values they have.

    Of many combinations few may differ in what the part gets: the channels behind a concatenation of loose ends depend
    on all inputs of a cell, but there are only as many as loose ends.
    """
    tables = _shape_tables(trace, arguments)
    own = [label for mutable in mutables for label in domain_of(mutable) if label not in trace.fixed]
    labels = base_labels([*own, *union(tables)])
    if math.prod(len(domain[label]) for label in labels) > MAX_UNIT:
        given = [tabulate(each) for mutable in mutables for each in _expressions(mutable)]
        narrowed = union([table.narrowed() for table in (*given, *tables)])
        if set(base_labels(narrowed)) == set(labels):
            labels = narrowed
    return labels, [length_of(label, domain) for label in labels]


def _expressions(mutable: Mutable) -> Iterator[MutableExpression]:
    if isinstance(mutable, MutableExpression):
        yield mutable
    else:
        for part in mutable.sub_mutables():
            yield from _expressions(part)


def _shape_tables(trace: Trace, arguments: Any) -> list[Table]:
    tables = []
    for leaf in pytree.tree_leaves(arguments):
        sizes = leaf.shape if isinstance(leaf, Tensor) else [leaf] if isinstance(leaf, torch.SymInt) else []
        tables += [trace.symbols.evaluate(size) for size in sizes if isinstance(size, torch.SymInt)]
    return tables


def _workpiece(
    trace: Trace,
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    sample: Sample,
    domain: dict[str, Any],
    inputs_only: frozenset[int] | None = None,
) -> Workpiece:
    """Make something that can be run on its own, on all tensors or on those alone that have some identities."""
    generator = torch.Generator().manual_seed(0)

    def concrete(size: Any) -> int:
        return int(at(trace.symbols.evaluate(size), sample, domain))

    def fill(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            shape = [concrete(size) for size in leaf.shape]
            if leaf.dtype.is_floating_point:
                return torch.randn(shape, generator=generator, dtype=leaf.dtype)
            return torch.zeros(shape, dtype=leaf.dtype)
        return concrete(leaf) if isinstance(leaf, torch.SymInt) else leaf

    leaves, structure = pytree.tree_flatten((args, kwargs))
    filled = [fill(leaf) for leaf in leaves]
    tensors = [
        position
        for position, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and (inputs_only is None or id(leaf) in inputs_only)
    ]
    inputs = tuple(filled[position] for position in tensors)
    if isinstance(function, nn.Module) and not kwargs and len(inputs) == len(args):
        return Workpiece(function, inputs)
    return Workpiece(_Call(function, filled, structure, tensors).eval(), inputs)


class _Writer(TorchDispatchMode):
    """Writes operators down as text in which tensors are numbered and weights are known by shape alone."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines: list[str] = []
        self.weights: dict[int, Tensor] = {}
        self.macs = 0
        self._alive: list[Tensor] = list(inputs)  # so that no identity is used twice
        self._numbers = {id(tensor): f"%{i}" for i, tensor in enumerate(inputs)}

    def describe(self, leaf: Any) -> str:
        if not isinstance(leaf, Tensor):
            return repr(leaf)
        kind = f"{leaf.dtype}{list(leaf.shape)}"
        if id(leaf) not in self._numbers:
            self.weights[id(leaf)] = leaf
        return f"{self._numbers.get(id(leaf), 'weight')}:{kind}"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        leaves, structure = pytree.tree_flatten((args, kwargs or {}))
        known = any(id(leaf) in self._numbers for leaf in leaves)
        if known:  # what depends on weights alone is a weight itself
            count = FORMULAS.get(func.overloadpacket)
            self.macs += 0 if count is None else int(count(*args, **(kwargs or {}), output=output))
            nesting = "".join(str(structure).split())
            self.lines.append(f"{func}({', '.join(map(self.describe, leaves))}) {nesting}")
            for leaf in pytree.tree_leaves(output):
                if isinstance(leaf, Tensor):
                    self._alive.append(leaf)
                    self._numbers.setdefault(id(leaf), f"%{len(self._numbers)}")
        return output


def canonical_operators(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[str, int, int, int]:
    """Return what a module computes, as text that does not depend on weights or names.

    Parameters
    ----------
    module : torch.nn.Module
        Any plain module.
    inputs : tuple of Tensor
        What it is called with.

    Returns
    -------
    text : str
        One operator a line. Two modules with the same text have the same latency.
    traffic : int
        Number of elements of all inputs and outputs.
    weights : int
        Number of elements of all other tensors that the operators read.
    macs : int
        Multiply-adds, of the operators of which they are known.
    """
    # A real run: at these sizes it takes less time than the shape rules of a fake one.
    with torch.no_grad(), _Writer(inputs) as writer:
        output = module(*inputs)
    results = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    header = [f"input {writer.describe(tensor)}" for tensor in inputs]
    footer = f"output {[writer.describe(tensor) for tensor in results]}"
    traffic = sum(tensor.numel() for tensor in (*inputs, *results))
    weights = sum(tensor.numel() for tensor in writer.weights.values())
    return "\n".join([*header, *writer.lines, footer]), traffic, weights, writer.macs


def members(unit: Unit, domain: dict[str, Any]) -> Iterator[tuple[tuple[int, ...], Sample, Workpiece]]:
    """Yield every member of a unit.

    Yields
    ------
    places : tuple of int
        Which of their values its labels have.
    sample : dict
        Values of the labels that decide about it.
    piece : Workpiece
        The member itself.
    """
    shape = [length_of(label, domain) for label in unit.labels]
    there = np.broadcast_to(possible(unit.labels), shape)
    for places in np.ndindex(*shape):
        if there[places]:
            decided = realised(unit.labels, places)
            sample = {label: domain[label][place] for label, place in decided.items()}
            yield places, sample, unit.make(sample)
