"""Exact counting and exact constrained sampling over a conditional space.

Both are one recursion over the AND/OR tree of the space: parts that share no undecided label are independent,
so their masses multiply; where a label must be known, the masses of its values add up.

References
----------
Dechter and Mateescu, "AND/OR search spaces for graphical models", Artificial Intelligence 171, 2007.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwnas.space.node import Node
from hwnas.space.walk import Partial, Structure, UncountableError, Undecided

MAX_BRANCHES = 4_000_000
"""Values tried before the recursion gives up. A product of one million options needs at most two million."""


def size(structure: Structure, active_only: bool) -> int:
    """Count the points of a space; see `Mutable.size`."""
    root = structure.root
    items = [root] if active_only else [*structure.dimensions.values(), root]
    if not active_only and not structure.restricted(root):
        items.pop()
    total = _Recursion(structure, weighted=False).mass(items, Partial())
    return int(total)


def draw(structure: Structure, fixed: dict[str, Any], rng: np.random.Generator) -> dict[str, Any] | None:
    """Draw values for the labels that matter to the constraints.

    Parameters
    ----------
    structure : Structure
        The space.
    fixed : dict
        Labels that are already decided.
    rng : numpy.random.Generator
        The source of randomness.

    Returns
    -------
    dict or None
        Values such that all constraints hold whatever the other labels are, drawn from the weights
        conditioned on that. None if there are none of positive weight.

    Raises
    ------
    UncountableError
        If a continuous dimension is constrained, or there are too many values to try.
    """
    partial = Partial(fixed)
    found = _Recursion(structure, weighted=True).draw([structure.root], partial, rng)
    return dict(partial) if found else None


@dataclass
class _Front:
    """What is active, as far as the decided labels say.

    Attributes
    ----------
    labels : set of str
        Active labels that are neither decided nor accounted for.
    waiting : list of tuple of Node and str
        Active mutables of which nothing more is known until the label is decided.
    settled : frozenset of str
        Active labels that are accounted for already: no more depends on their values.
    """

    labels: set[str]
    waiting: list[tuple[Node, str]]
    settled: frozenset[str]


class _Recursion:
    """Masses of lists of mutables that are all active.

    Parameters
    ----------
    structure : Structure
        The space.
    weighted : bool
        Whether a value has its probability as mass, else 1.
    """

    def __init__(self, structure: Structure, weighted: bool) -> None:
        self.structure = structure
        self.weighted = weighted
        self.branches = 0

    def mass(self, items: list[Node], partial: Partial) -> float:
        """Sum the mass of all assignments of the active labels of `items` that are not decided yet."""
        front = self.advance(items, partial, frozenset())
        return 0 if front is None else self.mass_of(front, partial)

    def mass_of(self, front: _Front, partial: Partial) -> float:
        """Sum the mass of all assignments of what is active and not decided yet."""
        total: float = 1
        for part in self.split(front, partial):
            if part.waiting:
                total *= sum(mass for _, mass in self.options(self.next_label(part, partial), part, partial))
            elif not self.weighted:
                for label in part.labels:
                    total *= self.structure.dimension(label).count_values()
            if not total:
                return 0
        return total

    def draw(self, items: list[Node], partial: Partial, rng: np.random.Generator) -> bool:
        """Decide labels in `partial` at random, in proportion to the mass; False if the mass is 0."""
        front = self.advance(items, partial, frozenset())
        return front is not None and self.draw_from(front, partial, rng)

    def draw_from(self, front: _Front, partial: Partial, rng: np.random.Generator) -> bool:
        """Decide what is active in proportion to the mass."""
        for part in self.split(front, partial):
            if not part.waiting:
                continue
            label = self.next_label(part, partial)
            self.branches = 0
            options = list(self.options(label, part, partial))
            masses = np.array([mass for _, mass in options], dtype=float)
            if not masses.any():
                return False
            partial[label] = options[int(rng.choice(len(options), p=masses / masses.sum()))][0]
            rest = self.rest(part, label, partial)
            if rest is None or not self.draw_from(rest, partial, rng):
                return False
        return True

    def advance(self, items: list[Node], partial: Partial, settled: frozenset[str]) -> _Front | None:
        """Go from mutables down to active labels, as far as `partial` decides; None if a constraint is violated."""
        front = _Front(set(), [], settled)
        seen: set[int] = set()
        stack = items[::-1]
        while stack:
            item = stack.pop()
            if id(item) in seen or (self.weighted and not self.structure.restricted(item)):
                continue
            seen.add(id(item))
            own = item.own_label()
            if own is not None and not partial.has(own) and own not in settled:
                front.labels.add(own)
            try:
                if item.is_constraint and not item.holds(partial):
                    return None
                # A constraint that holds already still makes its undecided labels active.
                parts = self.structure.parts(item) if item.is_constraint else self.structure.active(item, partial)
            except Undecided as need:
                front.waiting.append((item, need.label))
            else:
                stack.extend(reversed(parts))
        return front

    def split(self, front: _Front, partial: Partial) -> list[_Front]:
        """Divide into parts that have nothing to do with each other.

        Two mutables have to do with each other through a label whose value decides something below them, or
        which is not known to be active.
        """
        groups: list[tuple[set[str], list[tuple[Node, str]]]] = []
        for item, need in front.waiting:
            labels = {need, *self.matter(item, front, partial)}
            members = [(item, need)]
            apart = []
            for other in groups:
                if other[0].isdisjoint(labels):
                    apart.append(other)
                else:
                    labels |= other[0]
                    members = other[1] + members
            groups = [*apart, (labels, members)]
        free = front.labels.difference(*(labels for labels, _ in groups))
        # An active label of another part is accounted for there.
        parts = [
            _Front(front.labels & labels, members, front.settled | (front.labels - labels))
            for labels, members in groups
        ]
        return [*parts, _Front(free, [], front.settled)] if free else parts

    def matter(self, item: Node, front: _Front, partial: Partial) -> set[str]:
        """Return the undecided labels through which a mutable has to do with others."""
        labels = set(self.structure.deciders(item))
        if not self.weighted:
            labels |= self.structure.labels(item) - front.labels
        return {label for label in labels if not partial.has(label) and label not in front.settled}

    def next_label(self, part: _Front, partial: Partial) -> str:
        """Choose the active label with which most has to do: deciding it divides the part soonest."""
        needed = dict.fromkeys(need for _, need in part.waiting)
        candidates = [*needed, *sorted(part.labels.difference(needed))]
        reach = [self.matter(item, part, partial) for item, _ in part.waiting]
        return max(candidates, key=lambda label: sum(label in labels for labels in reach))

    def rest(self, part: _Front, label: str, partial: Partial) -> _Front | None:
        """Go on from a part of which `label` has been decided; None if a constraint is violated."""
        rest = self.advance([item for item, _ in part.waiting], partial, part.settled)
        if rest is not None:
            rest.labels |= part.labels - {label}
        return rest

    def options(self, label: str, part: _Front, partial: Partial) -> Iterator[tuple[Any, float]]:
        """Yield each value of a label and the mass of the part once the label has that value."""
        dimension = self.structure.dimension(label)
        direct = self.last_of_constraints(part, partial)
        for value in dimension.grid_values():
            self.branches += 1
            if self.branches > MAX_BRANCHES:
                raise UncountableError(f"more than {MAX_BRANCHES} combinations of labels hang together")
            own = dimension.probability(value) if self.weighted else 1
            if own:
                partial[label] = value
                if direct is None:
                    rest = self.rest(part, label, partial)
                    yield value, 0 if rest is None else own * self.mass_of(rest, partial)
                else:
                    yield value, own * all(constraint.holds(partial) for constraint in direct)
                del partial[label]

    def last_of_constraints(self, part: _Front, partial: Partial) -> list[Node] | None:
        """Return the constraints if nothing but one label and constraints on it is left.

        This innermost loop is where enumeration spends its time, so it is kept free of the general recursion.
        """
        left = set(part.labels)
        for item, _ in part.waiting:
            if not item.is_constraint:
                return None
            left.update(label for label in self.structure.labels(item) if not partial.has(label))
        return [item for item, _ in part.waiting] if len(left) == 1 else None
