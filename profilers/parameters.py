"""Parameters of every member of a space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import nn

from hwnas.nn import ModelSpace
from hwnas.nn.parametrized import expressions_in, map_argument
from hwnas.profilers.logic import ALWAYS
from hwnas.profilers.profiler import Profiler, build_cost_model
from hwnas.profilers.symbols import tabulate
from hwnas.profilers.tables import MAX_DENSE, Table, combined
from hwnas.profilers.trace import Inputs, Trace
from hwnas.profilers.traced_factory_choice import TracedFactoryChoice
from hwnas.profilers.traced_nas_bench_101_cell import TracedNasBench101Cell
from hwnas.profilers.traced_space import TracedSpace, traced
from hwnas.space import MutableExpression
from hwnas.supernet import BaseSuperNetModule, MixedLayer, MixedOperation, MixedRepeat


class NumParamsProfiler(Profiler):
    """Number of parameters of the frozen model: what ``sum(p.numel() for p in model.parameters())`` gives.

    Parameters
    ----------
    space : ModelSpace
        The space, before a strategy changes it.
    example_inputs : Tensor, tuple of Tensor or TracedSpace
        What a member is called with: the forward pass shows which modules a primitive of an unknown kind keeps. Or
        the space with its traces, which profilers share.
    """

    def __init__(self, space: ModelSpace, example_inputs: Inputs | TracedSpace) -> None:
        parts = [part for trace in traced(space, example_inputs).traces for part in _parts(trace)]
        super().__init__(build_cost_model(space, parts, unit="parameters"))


def _parts(trace: Trace) -> list[tuple[str, Table]]:
    modules = list(trace.space.named_modules())
    held = _held(trace, {id(module): name for name, module in modules})
    logic = trace.logic
    tabulated = _Tabulated()
    parts: list[tuple[str, Table]] = []
    # A parameter that several modules share is there when any of them is, and counts once.
    owners: dict[int, list[Table]] = {}
    sizes: dict[int, tuple[str, int]] = {}
    for name, module in modules:
        if isinstance(module, BaseSuperNetModule):
            if isinstance(module, MixedOperation):
                here = [*trace.conditions, logic.any(held[id(module)])]
                parts.append((name, logic.masked(_sliced_size(module, tabulated), here)))
                continue
            if isinstance(module, TracedNasBench101Cell):
                here = [*trace.conditions, logic.any(held[id(module)])]
                parts += [(name, logic.masked(size, here)) for size in module.parameters_held()]
                continue
            if isinstance(module, TracedFactoryChoice):
                parts += _candidates(trace, name, module, [*trace.conditions, logic.any(held[id(module)])])
                continue
        for parameter in module._parameters.values():
            if parameter is not None and id(module) in held:
                owners.setdefault(id(parameter), []).extend(held[id(module)])
                sizes[id(parameter)] = (name, parameter.numel())
    # Those of one module that the same members hold are one part.
    numbers: dict[tuple[str, int], tuple[int, Table]] = {}
    for key, (name, size) in sizes.items():
        when = logic.any(owners[key])
        known, _ = numbers.get((name, id(when)), (0, when))
        numbers[name, id(when)] = known + size, when
    for (name, _), (number, when) in numbers.items():
        parts.append((name, logic.masked(trace.symbols.evaluate(number), [*trace.conditions, when])))
    return parts


class _Tabulated:
    """Tabulates expressions, each once: modules in a row share their numbers of channels."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[MutableExpression, Table]] = {}  # kept, so that no identity is used twice

    def __call__(self, expression: MutableExpression) -> Table:
        if id(expression) not in self._known:
            self._known[id(expression)] = expression, tabulate(expression)
        return self._known[id(expression)][1]


def _held(trace: Trace, names: dict[int, str]) -> dict[int, list[Table]]:
    """Return for each module, by identity, where members hold it: one table for each place at which it stands.

    A member holds the module that was chosen and the first blocks, whether it calls them or not. What a primitive
    of another kind keeps is not known, so there members hold what they call.
    """
    logic = trace.logic
    called: dict[str, list[Table]] = {}
    for call in trace.modules:
        called.setdefault(call.module, []).append(logic.all(call.conditions))
    held: dict[int, list[Table]] = {}

    def visit(module: nn.Module, here: Table) -> None:
        held.setdefault(id(module), []).append(here)
        if not isinstance(module, BaseSuperNetModule):  # the most by far
            for child in module.children():
                visit(child, here)
        elif isinstance(module, MixedOperation):
            return  # what it consists of is sliced, and counted, with it
        elif isinstance(module, TracedNasBench101Cell | TracedFactoryChoice):
            return  # they say themselves what they hold
        elif isinstance(module, MixedLayer):
            choice = tabulate(module.choice)
            for name in module.names:
                visit(
                    module.candidate(name),
                    logic.all([here, _where(trace, choice, name.__eq__)]),
                )
        elif isinstance(module, MixedRepeat) and isinstance(module.depth, MutableExpression):
            depth = tabulate(module.depth)
            for index, block in enumerate(module.blocks):
                visit(block, logic.all([here, _where(trace, depth, index.__lt__)]))
        else:
            known = isinstance(module, MixedRepeat)
            for child in module.children():
                by_call = None if known else called.get(names[id(child)])
                visit(child, here if by_call is None else logic.any(by_call))

    visit(trace.space, ALWAYS)
    return held


def _candidates(trace: Trace, name: str, choice: TracedFactoryChoice, here: list[Table]) -> Iterator[tuple[str, Table]]:
    """Yield what the candidates of a choice hold, also those that are one module with candidates elsewhere."""
    names, sources = tabulate(choice.choice), tabulate(choice.source[0])
    for path, candidate, source, size in choice.parameters_held():
        chosen = [_where(trace, names, candidate.__eq__), _where(trace, sources, source.__eq__)]
        yield f"{name}.{path}", trace.logic.masked(trace.symbols.evaluate(size), [*here, *chosen])


def _where(trace: Trace, table: Table, holds: Callable[[Any], bool]) -> Table:
    values = np.array([bool(holds(value)) for value in table.values.flat]).reshape(table.values.shape)
    return trace.logic.same(Table(table.labels, values))


def _sliced_size(module: MixedOperation, tabulated: _Tabulated) -> Table:
    arguments = module.written_arguments()
    expressions = [expression for argument in arguments.values() for expression in expressions_in(argument)]
    buffers = {name for name, _ in nn.Module.named_buffers(module)}
    known: dict[str, int] = {}

    def size(*values: Any) -> int:
        given = {id(expression): value for expression, value in zip(expressions, values, strict=True)}
        at_values = {name: map_argument(argument, lambda each: given[id(each)]) for name, argument in arguments.items()}
        key = repr(at_values)
        if key not in known:  # many combinations of labels give the same arguments
            # A member may have other parameters than the largest, but it has the same buffers.
            shapes = module.member_shapes(at_values)
            known[key] = sum(shape.numel() for name, shape in shapes.items() if name not in buffers)
        return known[key]

    sizes = combined(np.frompyfunc(size, len(expressions), 1), [tabulated(each) for each in expressions], MAX_DENSE)
    return Table(sizes.labels, sizes.values.astype(np.int64))
