"""Labels in a line: the steps in which the budget sampler decides them, and what it has to remember."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hwnas.cost.elimination import MAX_ENTRIES, neighbours
from hwnas.cost.factor import Table, table_entries
from hwnas.errors import UnsupportedError

# Neighbouring steps are merged while the merged one has no more transitions than this, or than twice as many
# as the two had: fewer steps mean fewer states to store and less rounding, more transitions mean more work. A draw
# weighs every choice of a step against each other, so these stay few.
_MERGE_FREELY = 64
_MERGE_GROWTH = 2
_MERGE_CHOICES = 256
_STARTS = 8


@dataclass(frozen=True, eq=False)
class Step:
    """Some labels, decided at once.

    A *state* is an assignment of the frontier: the labels decided before that share a table with a label not
    yet decided. States are numbered in C order.

    Parameters
    ----------
    labels : tuple of int
        Positions of the labels decided in this step.
    shape : tuple of int
        Their numbers of options; a *choice* is an assignment, numbered in C order.
    cost : ndarray, shape (n_states, n_choices)
        What the step adds to the cost; infinite where a constraint forbids the choice.
    next_state : ndarray of int, shape (n_states, n_choices)
        The state that follows.
    """

    labels: tuple[int, ...]
    shape: tuple[int, ...]
    cost: npt.NDArray[np.float64]
    next_state: npt.NDArray[np.intp]

    @cached_property
    def options(self) -> npt.NDArray[np.intp]:
        """The option indices of every choice, shape (n_choices, n_labels of the step)."""
        return np.stack(np.unravel_index(np.arange(math.prod(self.shape)), self.shape), axis=1)


def build_paths(
    costs: Sequence[Sequence[Table]], constraints: Sequence[Table], labels: Sequence[str], sizes: Sequence[int]
) -> list[list[Step]]:
    """Order the labels of the tables so that frontiers stay small, and tabulate the steps.

    Parameters
    ----------
    costs : sequence of sequence of Table
        The tables of one or several costs.
    constraints : sequence of Table
        What is allowed (bool). Every scope, of costs too, must have a label.
    labels, sizes : sequences of str and int
        The names and numbers of options of all labels.

    Returns
    -------
    list of list of Step
        For each cost the same steps, with what they add to it.

    Raises
    ------
    UnsupportedError
        If a step would have more than `MAX_ENTRIES` transitions.
    """
    forbidden = [Table(t.scope, np.where(t.values, 0.0, np.inf)) for t in constraints]
    graph = neighbours([table.scope for tables in (*costs, forbidden) for table in tables])
    order = [label for part in _components(graph) for label in _line(part, graph, sizes)]
    groups = _merge([(label,) for label in order], graph, sizes)

    paths: list[list[Step]] = [[] for _ in costs]
    decided: set[int] = set()
    frontier: tuple[int, ...] = ()
    for group in groups:
        scope = frontier + group
        if (entries := table_entries(scope, sizes)) > MAX_ENTRIES:
            raise UnsupportedError(
                f"the budget sampler needs a table of {entries:,} entries (at most {MAX_ENTRIES:,}), because "
                f"the factors tie these labels together: {', '.join(labels[p] for p in scope)}. "
                "Split factors over many labels into sums of smaller ones"
            )
        decided.update(group)
        after = _frontier(scope, decided, graph)
        rows = table_entries(frontier, sizes)
        next_state = _numbers(after, scope, sizes).reshape(rows, -1)
        for path, tables in zip(paths, costs, strict=True):
            due = [
                t for t in (*tables, *forbidden) if decided.issuperset(t.scope) and not set(group).isdisjoint(t.scope)
            ]
            cost = _added(due, scope, sizes).reshape(rows, -1)
            path.append(Step(group, tuple(sizes[p] for p in group), cost, next_state))
        frontier = after
    return paths


def _added(tables: Sequence[Table], scope: tuple[int, ...], sizes: Sequence[int]) -> npt.NDArray[np.float64]:
    """Give the sum of tables over the labels of a scope, one axis for each."""
    total = np.zeros([sizes[p] for p in scope])
    for table in tables:
        axes = [table.scope.index(p) for p in scope if p in table.scope]
        total += table.values.transpose(axes).reshape([sizes[p] if p in table.scope else 1 for p in scope])
    return total


def _numbers(labels: tuple[int, ...], scope: tuple[int, ...], sizes: Sequence[int]) -> npt.NDArray[np.intp]:
    """Give the numbers of the assignments of some labels of a scope, in C order, one axis for each of the scope."""
    numbers = np.zeros([sizes[p] for p in scope], dtype=np.intp)
    stride = 1
    for p in reversed(labels):
        axis = scope.index(p)
        numbers += stride * np.arange(sizes[p]).reshape([-1 if i == axis else 1 for i in range(len(scope))])
        stride *= sizes[p]
    return numbers


def _frontier(candidates: Sequence[int], decided: set[int], graph: dict[int, set[int]]) -> tuple[int, ...]:
    return tuple(p for p in candidates if not graph[p] <= decided)


def _components(graph: dict[int, set[int]]) -> list[list[int]]:
    seen: set[int] = set()
    parts: list[list[int]] = []
    for label in graph:
        if label in seen:
            continue
        seen.add(label)
        part = [label]
        for member in part:  # grows while it is read
            part += sorted(graph[member] - seen)
            seen |= graph[member]
        parts.append(part)
    return parts


def _line(part: Sequence[int], graph: dict[int, set[int]], sizes: Sequence[int]) -> list[int]:
    """Order one connected part, greedily by the size of the frontier, from a few starts at its rim."""
    starts = sorted(part, key=lambda p: len(graph[p]))[:_STARTS]
    return min((_greedy_line(start, len(part), graph, sizes) for start in starts), key=lambda found: found[0])[1]


def _greedy_line(start: int, length: int, graph: dict[int, set[int]], sizes: Sequence[int]) -> tuple[int, list[int]]:
    line = [start]
    decided = {start}
    work = sizes[start]
    frontier = _frontier(line, decided, graph)
    while len(line) < length:
        near = sorted(set().union(*(graph[p] for p in frontier)) - decided)
        after = {p: _frontier((*frontier, p), decided | {p}, graph) for p in near}
        label = min(near, key=lambda p: (table_entries(after[p], sizes), sizes[p]))
        work += table_entries((*frontier, label), sizes)
        line.append(label)
        decided.add(label)
        frontier = after[label]
    return work, line


def _merge(groups: list[tuple[int, ...]], graph: dict[int, set[int]], sizes: Sequence[int]) -> list[tuple[int, ...]]:
    merged: list[tuple[int, ...]] = []
    decided: set[int] = set()
    before: tuple[int, ...] = ()  # frontier ahead of the last merged group
    here: tuple[int, ...] = ()  # frontier behind it
    for group in groups:
        if merged:
            apart = table_entries(before + merged[-1], sizes) + table_entries(here + group, sizes)
            joined = table_entries(before + merged[-1] + group, sizes)
            choices = table_entries(merged[-1] + group, sizes)
            if choices <= _MERGE_CHOICES and joined <= max(_MERGE_FREELY, _MERGE_GROWTH * apart):
                group = merged.pop() + group
                here = before
        before = here
        merged.append(group)
        decided.update(group)
        here = _frontier(before + group, decided, graph)
    return merged
