"""A sum of small factors that is no less than a peak of memory, and equal to it where that can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.profilers.allocations import Allocation
from hwnas.profilers.logic import ALWAYS
from hwnas.profilers.tables import Table, conjunction, disjunction, union

MAX_STEP = 5_000  # entries of the table of the bytes that are alive at one step
MAX_PART = 50_000  # entries of the largest of several such tables


@dataclass(frozen=True)
class PeakBound:
    """What every member needs, and how much more each part of the model may need.

    Parameters
    ----------
    floor : float
        Bytes that every member needs at some step.
    parts : list of (str, Table)
        Bytes beyond the floor; the name is that of the module that needs most.
    is_exact : bool
        Whether the sum is the peak itself.
    """

    floor: float
    parts: list[tuple[str, Table]]
    is_exact: bool


@dataclass(frozen=True)
class _Step:
    """An operator that allocates, and what may be alive meanwhile, with the positions of the uses from there on."""

    name: str
    where: Table
    alive: list[tuple[Allocation, list[Table]]]
    most: float


class _Once:
    """Combines tables, and remembers what it made of which: what is alive at one step mostly is at the next as well."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], tuple[list[Table], Table]] = {}

    def __call__(self, combine: Callable[[list[Table]], Table], tables: list[Table]) -> Table:
        key = (combine, *map(id, tables))
        if key not in self._made:  # the tables are kept, so that no identity is used twice
            self._made[key] = tables, combine(tables)
        return self._made[key][1]


def peak_bound(timelines: Iterable[Sequence[Allocation]]) -> PeakBound:
    """Bound the largest sum of the bytes that are alive at one step.

    For steps that need x_1, x_2, ... bytes, of which one needs at least f in every member, max(x_i) is at most
    f + sum of max(x_i - f, 0). Steps over few labels are joined to one before, by their maximum.

    Parameters
    ----------
    timelines : iterable of sequence of Allocation
        One for each trace.
    """
    steps = sorted((step for timeline in timelines for step in _steps(timeline)), key=lambda step: -step.most)
    floor, needed, is_exact = 0.0, [], True
    once = _Once()
    for step in steps:
        if step.most <= floor:
            break  # nothing that follows can be a peak
        table, as_it_is = _bytes_alive(step, once)
        if table.values.max() > floor:
            if as_it_is:
                floor = max(floor, float(table.values.min()))
            needed.append((step.name, table, as_it_is))
    parts: dict[tuple[str, ...], tuple[str, Table]] = {}
    for name, table, as_it_is in needed:
        if table.values.max() > floor:
            is_exact &= as_it_is
            excess = Table(table.labels, np.maximum(table.values - floor, 0)).reduced()
            known = parts.get(excess.labels)
            parts[excess.labels] = (name, excess) if known is None else _larger(known, (name, excess))
    joined = _join(parts.values())
    return PeakBound(floor, joined, is_exact and len(joined) <= 1)


def _steps(timeline: Sequence[Allocation]) -> Iterator[_Step]:
    """Yield the steps at which something is allocated."""
    alive: list[Allocation] = []
    written: dict[int, list[Allocation]] = {}
    for allocation in timeline:
        written.setdefault(allocation.step, []).append(allocation)
    for position, new in written.items():
        alive = [a for a in alive if a.uses and a.uses[-1][0] >= position] + new
        still = [(a, [a.where] if a.step == position else [w for s, w in a.uses if s >= position]) for a in alive]
        yield _Step(new[0].name, new[0].where, still, sum(float(a.size.values.max()) for a in alive))


def _bytes_alive(step: _Step, once: _Once) -> tuple[Table, bool]:
    """Return the bytes alive at a step, zero where the step is not run, and whether they are exact.

    What would make the table too large enters with more bytes or under fewer conditions.
    """
    is_exact = _entries([step.where]) <= MAX_STEP
    where = step.where if is_exact else ALWAYS
    total = Table((), np.asarray(0.0))
    for allocation, uses in sorted(step.alive, key=lambda pair: -pair[0].size.values.max()):
        attempts = [
            (allocation.size, [where, *uses]),
            (allocation.size, [where]),
            (Table((), allocation.size.values.max()), [where]),
        ]
        for number, (size, conditions) in enumerate(attempts):
            if _entries(conditions) > MAX_STEP:
                continue
            live = once(conjunction, [where, once(disjunction, uses)]) if number == 0 else where
            if not live.values.any():
                break
            if _entries([total, size, live]) <= MAX_STEP:
                is_exact &= number == 0
                labels = union([total, size, live])
                total = Table(labels, total.aligned(labels) + size.aligned(labels) * live.aligned(labels))
                break
        else:
            is_exact = False
            total = Table(total.labels, total.values + allocation.size.values.max())
    return total.reduced(), is_exact


def _join(parts: Iterable[tuple[str, Table]]) -> list[tuple[str, Table]]:
    """Join parts by their maximum while the tables stay small."""
    joined: list[tuple[str, Table]] = []
    for part in sorted(parts, key=lambda part: -part[1].values.max()):
        for position, host in enumerate(joined):
            if _entries([host[1], part[1]]) <= MAX_PART:
                joined[position] = _larger(host, part)
                break
        else:
            joined.append(part)
    return joined


def _larger(a: tuple[str, Table], b: tuple[str, Table]) -> tuple[str, Table]:
    labels = union([a[1], b[1]])
    table = Table(labels, np.maximum(a[1].aligned(labels), b[1].aligned(labels)))
    return (a[0] if a[1].values.max() >= b[1].values.max() else b[0]), table


def _entries(tables: Iterable[Table]) -> int:
    """Return how many entries a table over the labels of several would have."""
    sizes = {label: size for table in tables for label, size in zip(table.labels, table.values.shape, strict=True)}
    return math.prod(sizes.values())
