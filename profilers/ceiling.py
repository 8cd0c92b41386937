"""Tables that are replaced by a smaller one that is nowhere less, where they would be too large."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Scope = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Ceiling:
    """A quantity, or something that is no less.

    Parameters
    ----------
    scope : tuple of int
        Positions of the labels on which it depends, ascending.
    values : ndarray, shape (number of values of each label, ...)
        Numbers, or truth values.
    is_exact : bool
        Whether it is the quantity itself.
    """

    scope: Scope
    values: np.ndarray
    is_exact: bool = True

    @cached_property
    def most(self) -> float:
        """The largest value."""
        return float(self.values.max())

    def spread(self, scope: Scope) -> np.ndarray:
        """Return the values with one axis for each label of a scope, of length one for those that do not matter."""
        sizes = dict(zip(self.scope, self.values.shape, strict=True))
        return self.values.reshape([sizes.get(p, 1) for p in scope])

    def over(self, scope: Iterable[int]) -> Ceiling:
        """Return the largest value over all labels that are not in a scope."""
        kept = set(scope)
        axes = tuple(axis for axis, p in enumerate(self.scope) if p not in kept)
        if not axes:
            return self
        return Ceiling(tuple(p for p in self.scope if p in kept), self.values.max(axes), is_exact=False)

    def within(self, limit: int) -> Ceiling:
        """Return the largest value over the labels with most values, until no more entries than a limit are left."""
        scope, entries = list(self.scope), self.values.size
        for p, size in sorted(zip(self.scope, self.values.shape, strict=True), key=lambda pair: -pair[1]):
            if entries <= limit:
                break
            scope.remove(p)
            entries //= size
        return self.over(scope)

    def at(self, options: Mapping[int, np.ndarray]) -> Ceiling:
        """Return the table for some options of some labels; a label of which one is left does not matter any more."""
        if options.keys().isdisjoint(self.scope):
            return self
        index = np.ix_(*(options.get(p, np.arange(n)) for p, n in zip(self.scope, self.values.shape, strict=True)))
        values = self.values[index]
        single = tuple(axis for axis, p in enumerate(self.scope) if p in options and len(options[p]) == 1)
        scope = tuple(p for axis, p in enumerate(self.scope) if axis not in single)
        return Ceiling(scope, values.squeeze(single), self.is_exact)

    def reduced(self) -> Ceiling:
        """Return the same without the labels that make no difference."""
        scope, values = self.scope, self.values
        for axis in reversed(range(len(scope))):
            first = values.take([0], axis)
            if (values == first).all():
                values = first.squeeze(axis)
                scope = scope[:axis] + scope[axis + 1 :]
        return Ceiling(scope, values, self.is_exact)


def together(*scopes: Iterable[int]) -> Scope:
    """Return the labels of several scopes."""
    return tuple(sorted(set().union(*scopes)))


def entries(scope: Iterable[int], sizes: Sequence[int] | Mapping[int, int]) -> int:
    """Return how many entries a table over these labels has."""
    return math.prod(sizes[p] for p in scope)


def plus(a: Ceiling, b: Ceiling) -> Ceiling:
    """Return the sum of two quantities over the same labels."""
    return Ceiling(a.scope, a.values + b.values, a.is_exact and b.is_exact)


def larger(a: Ceiling, b: Ceiling) -> Ceiling:
    """Return the maximum of two quantities."""
    scope = together(a.scope, b.scope)
    return Ceiling(scope, np.maximum(a.spread(scope), b.spread(scope)), a.is_exact and b.is_exact)
