"""The exact optimum of a sum of tables, by variable elimination."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from hwnas.cost.factor import Table, table_entries
from hwnas.errors import UnsupportedError

#: The largest table that elimination may build, in entries (80 MB).
MAX_ENTRIES = 10_000_000
# Up to this size the first heuristic is good enough and a second one would only cost time.
_SMALL_ENTRIES = 100_000


def neighbours(scopes: Sequence[tuple[int, ...]]) -> dict[int, set[int]]:
    """Give for every label in a scope the other labels that it shares a scope with."""
    result: dict[int, set[int]] = {}
    for scope in scopes:
        for position in scope:
            result.setdefault(position, set()).update(scope)
    for position, others in result.items():
        others.discard(position)
    return result


def elimination_order(scopes: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> list[int]:
    """Choose the order in which to eliminate labels.

    Greedy by the smallest intermediate table; where that grows large, greedy by the fewest new neighbours
    (min-fill) is tried too, and the order with the smaller largest table wins.

    Parameters
    ----------
    scopes : sequence of tuple of int
        The labels of each table.
    sizes : sequence of int
        The number of options of every label.
    """

    def entries(graph: dict[int, set[int]], label: int) -> int:
        return table_entries(graph[label] | {label}, sizes)

    def fill(graph: dict[int, set[int]], label: int) -> int:
        around = graph[label]
        return sum(len(around - graph[other]) - 1 for other in around)

    order, largest = _greedy(neighbours(scopes), lambda graph, v: (entries(graph, v), v), entries)
    if largest > _SMALL_ENTRIES:
        other, other_largest = _greedy(
            neighbours(scopes), lambda graph, v: (fill(graph, v), entries(graph, v)), entries
        )
        if other_largest < largest:
            return other
    return order


def largest_table(
    graph: dict[int, set[int]], order: Sequence[int], sizes: Sequence[int]
) -> tuple[int, tuple[int, ...]]:
    """Give the number of entries of the largest table that an order of elimination makes, and its labels.

    Parameters
    ----------
    graph : dict of int to set of int
        For every label those that it shares a table with; used up.
    order : sequence of int
        In which order labels are eliminated.
    sizes : sequence of int
        The number of options of every label.
    """
    largest: tuple[int, tuple[int, ...]] = (1, ())
    for label in order:
        around = _eliminate(graph, label)
        scope = tuple(sorted({label, *around}))
        largest = max(largest, (table_entries(scope, sizes), scope))
    return largest


def _eliminate(graph: dict[int, set[int]], label: int) -> set[int]:
    """Take a label out of a graph, in place; its neighbours become neighbours of each other, and are returned."""
    around = graph.pop(label)
    for other in around:
        graph[other] |= around
        graph[other] -= {other, label}
    return around


def _greedy(
    graph: dict[int, set[int]],
    score: Callable[[dict[int, set[int]], int], tuple[int, int]],
    entries: Callable[[dict[int, set[int]], int], int],
) -> tuple[list[int], int]:
    order: list[int] = []
    largest = 1
    while graph:
        label = min(graph, key=lambda v: score(graph, v))
        largest = max(largest, entries(graph, label))
        _eliminate(graph, label)
        order.append(label)
    return order, largest


def minimise(
    tables: Sequence[Table], order: Sequence[int], labels: Sequence[str], sizes: Sequence[int]
) -> dict[int, int] | None:
    """Find an assignment with the smallest sum of tables.

    Parameters
    ----------
    tables : sequence of Table
        The addends; infinite entries forbid a combination.
    order : sequence of int
        All labels of the tables, in the order of elimination.
    labels, sizes : sequences of str and int
        The names and numbers of options of all labels.

    Returns
    -------
    dict of int to int, or None
        The option index of every label in `order` (among equals the first); None when all sums are infinite.

    Raises
    ------
    UnsupportedError
        If an intermediate table would have more than `MAX_ENTRIES` entries.
    """
    pool = list(tables)
    trace: list[tuple[int, tuple[int, ...], npt.NDArray[np.intp]]] = []
    for label in order:
        touching = [table for table in pool if label in table.scope]
        pool = [table for table in pool if label not in table.scope]
        scope = tuple(sorted({label}.union(*(table.scope for table in touching))))
        if (entries := table_entries(scope, sizes)) > MAX_ENTRIES:
            raise UnsupportedError(
                f"the exact bound needs a table of {entries:,} entries (at most {MAX_ENTRIES:,}), because "
                f"the factors tie {len(scope)} labels together: {', '.join(labels[p] for p in scope)}. "
                "Split factors over many labels into sums of smaller ones"
            )
        total = np.zeros([sizes[p] for p in scope])
        for table in touching:
            total += table.values.reshape([sizes[p] if p in table.scope else 1 for p in scope])
        axis = scope.index(label)
        rest = scope[:axis] + scope[axis + 1 :]
        trace.append((label, rest, total.argmin(axis=axis)))
        pool.append(Table(rest, total.min(axis=axis)))
    # Every scope is empty now. Independent parts of the tables leave one number each.
    if not np.isfinite(sum(float(table.values) for table in pool)):
        return None
    best: dict[int, int] = {}
    for label, rest, choice in reversed(trace):
        best[label] = int(choice[tuple(best[p] for p in rest)])
    return best
