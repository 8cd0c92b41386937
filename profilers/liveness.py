"""Which operators of a traced space an exported member keeps.

An exporter computes what does not depend on the input once and for all, and leaves out what no output needs. With a
choice such as "no connection", which gives zeros, both depend on the choices around.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hwnas.profilers.logic import ALWAYS, NEVER, Logic
from hwnas.profilers.tables import Table, union
from hwnas.profilers.trace import Join, OpCall, Trace

MAX_ENTRIES = 20_000  # a condition over more combinations than that is replaced by a weaker one

aten = torch.ops.aten
CONSTANT = frozenset({aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full})


@dataclass(frozen=True)
class Liveness:
    """When an operator is left in an exported member.

    Parameters
    ----------
    live : Table
        Boolean: its output depends on the input, and something that is left needs it.
    whole : Table
        Boolean: no tensor that it reads and that may depend on the input is a constant.
    inputs : frozenset of int
        Identities of the tensors that it reads and that may depend on the input.
    """

    live: Table
    whole: Table
    inputs: frozenset[int] = frozenset()


def liveness(trace: Trace) -> list[Liveness]:
    """Find when each operator is left.

    Conditions over very many combinations are replaced by weaker ones, so that an operator may be counted in members
    that do not have it, never the other way round.

    Parameters
    ----------
    trace : Trace
        Of the whole space.

    Returns
    -------
    list of Liveness
        In the order of the timeline; for a join only what `live` says of its result.
    """
    varies, logic = _what_varies(trace), trace.logic
    needed: dict[int, Table] = {id(tensor): ALWAYS for tensor in trace.outputs}
    found: list[Liveness] = []
    for event in reversed(trace.timeline):
        made = tensors_of(event.result if isinstance(event, Join) else event.output)
        when = _any(logic, (needed.get(id(tensor), NEVER) for tensor in made))
        when = _all(logic, [when, _any(logic, (varies.get(id(tensor), NEVER) for tensor in made))])
        inputs: frozenset[int] = frozenset()
        if isinstance(event, Join):
            sources = [(source, [chosen]) for (source, _), chosen in zip(event.sources, event.chosen, strict=True)]
            whole = ALWAYS
        else:
            read = tensors_of((event.args, event.kwargs))
            sources = [(source, []) for source in read]
            inputs = frozenset(id(tensor) for tensor in read if id(tensor) in varies)
            whole = _all(logic, [varies[each] for each in inputs])
        for source, chosen in sources:
            needed[id(source)] = either(logic, needed.get(id(source), NEVER), _all(logic, [when, *chosen]))
        found.append(Liveness(when, whole, inputs))
    return found[::-1]


def _what_varies(trace: Trace) -> dict[int, Table]:
    """Find when each tensor depends on the input; tensors that never do are left out."""
    varies, logic = {id(tensor): ALWAYS for tensor in trace.inputs}, trace.logic
    for event in trace.timeline:
        if isinstance(event, Join):
            when = _any(
                logic,
                (
                    _all(logic, [varies.get(id(source), NEVER), chosen])
                    for (source, _), chosen in zip(event.sources, event.chosen, strict=True)
                ),
            )
            made: Sequence[Tensor] = [event.result]
        elif event.operator.overloadpacket in CONSTANT:
            continue
        else:
            read = tensors_of((event.args, event.kwargs))
            when = _any(logic, (varies.get(id(tensor), NEVER) for tensor in read))
            made = tensors_of(event.output)
        if when.values.any():
            varies.update((id(tensor), when) for tensor in made)
    return varies


def tensors_of(tree: object) -> list[Tensor]:
    """Return the tensors in nested arguments."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def either(logic: Logic, one: Table, other: Table) -> Table:
    """Return where one of two conditions holds, or more where that is over too many combinations."""
    return _any(logic, [one, other])


def _any(logic: Logic, conditions: Iterable[Table]) -> Table:
    return _within(logic.any, [each for each in conditions if each.labels or each.values])


def _all(logic: Logic, conditions: Iterable[Table]) -> Table:
    conditions = [each for each in conditions if each.labels or not each.values]
    # Without the largest ones what is left is weaker.
    for condition in sorted(conditions, key=lambda each: -each.values.size):
        if _entries(conditions) <= MAX_ENTRIES:
            break
        conditions = [each for each in conditions if each is not condition]
    return _within(logic.all, conditions)


def _within(fold: Callable[[Iterable[Table]], Table], conditions: list[Table]) -> Table:
    return fold(conditions) if _entries(conditions) <= MAX_ENTRIES else ALWAYS


def _entries(conditions: Sequence[Table]) -> int:
    labels = union(conditions)
    sizes = {label: n for each in conditions for label, n in zip(each.labels, each.values.shape, strict=True)}
    return math.prod(sizes[label] for label in labels)


def operators_with(trace: Trace) -> list[tuple[OpCall, Liveness]]:
    """Return the operators in the order of execution, each with when it is left."""
    return [
        (event, found)
        for event, found in zip(trace.timeline, liveness(trace), strict=True)
        if isinstance(event, OpCall)
    ]
