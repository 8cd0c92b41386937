"""Following one symbolic forward pass of a whole model space.

Tracing is a relaxation like any other: every candidate of every choice runs, once, and each operator is recorded
together with the condition under which a member executes it. Sizes that are chosen are symbols, and PyTorch's own
shape rules carry them through the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hwnas.errors import UnsupportedError
from hwnas.nn import ModelSpace
from hwnas.profilers.guards import at, fingerprint, violations
from hwnas.profilers.symbols import (
    SymbolTable,
    Table,
    conjunction,
    disjunction,
    is_listed,
    listed_values,
    tabulate,
    union,
)
from hwnas.space import Categorical, CategoricalMultiple, MutableExpression, Sample
from hwnas.supernet import DEFAULT_HOOKS, MixedInput, Mixture, MutationHook, Relaxation, is_supernet, make_supernet

Inputs = Tensor | tuple[Tensor, ...]
MAX_TRACES = 256


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
    """

    result: Tensor
    sources: list[tuple[Tensor, Table | None]]


@dataclass
class Trace:
    """What a symbolic forward pass recorded.

    Parameters
    ----------
    symbols : SymbolTable
        Turns sizes into tables.
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


class TracedMixture(Mixture):
    """All values of a decision; where it matters which, the trace is told."""

    def __init__(self, decision: MutableExpression, table: Table, tracer: Tracer) -> None:
        self.values = tuple(dict.fromkeys(table.values.flat))
        self.weights = None
        self._decision = decision
        self._table = table
        self._tracer = tracer

    @contextmanager
    def where(self, active: Callable[[Any], bool]) -> Iterator[None]:
        """Record what runs inside under the condition that the decision is `active`."""
        holds = np.array([bool(active(value)) for value in self._table.values.flat])
        condition = Table(self._table.labels, holds.reshape(self._table.values.shape))
        self._tracer.conditions.append(condition)
        try:
            yield
        finally:
            self._tracer.conditions.pop()

    def combine(self, outputs: Sequence[Any]) -> Any:
        """Return the first output, having checked that the others have its shape.

        Raises
        ------
        UnsupportedError
            When the shape of what follows would depend on the decision.
        """
        first, *others = (pytree.tree_leaves(output) for output in outputs)
        labels = ", ".join(self._table.labels)
        for value, other in zip(self.values[1:], outputs[1:], strict=True):
            self._tracer.require_same_shapes(labels, (self.values[0], outputs[0]), (value, other))
        joined = [self._tracer.join([(source, None) for source in same]) for same in zip(first, *others, strict=True)]
        return pytree.tree_unflatten(joined, pytree.tree_structure(outputs[0]))


class TracedSubset(Mixture):
    """A choice of several tensors: the default ones stand for those that are chosen."""

    def __init__(self, decision: CategoricalMultiple, default: list[int], tracer: Tracer) -> None:
        super().__init__((default,))
        self._decision = decision
        self._tracer = tracer

    def select(self, tensors: Sequence[Tensor], chosen: Sequence[int]) -> list[Tensor]:
        """Return stand-ins, having recorded when each tensor is used.

        Raises
        ------
        UnsupportedError
            When the tensors differ in shape, so that the shape of what follows would depend on the decision.
        """
        for position, tensor in enumerate(tensors):
            self._tracer.require_same_shapes(self._decision.label, ([0], tensors[0]), ([position], tensor))
        options = listed_values(self._decision)
        used = [
            Table((self._decision.label,), np.array([position in option for option in options]))
            for position in range(len(tensors))
        ]
        sources: list[tuple[Tensor, Table | None]] = list(zip(tensors, used, strict=True))
        return [self._tracer.join(sources, like=tensors[position]) for position in chosen]


class Tracer(Relaxation):
    """The relaxation that records instead of training.

    Parameters
    ----------
    space : ModelSpace
        Its dimensions are traced.
    fixed : dict, optional
        Labels that have one value in this trace, and so are no symbols.
    """

    def __init__(self, space: ModelSpace, fixed: Sample | None = None) -> None:
        super().__init__(space.simplify().values())
        self.symbols = SymbolTable()
        self.conditions: list[Table] = []
        self.timeline: list[OpCall | Join] = []
        self.recording = True
        self.fixed = fixed or {}
        self.typical = _generic_sample(space)
        self._tables: dict[MutableExpression, Table] = {}
        self.read: dict[str, None] = {}

    def _table(self, decision: MutableExpression) -> Table:
        if decision not in self._tables:
            self._tables[decision] = tabulate(decision)
        return self._tables[decision]

    def mixture(self, decision: MutableExpression) -> Mixture:
        """Return all values of a decision, or the fixed one."""
        if self._is_fixed(decision):
            return Mixture((decision.evaluate(self.fixed),))
        return TracedMixture(decision, self._table(decision), self)

    def _is_fixed(self, decision: MutableExpression) -> bool:
        return all(leaf.label in self.fixed for leaf in decision.leaves())

    def value(self, expression: MutableExpression) -> Any:
        """Return a symbol for an integer, a tuple of symbols for a tuple of integers, and the default otherwise."""
        if self._is_fixed(expression):
            return expression.evaluate(self.fixed)
        table = self._table(expression)
        default = expression.evaluate(self.typical)
        kinds = {type(value) for value in table.values.flat}
        if kinds == {int}:
            return self.symbols.size(table, default)
        if kinds == {tuple} and len({len(value) for value in table.values.flat}) == 1:
            parts = []
            for position, hint in enumerate(default):
                part = np.array([value[position] for value in table.values.flat]).reshape(table.values.shape)
                parts.append(self.symbols.size(Table(table.labels, part), hint))
            return tuple(parts)
        self.read.update(dict.fromkeys(table.labels))
        return default

    def subset(self, decision: CategoricalMultiple) -> Mixture:
        """Return stand-ins for the chosen items: which ones they are changes no shape, if their number is given."""
        if decision.label in self.fixed:
            return Mixture((self.fixed[decision.label],))
        return TracedSubset(decision, self.typical[decision.label], self)

    def read_number_of_inputs(self, traced: ModelSpace) -> None:
        """Note which free subsets are joined to something whose size depends on how many items they have."""
        for module in traced.modules():
            if isinstance(module, MixedInput) and module.n_chosen is None and module.reduction in ("concat", "none"):
                self.read[module.label] = None

    def join(self, sources: list[tuple[Tensor, Table | None]], like: Tensor | None = None) -> Tensor:
        """Return a tensor that stands for one of several, without leaving an operator behind."""
        self.recording = False
        try:
            result: Tensor = torch.ops.aten.alias(sources[0][0] if like is None else like)
        finally:
            self.recording = True
        self.timeline.append(Join(result, sources))
        return result

    def resample(self, memo: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Decide nothing."""
        return {}

    def export(self, label: str) -> Any:
        """Return the value that decides where Python code branches."""
        return self.typical[label]

    def require_same_shapes(self, labels: str, one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
        """Raise `UnsupportedError` unless the outputs of two values of a decision, (value, output), agree."""
        shapes = [[getattr(leaf, "shape", ()) for leaf in pytree.tree_leaves(output)] for _, output in (one, other)]
        alike = len(shapes[0]) == len(shapes[1]) and all(
            len(a) == len(b) and all(self.always_equal(x, y) for x, y in zip(a, b, strict=True))
            for a, b in zip(*shapes, strict=True)
        )
        if not alike:
            first, second = (", ".join(str(tuple(shape)) for shape in found) for found in shapes)
            raise UnsupportedError(
                f"{labels}: the choice {one[0]!r} gives the shape {first} and {other[0]!r} gives {second}. Costs need "
                "candidates that agree in the shape of their output; give them the same stride, padding and number of "
                "channels"
            )

    def always_equal(self, a: Any, b: Any) -> bool:
        """Tell whether two sizes are equal for every sample."""
        left, right = self.symbols.evaluate(a), self.symbols.evaluate(b)
        labels = union([left, right])
        return bool((left.aligned(labels) == right.aligned(labels)).all())


aten = torch.ops.aten
# Operators whose output has the shape and type of their first argument. PyTorch finds that out by decomposing them, in
# which with symbolic sizes most of the time of a trace would go.
_LIKE_INPUT = frozenset(
    {
        aten.relu, aten.silu, aten.gelu, aten.elu, aten.sigmoid, aten.tanh, aten.hardtanh, aten.hardswish,
        aten.hardsigmoid, aten.leaky_relu, aten.mish, aten.softplus,
    }
)  # fmt: skip
_NORMS = frozenset({aten.native_batch_norm, aten._native_batch_norm_legit_no_training})


def _output_like_input(func: Any, args: tuple[Any, ...]) -> Any:
    """Return the output of an operator that has the shape of its input, or None for all others."""
    packet = func.overloadpacket
    if packet in _LIKE_INPUT and args[0].is_floating_point() and func._overloadname == "default":
        return torch.empty_like(args[0])
    if packet in _NORMS and not (packet is aten.native_batch_norm and args[5]):  # no statistics of the batch to return
        return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
    return None


def _generic_sample(space: ModelSpace) -> Sample:
    """Return a sample that is typical: with large numbers, because PyTorch treats sizes of zero and one specially."""
    default = space.robust_default()
    largest = {
        label: max(mutable.values)
        for label, mutable in space.simplify().items()
        if isinstance(mutable, Categorical) and all(type(value) in (int, float) for value in mutable.values)
    }
    return {**default, **largest} if space.contains({**default, **largest}) else default


class _Recorder(TorchDispatchMode):
    def __init__(self, trace: Trace, tracer: Tracer, callers: list[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace, self.tracer, self.callers = trace, tracer, callers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        alike = _output_like_input(func, args)
        output = func(*args, **kwargs) if alike is None else alike
        if func.namespace == "prim" or not self.tracer.recording:
            return output
        caller = self.callers[-1] if self.callers else -1
        module = self.trace.modules[caller].module if self.callers else ""
        conditions = tuple(self.tracer.conditions)
        self.trace.timeline.append(OpCall(func, args, kwargs, output, conditions, module, caller))
        return output


def trace_space(
    space: ModelSpace,
    example_inputs: Inputs,
    *,
    hooks: Sequence[MutationHook] = DEFAULT_HOOKS,
    fixed: Sample | None = None,
    conditions: tuple[Table, ...] = (),
) -> Trace:
    """Run a model space once, symbolically.

    Parameters
    ----------
    space : ModelSpace
        It is not changed.
    example_inputs : Tensor or tuple of Tensor
        What a member would be called with; the shapes matter, the values do not.
    hooks : sequence of callable
        How primitives become modules that can be traced, as in `hwnas.supernet.make_supernet`.
    fixed : dict, optional
        Labels to hold at one value.
    conditions : tuple of Table, optional
        For which samples the trace is meant.

    Returns
    -------
    Trace
        Every operator and every module call, with conditions.

    Raises
    ------
    UnsupportedError
        When shapes depend on a choice in a way that cannot be followed.
    """
    if is_supernet(space):
        raise UnsupportedError(
            "the space has been made into a super-net already; make its profilers before a strategy changes it"
        )
    tracer = Tracer(space, fixed)
    tracer.conditions.extend(conditions)
    traced = make_supernet(copy.deepcopy(space).eval(), tracer, hooks)
    tracer.read_number_of_inputs(traced)
    trace = Trace(tracer.symbols, traced, conditions, tracer.fixed, timeline=tracer.timeline)
    names = {id(module): name for name, module in traced.named_modules()}
    callers: list[int] = []
    always = Table((), np.asarray(True))

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        caller = callers[-1] if callers else -1
        trace.modules.append(ModuleCall(names[id(module)], args, kwargs, tuple(tracer.conditions), caller, always))
        callers.append(len(trace.modules) - 1)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        callers.pop()

    handles = [
        handle
        for module in traced.modules()
        for handle in (
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, always_call=True),
        )
    ]
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    mode = FakeTensorMode(shape_env=tracer.symbols.shape_env, allow_non_fake_inputs=True)
    try:
        with torch.no_grad(), mode, _without_fast_path():
            fake = [mode.from_tensor(value, static_shapes=True) for value in inputs]
            trace.inputs = tuple(fake)
            with _Recorder(trace, tracer, callers):
                output = traced(*fake)
            trace.outputs = tuple(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
    finally:
        for handle in handles:
            handle.remove()
    trace.read = tuple(tracer.read)
    trace.typical = {**tracer.typical, **tracer.fixed}
    drop_dead_ends(trace)
    return trace


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Let attention run as the operators that it consists of: in inference it is one operator that hides them."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def drop_dead_ends(trace: Trace) -> None:
    """Add to every operator the condition that something of what it computes reaches the output.

    An input choice leaves the tensors behind that it does not choose. An exported model does not compute them, and
    counters of operators do not see them.
    """
    needed: dict[int, Table] = {id(tensor): Table((), np.asarray(True)) for tensor in trace.outputs}
    never = Table((), np.asarray(False))
    called: dict[int, list[Table]] = {}

    def need(tensor: Tensor, when: Table) -> None:
        needed[id(tensor)] = disjunction([needed.get(id(tensor), never), when])

    for position in reversed(range(len(trace.timeline))):
        event = trace.timeline[position]
        if isinstance(event, Join):
            when = needed.get(id(event.result), never)
            for source, condition in event.sources:
                need(source, when if condition is None else conjunction([when, condition]))
            continue
        produced = [leaf for leaf in pytree.tree_leaves(event.output) if isinstance(leaf, Tensor)]
        when = disjunction([needed.get(id(leaf), never) for leaf in produced]) if produced else never
        for leaf in pytree.tree_leaves((event.args, event.kwargs)):
            if isinstance(leaf, Tensor):
                need(leaf, when)
        if when.labels or not when.values:
            trace.timeline[position] = replace(event, conditions=(*event.conditions, when))
        caller = event.caller
        while caller >= 0:
            called.setdefault(caller, []).append(when)
            caller = trace.modules[caller].caller
    trace.modules = [
        replace(call, needed=disjunction(called[index]) if index in called else never)
        for index, call in enumerate(trace.modules)
    ]


def trace_everywhere(
    space: ModelSpace, example_inputs: Inputs, *, hooks: Sequence[MutationHook] = DEFAULT_HOOKS
) -> list[Trace]:
    """Trace a space so that every sample is covered.

    One symbolic trace is enough unless the model branches on a size that is chosen. Then the labels of that size are
    enumerated: one trace for each of their values, each under the condition that the labels have that value.

    Parameters
    ----------
    space : ModelSpace
        It is not changed.
    example_inputs : Tensor or tuple of Tensor
        What a member would be called with.
    hooks : sequence of callable
        See `trace_space`.

    Returns
    -------
    list of Trace
        For every sample exactly one of them holds.

    Raises
    ------
    UnsupportedError
        When shapes depend on choices in a way that cannot be followed, or too many labels had to be enumerated.
    """
    dimensions = space.simplify()
    enumerated: tuple[str, ...] = ()
    while True:
        domain = {label: listed_values(dimensions[label]) for label in enumerated}
        shape = tuple(len(values) for values in domain.values())
        if np.prod(shape, dtype=float) > MAX_TRACES:
            raise UnsupportedError(
                f"the model branches on sizes that depend on {', '.join(enumerated)}: {shape} combinations would have "
                f"to be traced one by one, more than {MAX_TRACES}"
            )
        traces = []
        for index in np.ndindex(*shape):
            fixed = {label: domain[label][i] for label, i in zip(enumerated, index, strict=True)}
            here = np.zeros(shape, dtype=bool)
            here[index] = True
            conditions = (Table(enumerated, here),) if enumerated else ()
            traces.append(trace_space(space, example_inputs, hooks=hooks, fixed=fixed, conditions=conditions))
        culprits = {label for trace in traces for label in _branching_labels(trace, space, example_inputs, hooks)}
        if not culprits:
            return traces
        enumerated = tuple(label for label in dimensions if label in culprits or label in enumerated)


def _branching_labels(
    trace: Trace, space: ModelSpace, example_inputs: Inputs, hooks: Sequence[MutationHook]
) -> tuple[str, ...]:
    """Return the labels of a guard whose failure changes what is computed, or nothing."""
    dimensions = space.simplify()
    domain = {label: listed_values(dimensions[label]) for label in dimensions if is_listed(dimensions[label])}
    for suspect in _suspects(trace, domain):
        sample = {**trace.typical, **suspect}
        concrete = trace_space(space, example_inputs, hooks=hooks, fixed=sample)
        symbolic = fingerprint(
            trace.operators,
            lambda size: int(at(trace.symbols.evaluate(size), sample, domain)),  # noqa: B023
            lambda conditions: all(at(condition, sample, domain) for condition in conditions),  # noqa: B023
        )
        if symbolic != fingerprint(concrete.operators, int, _everywhere):
            return tuple(suspect)
    return ()


def _everywhere(conditions: tuple[Table, ...]) -> bool:
    """Tell whether constant conditions hold."""
    return all(condition.values.all() for condition in conditions)


def _suspects(trace: Trace, domain: dict[str, list[Any]]) -> Iterator[Sample]:
    """Yield values of labels for which the trace may not hold."""
    guards = (trace.symbols.evaluate(guard) for guard in trace.symbols.guards())
    for labels, index in violations(guards):
        yield {label: domain[label][i] for label, i in zip(labels, index, strict=True)}
    for label in trace.read:
        if label not in trace.fixed:
            for value in domain[label]:
                yield {label: value}
