"""Following symbolic forward passes of a whole model space.

Tracing is a relaxation like any other: every candidate of every choice runs, once, and each operator is recorded
together with the condition under which a member executes it. Sizes that are chosen are symbols, and PyTorch's own
shape rules carry them through the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hwnas.errors import UnsupportedError
from hwnas.nn import ModelSpace
from hwnas.profilers.dead_ends import drop_dead_ends
from hwnas.profilers.guards import fingerprint, violations
from hwnas.profilers.repeats import Repeats
from hwnas.profilers.stand_ins import StandInWeights, output_like_input
from hwnas.profilers.symbols import is_listed, listed_values
from hwnas.profilers.tables import Table, at, realised
from hwnas.profilers.trace import Inputs, ModuleCall, OpCall, Trace
from hwnas.profilers.traced_factory_choice import TracedFactoryChoice
from hwnas.profilers.traced_nas_bench_101_cell import TracedNasBench101Cell
from hwnas.profilers.tracer import Tracer
from hwnas.space import CategoricalMultiple, Sample
from hwnas.supernet import (
    DEFAULT_HOOKS,
    MixedFactoryChoice,
    MixedNasBench101Cell,
    MutationHook,
    is_supernet,
    make_supernet,
)

MAX_TRACES = 256

_FOR_TRACING: dict[MutationHook, MutationHook] = {
    MixedNasBench101Cell.mutate: TracedNasBench101Cell.mutate,
    MixedFactoryChoice.mutate: TracedFactoryChoice.mutate,
}
"""What stands in the place of hooks that make something else than what is traced."""


class _Recorder(TorchDispatchMode):
    def __init__(self, trace: Trace, tracer: Tracer, callers: list[int], mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace, self.tracer, self.callers, self.mode = trace, tracer, callers, mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        alike = output_like_input(func, args)
        # PyTorch remembers what operators return. Where sizes are symbols that takes longer than to find it again.
        self.mode.cache_enabled = not _has_symbols(args)
        output = func(*args, **kwargs) if alike is None else alike
        if func.namespace == "prim" or not self.tracer.recording:
            return output
        if self.tracer.in_place_of_output is not None:
            output, self.tracer.in_place_of_output = self.tracer.in_place_of_output, None
        caller = self.callers[-1] if self.callers else -1
        module = self.trace.modules[caller].module if self.callers else ""
        conditions = tuple(self.tracer.conditions)
        self.trace.timeline.append(OpCall(func, args, kwargs, output, conditions, module, caller))
        return output


def _has_symbols(args: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf._has_symbolic_sizes_strides for leaf in pytree.tree_iter(args))


def trace_space(
    space: ModelSpace,
    example_inputs: Inputs,
    *,
    hooks: Sequence[MutationHook] = DEFAULT_HOOKS,
    fixed: Sample | None = None,
    typical: Sample | None = None,
    conditions: tuple[Table, ...] = (),
    supernet: Supernet | None = None,
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
    typical : dict, optional
        Values of labels by which the model branches where it does; see `Tracer.start`.
    conditions : tuple of Table, optional
        For which samples the trace is meant.
    supernet : tuple of Tracer and ModelSpace, optional
        From `make_traceable`, where a space is traced several times.

    Returns
    -------
    Trace
        Every operator and every module call, with conditions.

    Raises
    ------
    UnsupportedError
        When shapes depend on a choice in a way that cannot be followed.
    """
    tracer, traced = make_traceable(space, hooks) if supernet is None else supernet
    tracer.start(fixed or {}, typical)
    tracer.conditions.extend(conditions)
    tracer.read_number_of_inputs(traced)
    trace = Trace(tracer.symbols, tracer.logic, traced, conditions, tracer.fixed, timeline=tracer.timeline)
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
            tracer.run = Repeats(trace, tracer.conditions, callers, names, mode).run
            with _Recorder(trace, tracer, callers, mode), StandInWeights(tracer):
                output = traced(*fake)
            trace.outputs = tuple(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
    finally:
        for handle in handles:
            handle.remove()
    trace.read = tuple(tracer.read)
    trace.typical = {**tracer.typical, **tracer.fixed}
    drop_dead_ends(trace)
    return trace


Supernet = tuple[Tracer, ModelSpace]


def make_traceable(space: ModelSpace, hooks: Sequence[MutationHook] = DEFAULT_HOOKS) -> Supernet:
    """Return a super-net of a space, and the relaxation that records it.

    Raises
    ------
    UnsupportedError
        When the space is a super-net already.
    """
    if is_supernet(space):
        raise UnsupportedError(
            "the space has been made into a super-net already; make its profilers before a strategy changes it"
        )
    tracer = Tracer(space)
    return tracer, make_supernet(copy.deepcopy(space).eval(), tracer, [_FOR_TRACING.get(hook, hook) for hook in hooks])


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Let attention run as the operators that it consists of: in inference it is one operator that hides them."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


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
    supernet = make_traceable(space, hooks)
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
            traces.append(trace_space(space, example_inputs, fixed=fixed, conditions=conditions, supernet=supernet))
        culprits = {label for trace in traces for label in _branching_labels(trace, space, example_inputs, supernet)}
        if not culprits:
            return traces
        enumerated = tuple(label for label in dimensions if label in culprits or label in enumerated)


def _branching_labels(trace: Trace, space: ModelSpace, example_inputs: Inputs, supernet: Supernet) -> tuple[str, ...]:
    """Return the labels of a guard whose failure changes what is computed, or nothing."""
    dimensions = space.simplify()
    domain = {label: listed_values(dimensions[label]) for label in dimensions if is_listed(dimensions[label])}

    def found(trace: Trace, sample: Sample) -> list[tuple[str, tuple[Any, ...]]]:
        return fingerprint(
            trace.operators,
            lambda size: int(at(trace.symbols.evaluate(size), sample, domain)),
            lambda conditions: all(at(condition, sample, domain) for condition in conditions),
        )

    for suspect in _suspects(trace, domain):
        sample = {**trace.typical, **suspect}
        # What an input choice reads stays open: where it is known, an export leaves out what nothing reads, and the
        # traces would differ by that.
        fixed = {
            label: value
            for label, value in sample.items()
            if label in trace.fixed or not isinstance(dimensions[label], CategoricalMultiple)
        }
        branched = trace_space(space, example_inputs, fixed=fixed, typical=sample, supernet=supernet)
        if found(trace, sample) != found(branched, sample):
            return tuple(suspect)
    return ()


def _suspects(trace: Trace, domain: dict[str, list[Any]]) -> Iterator[Sample]:
    """Yield values of labels for which the trace may not hold."""
    guards = (trace.symbols.evaluate(guard) for guard in trace.symbols.guards())
    for labels, index in violations(guards):
        yield {label: domain[label][i] for label, i in realised(labels, index).items()}
    for label in trace.read:
        if label not in trace.fixed:
            for value in domain[label]:
                yield {label: value}
