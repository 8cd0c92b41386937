"""Which operators of a trace contribute to the output."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from hwnas.profilers.logic import ALWAYS, NEVER
from hwnas.profilers.tables import Table
from hwnas.profilers.trace import Join, Trace, storage_of


def drop_dead_ends(trace: Trace) -> None:
    """Add to every operator the condition that something of what it computes reaches the output.

    An input choice leaves the tensors behind that it does not choose. An exported model does not compute them, and
    counters of operators do not see them. Memory is followed, not tensors: what is written into a view is read with the
    whole.
    """
    written = [_storages(event.result if isinstance(event, Join) else event.output) for event in trace.timeline]
    computed: set[int] = set()  # all but weights and views of them, which nobody has to compute
    for event, storages in zip(trace.timeline, written, strict=True):
        if isinstance(event, Join) or not event.operator.is_view:
            computed |= storages
    logic = trace.logic
    needed: dict[int, Table] = {storage_of(tensor): ALWAYS for tensor in trace.outputs}
    called: dict[int, dict[int, Table]] = {}

    def need(storage: int, when: Table) -> None:
        needed[storage] = logic.any([needed[storage], when]) if storage in needed else when

    for position in reversed(range(len(trace.timeline))):
        event = trace.timeline[position]
        if isinstance(event, Join):
            when = needed.get(storage_of(event.result), NEVER)
            for source, condition in event.sources:
                need(storage_of(source), when if condition is None else logic.all([when, condition]))
            continue
        when = logic.any(needed[storage] for storage in written[position] if storage in needed)
        for storage in _storages((event.args, event.kwargs)) & computed:
            need(storage, when)
        if when.labels or not when.values:
            trace.timeline[position] = replace(event, conditions=(*event.conditions, when))
        caller = event.caller
        while caller >= 0:
            called.setdefault(caller, {})[id(when)] = when
            caller = trace.modules[caller].caller
    trace.modules = [
        replace(call, needed=logic.any(called.get(index, {}).values())) for index, call in enumerate(trace.modules)
    ]


def _storages(tensors: Any) -> set[int]:
    return {storage_of(leaf) for leaf in pytree.tree_leaves(tensors) if isinstance(leaf, Tensor)}
