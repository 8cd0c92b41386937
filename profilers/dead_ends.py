"""Which operators of a trace contribute to the output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from hwnas.profilers.symbols import Table, conjunction, disjunction
from hwnas.profilers.trace import Join, Trace


def drop_dead_ends(trace: Trace) -> None:
    """Add to every operator the condition that something of what it computes reaches the output.

    An input choice leaves the tensors behind that it does not choose. An exported model does not compute them, and
    counters of operators do not see them.
    """
    needed: dict[int, Table] = {id(tensor): Table((), np.asarray(True)) for tensor in trace.outputs}
    never = Table((), np.asarray(False))
    called: dict[int, dict[int, Table]] = {}

    def need(tensor: Tensor, when: Table) -> None:
        known = needed.setdefault(id(tensor), when)
        if known is not when:  # a chain of operators hands one table on
            needed[id(tensor)] = disjunction([known, when])

    for position in reversed(range(len(trace.timeline))):
        event = trace.timeline[position]
        if isinstance(event, Join):
            when = needed.get(id(event.result), never)
            for source, condition in event.sources:
                need(source, when if condition is None else conjunction([when, condition]))
            continue
        produced = [leaf for leaf in pytree.tree_leaves(event.output) if isinstance(leaf, Tensor)]
        reached = [needed[id(leaf)] for leaf in produced if id(leaf) in needed]
        when = reached[0] if len(reached) == 1 else disjunction(reached)
        for leaf in pytree.tree_leaves((event.args, event.kwargs)):
            if isinstance(leaf, Tensor):
                need(leaf, when)
        if when.labels or not when.values:
            trace.timeline[position] = replace(event, conditions=(*event.conditions, when))
        caller = event.caller
        while caller >= 0:
            called.setdefault(caller, {})[id(when)] = when
            caller = trace.modules[caller].caller
    trace.modules = [
        replace(call, needed=disjunction(called[index].values()) if index in called else never)
        for index, call in enumerate(trace.modules)
    ]
