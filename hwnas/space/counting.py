"""Exact counting and exact constrained sampling over a conditional space.

Both are one recursion over the AND/OR tree of the space: parts that share no undecided label are independent,
so their masses multiply; where a label must be known, the masses of its values add up.

References
----------
Dechter and Mateescu, "AND/OR search spaces for graphical models", Artificial Intelligence 171, 2007.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.space.walk import Partial, Structure, UncountableError, Undecided

if TYPE_CHECKING:
    from hwnas.space.mutable import Mutable

MAX_BRANCHES = 4_000_000
"""Values tried before the recursion gives up. A product of one million options needs at most two million."""


def size(root: Mutable, active_only: bool) -> int:
    """Count the points of a space; see `Mutable.size`."""
    structure = Structure(root)
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

    def mass(self, items: list[Mutable], partial: Partial) -> float:
        """Sum the mass of all assignments of the active labels of `items` that are not decided yet."""
        total: float = 1
        for component in self.components(items, partial):
            step = self.step(component, partial)
            if step is None:
                return 0
            if isinstance(step, str):
                total *= sum(mass for _, mass in self.options(step, component, partial))
            elif step is component:
                own = component[0].own_label()
                assert own is not None
                total *= self.structure.dimension(own).count_values()
            else:
                total *= self.mass(step, partial)
            if not total:
                return 0
        return total

    def draw(self, items: list[Mutable], partial: Partial, rng: np.random.Generator) -> bool:
        """Decide labels in `partial` at random, in proportion to the mass; False if the mass is 0."""
        for component in self.components(items, partial):
            step = self.step(component, partial)
            if isinstance(step, str):
                self.branches = 0
                options = list(self.options(step, component, partial))
                masses = np.array([mass for _, mass in options], dtype=float)
                if not masses.any():
                    return False
                partial[step] = options[int(rng.choice(len(options), p=masses / masses.sum()))][0]
                step = component
            if step is None or not self.draw(step, partial, rng):
                return False
        return True

    def options(self, label: str, component: list[Mutable], partial: Partial) -> Iterator[tuple[Any, float]]:
        """Yield each value of a label and the mass of the component once the label has that value."""
        dimension = self.structure.dimension(label)
        direct = self.last_of_constraints(label, component, partial)
        for value in dimension.grid_values():
            self.branches += 1
            if self.branches > MAX_BRANCHES:
                raise UncountableError(f"more than {MAX_BRANCHES} combinations of labels hang together")
            own = dimension.probability(value) if self.weighted else 1
            if own:
                partial[label] = value
                if direct is None:
                    yield value, own * self.mass(component, partial)
                else:
                    yield value, own * all(constraint.holds(partial) for constraint in direct)
                del partial[label]

    def last_of_constraints(self, label: str, component: list[Mutable], partial: Partial) -> list[Mutable] | None:
        """Return the constraints if there is nothing else but labels, and `label` alone is undecided.

        This innermost loop is where enumeration spends its time, so it is kept free of the general recursion.
        """
        labels = self.structure.labels
        if any(other != label and not partial.has(other) for item in component for other in labels(item)):
            return None
        constraints = [item for item in component if item.is_constraint]
        plain = all(item.is_constraint or labels(item) == {item.own_label()} for item in component)
        return constraints if plain else None

    def step(self, component: list[Mutable], partial: Partial) -> list[Mutable] | str | None:
        """Advance a component.

        Returns
        -------
        list of Mutable, str or None
            The active parts that take its place, or a label that must be decided first, or None if a
            constraint is violated. The component itself, if it is nothing but one label.
        """
        for place, item in enumerate(component):
            own = item.own_label()
            if own is not None and self.structure.labels(item) == {own}:
                continue
            if own is not None and not partial.has(own):
                return own
            try:
                if item.is_constraint and not item.holds(partial):
                    return None
                # A constraint that holds already still makes its undecided labels active.
                parts = list(item.sub_mutables(None if item.is_constraint else partial))
            except Undecided as need:
                return need.label
            return [*component[:place], *parts, *component[place + 1 :]]
        return component

    def components(self, items: list[Mutable], partial: Partial) -> list[list[Mutable]]:
        """Split active mutables into groups that share no undecided label, without those of mass 1."""
        groups: list[tuple[set[str], list[Mutable]]] = []
        for item in items:
            restricted = self.structure.restricted(item)
            if self.weighted and not restricted:
                continue
            labels = {label for label in self.structure.labels(item) if not partial.has(label)}
            if not labels and not restricted:
                continue
            members = [item]
            apart = []
            for other in groups:
                if other[0].isdisjoint(labels):
                    apart.append(other)
                else:
                    labels |= other[0]
                    members = other[1] + members
            groups = [*apart, (labels, members)]
        return [members for _, members in groups]
