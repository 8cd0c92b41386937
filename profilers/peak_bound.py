"""A sum of small factors that is no less than a peak of memory, and equal to it where that can be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.profilers.allocations import Allocation
from hwnas.profilers.bytes_alive import BytesAlive, Where, everywhere, total
from hwnas.profilers.ceiling import Ceiling, Scope, entries, larger
from hwnas.profilers.tables import Table

MAX_STEP = 5_000  # entries of the table of the bytes that are alive at one step
MAX_PART = 50_000  # entries of the largest of several such tables
ADDEND = 1.5  # how much more than for one part an addend counts: for each of those that follow it counts again


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


@dataclass(frozen=True, eq=False)
class _Part:
    """What some steps need, and the module that needs most."""

    name: str
    table: Ceiling


def peak_bound(timelines: Iterable[Sequence[Allocation]]) -> PeakBound:
    """Bound the largest sum of the bytes that are alive at one step.

    For parts that need x_1, x_2, ... bytes, of which one needs at least f in every member, max(x_i) is at most
    f + sum of max(x_i - f, 0). Steps are joined to one part, by their maximum, while it depends on few labels.

    Parameters
    ----------
    timelines : iterable of sequence of Allocation
        One for each trace.
    """
    found = BytesAlive(list(timelines), MAX_STEP)
    floor = 0.0
    # Steps that the same members run and that depend on the same labels are one.
    needed: dict[tuple[int, Scope], tuple[Where, _Part]] = {}
    for step in sorted(found.steps(), key=lambda step: -step.most):
        if step.most <= floor:
            break  # nothing that follows can be a peak
        table = total(step, found.sizes, MAX_STEP, floor)
        if table is None or table.most <= floor:
            continue
        if table.is_exact and not step.where.options:
            floor = max(floor, float(table.values.min()))
        key, part = (id(step.where), table.scope), _Part(step.name, table)
        needed[key] = step.where, _larger(needed[key][1], part) if key in needed else part
    parts: dict[Scope, _Part] = {}
    for where, part in needed.values():
        if part.table.most > floor:
            full = everywhere(part.table, where, found.sizes)
            excess = Ceiling(full.scope, np.maximum(full.values - floor, 0), full.is_exact).reduced()
            part = _Part(part.name, _fitting(excess, (), found.sizes))
            scope = part.table.scope
            parts[scope] = _larger(parts[scope], part) if scope in parts else part
    joined = _join(parts.values(), found.sizes)
    named = [(part.name, found.named(part.table)) for part in joined]
    return PeakBound(floor, named, len(joined) <= 1 and all(part.table.is_exact for part in joined))


def _larger(a: _Part, b: _Part) -> _Part:
    return _Part(a.name if a.table.most >= b.table.most else b.name, larger(a.table, b.table))


def _join(parts: Iterable[_Part], sizes: Sequence[int]) -> list[_Part]:
    """Join parts by their maximum while the tables stay small."""
    joined: list[_Part] = []
    for part in sorted(parts, key=lambda part: -part.table.most):
        if not any(_covers(host.table, part.table) for host in joined):
            place, both = _placed(joined, part, sizes)
            joined[place : place + 1] = [both]
    return joined


def _covers(host: Ceiling, table: Ceiling) -> bool:
    return bool((table.over(host.scope).spread(host.scope) <= host.values).all())


def _placed(joined: Sequence[_Part], part: _Part, sizes: Sequence[int]) -> tuple[int, _Part]:
    """Return to which of several parts one is joined, with the result, or behind the last one itself.

    Where there is no room for all its labels, its maximum over the rest of them is joined, or it becomes an addend of
    its own: what adds less on average.
    """
    found = []
    for position, host in enumerate(joined):
        fitting = _fitting(part.table, host.table.scope, sizes)
        both = _larger(host, _Part(part.name, fitting))
        if fitting is part.table:
            return position, both
        found.append((float(both.table.values.mean() - host.table.values.mean()), position, both))
    found.append((ADDEND * float(part.table.values.mean()), len(joined), part))
    _, position, both = min(found, key=lambda each: each[0])
    return position, both


def _fitting(table: Ceiling, scope: Scope, sizes: Sequence[int]) -> Ceiling:
    """Return the maximum over the labels for which a table over a scope has no room, those that matter least."""
    kept = set(scope)
    if entries(kept.union(table.scope), sizes) <= MAX_PART:
        return table
    lost = {p: float(table.values.max(axis).mean()) for axis, p in enumerate(table.scope)}
    for p in sorted(set(table.scope) - kept, key=lambda p: (-lost[p], p)):
        if entries(kept | {p}, sizes) <= MAX_PART:
            kept.add(p)
    return table.over(kept)
