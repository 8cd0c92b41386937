"""Checking that a symbolic trace holds for every sample.

While Python code and PyTorch branch on sizes, the shape environment writes down under which conditions the branch was
taken. Where such a guard fails, a concrete run tells whether it mattered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from hwnas.profilers.tables import Table, possible

MAX_CHECKS = 16


def violations(guards: Iterator[Table]) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Yield where guards fail: labels and option indices, each once, at most `MAX_CHECKS` for each guard."""
    seen = set()
    for guard in guards:
        fails = ~guard.values.astype(bool)
        failing = np.argwhere(fails & possible(guard.labels) if fails.any() else fails)[::-1]
        for indices in failing[:: max(1, math.ceil(len(failing) / MAX_CHECKS))]:
            found = guard.labels, tuple(int(index) for index in indices)
            if found not in seen:
                seen.add(found)
                yield found


def fingerprint(operators: Any, sizes: Any, active: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """Return the operators that run for one sample, with their sizes.

    Parameters
    ----------
    operators : iterable of OpCall
        What a trace recorded.
    sizes : callable
        Gives the concrete value of a size.
    active : callable
        Tells whether the conditions of a call hold.
    """
    found = []
    for call in operators:
        # Slicing and its kin differ harmlessly: a prefix that is the whole is not cut.
        if call.operator.is_view or not active(call.conditions):
            continue
        shapes: list[Any] = []
        # Which of several tensors are concatenated may depend on choices: the trace reads all of them.
        read = () if call.operator.overloadpacket is torch.ops.aten.cat else (call.args, call.kwargs)
        for leaf in pytree.tree_leaves((read, call.output)):
            if isinstance(leaf, torch.Tensor):
                shapes.append(tuple(sizes(size) for size in leaf.shape))
            elif isinstance(leaf, int | torch.SymInt) and not isinstance(leaf, bool):
                shapes.append(sizes(leaf))
        found.append((str(call.operator), tuple(shapes)))
    return found
