"""A factor: one addend of a cost, tabulated over the few labels on which it depends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


class Factor:
    """A dense table over labels.

    Parameters
    ----------
    labels : tuple of str
        The labels on which the addend depends, one for each axis of `table`.
    table : array-like, shape (n_1, ..., n_d)
        The cost for every combination of option indices. Kept as a read-only float64 copy, or as bool when it
        is boolean: a boolean factor is a constraint, `True` where the combination is allowed.
    name : str, optional
        What the cost belongs to, such as ``"stage2/block1"``; shown in breakdowns and in error messages.

    Raises
    ------
    ValueError
        If a label occurs twice, the number of axes differs from the number of labels, an axis is empty, or an
        entry is not finite.
    """

    __slots__ = ("labels", "name", "table")

    def __init__(self, labels: Sequence[str], table: npt.ArrayLike, name: str = "") -> None:
        self.labels: tuple[str, ...] = (labels,) if isinstance(labels, str) else tuple(labels)
        self.name = name
        array = np.array(table)
        self.table: npt.NDArray[Any] = array if array.dtype == np.bool_ else array.astype(np.float64)
        n, shape = len(self.labels), self.table.shape
        if len(set(self.labels)) != n:
            raise ValueError(f"{self.title}: a label occurs twice in {self.labels}; use each label for one axis only")
        if len(shape) != n:
            raise ValueError(f"{self.title}: the table has shape {shape}, but {n} labels need {n} axes")
        if self.table.size == 0:
            raise ValueError(f"{self.title}: the table has shape {shape}; every label needs an option")
        if not np.isfinite(self.table).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(self.table))[0])
            raise ValueError(
                f"{self.title}: the entry {where} is {self.table[where]}; costs must be finite "
                "(forbid a combination with a constraint, not with an infinite cost)"
            )
        self.table.setflags(write=False)

    @classmethod
    def outer(cls, vectors: Mapping[str, npt.ArrayLike], scale: float = 1.0, name: str = "") -> Factor:
        """Build the factor whose cost is `scale` times the product of one number for each label.

        Parameters
        ----------
        vectors : mapping of str to array-like, shape (n_label,)
            The number that every option of a label contributes to the product.
        scale : float
            A factor common to all entries.
        name : str
            The name of the new factor.
        """
        table = np.asarray(scale, dtype=np.float64)
        for vector in vectors.values():
            table = np.multiply.outer(table, np.asarray(vector, dtype=np.float64))
        return cls(tuple(vectors), table, name)

    @property
    def title(self) -> str:
        """The name or, without one, the labels."""
        return self.name or f"factor over {', '.join(self.labels) or 'no label'}"

    @property
    def is_constraint(self) -> bool:
        """Whether the table is boolean."""
        return bool(self.table.dtype == np.bool_)

    def gated(self, label: str, active: Sequence[bool]) -> Factor:
        """Let the factor count only where `label` takes one of its active options.

        This is how a conditional branch, an optional layer or a variable depth enters a cost: a cost becomes
        0 where the branch is inactive, and a constraint then allows everything.

        Parameters
        ----------
        label : str
            The controlling label; it may already be in the scope.
        active : sequence of bool, shape (n_label,)
            For every option of `label`, whether the branch is active.
        """
        mask = np.asarray(active, dtype=bool)
        if label in self.labels:
            axis = self.labels.index(label)
            if mask.shape != (self.table.shape[axis],):
                raise ValueError(
                    f"{self.title}: 'active' has shape {mask.shape}, expected ({self.table.shape[axis]},) for {label!r}"
                )
            labels, table = self.labels, self.table
            mask = mask.reshape([-1 if i == axis else 1 for i in range(table.ndim)])
        else:
            labels, table = (label, *self.labels), self.table[None]
            mask = mask.reshape([-1] + [1] * self.table.ndim)
        return Factor(labels, np.where(mask, table, True if self.is_constraint else 0.0), self.name)

    def restrict(self, label: str, index: int) -> Factor:
        """Give the factor over the other labels that holds when `label` takes its option `index`."""
        if label not in self.labels:
            return self
        axis = self.labels.index(label)
        return Factor(self.labels[:axis] + self.labels[axis + 1 :], self.table.take(index, axis=axis), self.name)

    def aligned(self, labels: Sequence[str]) -> npt.NDArray[Any]:
        """Give the table with its axes in the order of `labels`, of length 1 for labels not in the scope."""
        order = [self.labels.index(label) for label in labels if label in self.labels]
        sizes = dict(zip(self.labels, self.table.shape, strict=True))
        table: npt.NDArray[Any] = self.table.transpose(order).reshape([sizes.get(p, 1) for p in labels])
        return table

    def __mul__(self, scale: float) -> Factor:
        """Scale every cost."""
        if self.is_constraint:
            raise TypeError(f"{self.title}: a constraint cannot be scaled")
        return Factor(self.labels, self.table * float(scale), self.name)

    __rmul__ = __mul__


@dataclass(frozen=True, eq=False)
class Table:
    """A compiled factor: labels as ascending positions in a domain.

    Parameters
    ----------
    scope : tuple of int
        Positions of the labels, ascending.
    values : ndarray, shape (n_1, ..., n_d)
        Costs (float64), or what is allowed (bool).
    """

    scope: tuple[int, ...]
    values: npt.NDArray[Any]


def compile_tables(factors: Iterable[Factor], labels: Sequence[str]) -> list[Table]:
    """Merge factors into as few tables as possible without making any table larger.

    Axes along which a factor is constant are dropped, factors over equal labels are added up, and a factor
    whose labels are a part of another's is added to that. Costs are summed, constraints are conjoined.

    Parameters
    ----------
    factors : iterable of Factor
        All of costs or all of constraints.
    labels : sequence of str
        The labels of the domain, in order.

    Returns
    -------
    list of Table
        In order of first mention. A table with the empty scope holds what no choice changes.
    """
    position = {label: i for i, label in enumerate(labels)}
    by_scope: dict[tuple[int, ...], npt.NDArray[Any]] = {}
    for factor in factors:
        ordered = sorted(factor.labels, key=position.__getitem__)
        scope, values = _drop_constant_axes(tuple(position[label] for label in ordered), factor.aligned(ordered))
        by_scope[scope] = _join(by_scope[scope], values) if scope in by_scope else values
    # Largest first, so that whatever can take a smaller table in is already there.
    kept: dict[tuple[int, ...], npt.NDArray[Any]] = {}
    for scope in sorted(by_scope, key=len, reverse=True):
        values = by_scope[scope]
        host = next((other for other in kept if scope and set(scope) < set(other)), None)
        if host is None:
            kept[scope] = values
        else:
            sizes = dict(zip(scope, values.shape, strict=True))
            kept[host] = _join(kept[host], values.reshape([sizes.get(p, 1) for p in host]))
    return [Table(scope, np.array(kept[scope], order="C")) for scope in by_scope if scope in kept]


def table_entries(positions: Iterable[int], sizes: Sequence[int]) -> int:
    """Give how many entries a table over these labels has."""
    return math.prod(sizes[p] for p in positions)


def _join(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    joined: npt.NDArray[Any] = a & b if a.dtype == np.bool_ else a + b
    return joined


def _drop_constant_axes(scope: tuple[int, ...], values: npt.NDArray[Any]) -> tuple[tuple[int, ...], npt.NDArray[Any]]:
    for axis in reversed(range(len(scope))):
        first = values.take([0], axis=axis)
        if (values == first).all():
            scope, values = scope[:axis] + scope[axis + 1 :], first.squeeze(axis)
    return scope, values
