"""How many bytes are alive at each step of a timeline, as small tables."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hwnas.profilers.allocations import Allocation
from hwnas.profilers.ceiling import Ceiling, Scope, entries, plus, together
from hwnas.profilers.tables import Table, sizes_of

EVERYWHERE = Ceiling((), np.asarray(True))


@dataclass(frozen=True, eq=False)
class Where:
    """The members that run an operator.

    Parameters
    ----------
    options : dict of int to ndarray
        The options that labels have in such members; labels that may have any are left out.
    condition : Ceiling
        What has to hold in addition, over these options.
    """

    options: dict[int, np.ndarray]
    condition: Ceiling
    # What was asked before, by the identities of the tables: what is alive at one step mostly is at the next as well.
    sizes: dict[int, Ceiling | None] = field(default_factory=dict)
    terms: dict[tuple[int, int], Ceiling | None] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Step:
    """An operator that allocates.

    Parameters
    ----------
    name : str
        Path of its module.
    where : Where
        In which members it runs.
    terms : list of Ceiling
        The bytes that may be alive meanwhile, over the options of these members.
    most : float
        The sum of the largest number of each.
    """

    name: str
    where: Where
    terms: list[Ceiling]
    most: float


class BytesAlive:
    """Finds what is alive at the steps of timelines.

    Parameters
    ----------
    timelines : sequence of sequence of Allocation
        One for each trace.
    max_step : int
        Entries of the largest table.
    """

    def __init__(self, timelines: Sequence[Sequence[Allocation]], max_step: int) -> None:
        self._timelines = timelines
        self._limit = max_step
        tables = (t for line in timelines for a in line for t in (a.size, a.where, *(when for _, when in a.uses)))
        known = sizes_of({id(table): table for table in tables}.values())
        self.labels = tuple(known)
        self.sizes = tuple(known.values())
        self._positions = {label: p for p, label in enumerate(self.labels)}
        # By identity; the tables are kept, so that none is used twice.
        self._known: dict[int, tuple[Table, Ceiling]] = {}
        self._wheres: dict[int, Where] = {}
        self._either: dict[tuple[int, int], tuple[Ceiling, Ceiling, Ceiling]] = {}

    def steps(self) -> Iterator[Step]:
        """Yield the steps at which something is allocated."""
        for timeline in self._timelines:
            alive: list[tuple[Ceiling, Sequence[int], Sequence[Ceiling]]] = []
            written: dict[int, list[Allocation]] = {}
            for allocation in timeline:
                written.setdefault(allocation.step, []).append(allocation)
            for position, new in written.items():
                where = self._where(new[0].where)
                alive = [each for each in alive if each[1] and each[1][-1] >= position]
                terms = [self._term(where, size, until[bisect_left(uses, position)]) for size, uses, until in alive]
                terms += [self._term(where, self._ceiling(a.size), EVERYWHERE) for a in new]
                found = [term for term in terms if term is not None]
                yield Step(new[0].name, where, found, sum(term.most for term in found))
                alive += [(self._ceiling(a.size), [use for use, _ in a.uses], self._until(a)) for a in new]

    def named(self, table: Ceiling) -> Table:
        """Return a table over labels in place of positions."""
        return Table(tuple(self.labels[p] for p in table.scope), table.values)

    def _ceiling(self, table: Table) -> Ceiling:
        if id(table) not in self._known:
            scope = together(self._positions[label] for label in table.labels)
            values = table.aligned(tuple(self.labels[p] for p in scope))
            self._known[id(table)] = table, Ceiling(scope, values).within(self._limit)
        return self._known[id(table)][1]

    def _where(self, table: Table) -> Where:
        if id(table) not in self._wheres:
            condition = self._ceiling(table)
            options = {}
            for axis, p in enumerate(condition.scope):
                others = tuple(i for i in range(len(condition.scope)) if i != axis)
                (possible,) = condition.values.any(others).nonzero()
                if len(possible) < self.sizes[p]:
                    options[p] = possible
            self._wheres[id(table)] = Where(options, condition.at(options).reduced())
        return self._wheres[id(table)]

    def _until(self, allocation: Allocation) -> list[Ceiling]:
        """Return for each use in which members it or a later one reads."""
        found: list[Ceiling] = []
        for _, when in reversed(allocation.uses):
            use = self._ceiling(when)
            found.append(self._or(use, found[-1]) if found else use)
        return found[::-1]

    def _or(self, one: Ceiling, other: Ceiling) -> Ceiling:
        key = (id(one), id(other))
        if key not in self._either:
            scope = together(one.scope, other.scope)
            if entries(scope, self.sizes) > self._limit:
                scope = other.scope
            weaker = one.over(scope)
            either = weaker.spread(scope) | other.spread(scope)
            made = other
            if (either != other.spread(scope)).any() or not weaker.is_exact:
                made = Ceiling(scope, either, weaker.is_exact and other.is_exact).reduced()
            self._either[key] = one, other, made
        return self._either[key][2]

    def _term(self, where: Where, size: Ceiling, until: Ceiling) -> Ceiling | None:
        """Return the bytes of an allocation while it is needed, in members that run an operator; None if nowhere."""
        if id(size) not in where.sizes:
            inside = size.at(where.options)
            # Where more than these labels decide, the condition is applied to the sum alone.
            values = inside.values * where.condition.over(inside.scope).spread(inside.scope)
            where.sizes[id(size)] = Ceiling(inside.scope, values, inside.is_exact) if values.any() else None
        known = where.sizes[id(size)]
        if known is None:  # most often: the operator is one of another candidate
            return None
        key = (id(size), id(until))
        if key not in where.terms:
            where.terms[key] = self._while(known, until.at(where.options))
        return where.terms[key]

    def _while(self, size: Ceiling, until: Ceiling) -> Ceiling | None:
        """Return a size where a condition holds, or may hold where there is no room for it."""
        scope = together(size.scope, until.scope)
        if np.broadcast(size.spread(scope), until.spread(scope)).size > self._limit:
            scope = size.scope
        holds = until.over(scope)
        values = size.spread(scope) * holds.spread(scope)
        return Ceiling(scope, values, size.is_exact and holds.is_exact).reduced() if values.any() else None


def total(step: Step, sizes: Sequence[int], limit: int, floor: float) -> Ceiling | None:
    """Return the bytes that are alive at a step, over the options that it has; None where they are not above a floor.

    Those over the same labels are added first: what no member has together then counts once. The tables that vary most
    decide over which labels the sum is; of others the largest values over the rest count.
    """
    sums: dict[Scope, Ceiling] = {}
    for term in step.terms:
        sums[term.scope] = plus(sums[term.scope], term) if term.scope in sums else term
    if sum(each.most for each in sums.values()) <= floor:
        return None
    condition, options = step.where.condition, step.where.options
    lengths = {p: len(options[p]) if p in options else sizes[p] for p in together(condition.scope, *sums)}
    scope = condition.scope
    for each in sorted(sums.values(), key=lambda each: -float(np.ptp(each.values))):
        wider = together(scope, each.scope)
        if entries(wider, lengths) <= limit:
            scope = wider
    values = np.zeros([lengths[p] for p in scope])
    is_exact = condition.is_exact
    for each in sums.values():
        over = each.over(scope)
        is_exact &= over.is_exact
        values += over.spread(scope)
    return Ceiling(scope, values * condition.spread(scope), is_exact)


def everywhere(table: Ceiling, where: Where, sizes: Sequence[int]) -> Ceiling:
    """Return a table over the options that members have as one over all options, zero for the others."""
    scope = together(table.scope, where.options)
    values = np.zeros([sizes[p] for p in scope])
    values[np.ix_(*(where.options.get(p, np.arange(sizes[p])) for p in scope))] = table.spread(scope)
    return Ceiling(scope, values, table.is_exact)
