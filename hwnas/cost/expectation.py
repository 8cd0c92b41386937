"""The exact expectation of a cost under independent choices, differentiable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwnas.cost.compiled import Compiled
from hwnas.cost.elimination import MAX_ENTRIES, elimination_order, largest_table, neighbours
from hwnas.cost.factor import Table
from hwnas.cost.substitution import Substitution
from hwnas.errors import UnsupportedError

#: The largest table that is made by putting in what an intermediate is computed from; beyond it, elimination.
MAX_REPLACED = 1_000_000


class _Weighted(NamedTuple):
    """Probabilities over labels and, times these, costs; each None where all are one, or all are zero."""

    scope: tuple[int, ...]
    probability: Tensor | None
    cost: Tensor | None


class _Elimination(NamedTuple):
    """Tables that hang together by intermediates, and in which order their labels are summed out."""

    costs: list[Table]
    definitions: list[Table]
    order: list[int]


class Expectation:
    r"""Contract tables with probability vectors.

    .. math:: E[c] = c_0 + \sum_f \sum_{x_f} T_f(x_f) \prod_{l \in f} p_l(x_l)

    This is exact when labels are chosen independently, also when one label occurs in many tables, since every
    table holds a label at most once and expectations add up.

    Intermediates are not independent of the labels. What they are computed from takes their place, see `Substitution`.
    Where that would make large tables, those that depend on them are added up and the labels are
    eliminated one by one, in pairs of a probability and of a cost times it, which multiply as
    :math:`(p, c)(q, d) = (pq, cq + pd)`.

    Parameters
    ----------
    compiled : Compiled
        The cost.

    References
    ----------
    Li, Eisner: First- and Second-Order Expectation Semirings, EMNLP 2009.
    """

    def __init__(self, compiled: Compiled) -> None:
        self._constant = compiled.constant
        self._labels = compiled.labels
        self._n_labels = compiled.n_labels
        names = compiled.labels[: compiled.n_labels]
        self._sizes = dict(zip(names, compiled.sizes, strict=False))
        self._positions = compiled.used_labels
        self._used = [compiled.labels[p] for p in compiled.used_labels]
        plain = [table for table in compiled.tables if max(table.scope) < compiled.n_labels]
        # Tables of one shape are contracted together: far fewer operators for the equal blocks of a network.
        by_shape: dict[tuple[int, ...], list[Table]] = {}
        for table in plain:
            by_shape.setdefault(table.values.shape, []).append(table)
        self._groups = [
            (
                [[names[table.scope[axis]] for table in group] for axis in range(len(shape))],
                np.stack([table.values for table in group]),
            )
            for shape, group in by_shape.items()
        ]
        arrays = [table for _, table in self._groups]
        plan = Substitution(compiled, min(MAX_ENTRIES, MAX_REPLACED)) if len(plain) < len(compiled.tables) else None
        self._plan = plan if plan is not None and plan.feasible else None
        if self._plan is not None:
            arrays += [*self._plan.tables, *self._plan.arrays]
        self._eliminations = [] if self._plan is not None else _eliminations(compiled)
        for part in self._eliminations:
            arrays += [table.values for table in (*part.costs, *part.definitions)]
        self._arrays = arrays
        self._tensors: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}

    def __call__(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Give the expected cost.

        Parameters
        ----------
        probabilities : mapping of str to Tensor, shape (n_label,)
            Labels that are not in the domain are ignored.

        Returns
        -------
        Tensor, shape ()
            In the widest of the dtypes given, float32 at least.
        """
        given = {label: p for label, p in probabilities.items() if label in self._sizes}
        for label in self._used:
            if label not in given:
                raise ValueError(
                    f"the cost depends on the label {label!r}, but no probabilities were given for it; "
                    f"give a tensor of shape ({self._sizes[label]},)"
                )
        for label, p in given.items():
            if tuple(p.shape) != (self._sizes[label],):
                raise ValueError(
                    f"the probabilities of {label!r} have shape {tuple(p.shape)}, expected ({self._sizes[label]},)"
                )
        dtype = torch.float32
        for p in given.values():
            dtype = torch.promote_types(dtype, p.dtype)
        device = next((p.device for p in given.values()), torch.device("cpu"))
        tensors = iter(self._on(dtype, device))
        total = torch.full((), self._constant, dtype=dtype, device=device)
        for axes, _ in self._groups:
            table = next(tensors)
            # table: (G, n_1, ..., n_d), contracted from the last axis to the first. Multiplied and summed
            # rather than matrix-multiplied, which autocast would do in half precision: costs overflow there.
            for axis in reversed(axes):
                p = torch.stack([given[label] for label in axis]).to(dtype)  # (G, n_axis)
                table = (table * p.reshape(p.shape[0], *[1] * (table.ndim - 2), p.shape[1])).sum(-1)
            total = total + table.sum()
        if self._plan is not None:
            tables = [next(tensors) for _ in self._plan.tables]
            by_position = {p: given[self._labels[p]].to(dtype) for p in self._positions}
            total = total + self._plan.run(tables, list(tensors), by_position)
        for part in self._eliminations:
            pool = [_Weighted(table.scope, None, next(tensors)) for table in part.costs]
            pool += [_Weighted(table.scope, next(tensors), None) for table in part.definitions]
            pool += [_Weighted((p,), given[self._labels[p]].to(dtype), None) for p in part.order if p < self._n_labels]
            total = total + _eliminate(pool, part.order)
        # Tensors that do not matter get a gradient of zero rather than none, as with every other function.
        idle = [p for label, p in given.items() if label not in self._used and p.requires_grad]
        for p in idle:
            total = total + 0.0 * p.sum()
        return total

    def _on(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        key = (dtype, device)
        if key not in self._tensors:
            with torch.inference_mode(False):  # what a validation step caches must serve training too
                self._tensors[key] = [
                    torch.tensor(array, dtype=None if array.dtype.kind == "i" else dtype, device=device)
                    for array in self._arrays
                ]
        return self._tensors[key]


def _eliminations(compiled: Compiled) -> list[_Elimination]:
    """Group the tables over intermediates: all together where that is possible, or else one by one.

    Raises
    ------
    UnsupportedError
        When one table alone ties too many labels together.
    """
    tables = [table for table in compiled.tables if max(table.scope) >= compiled.n_labels]
    if not tables:
        return []
    together = _elimination(compiled, tables)
    if _largest(compiled, together)[0] <= MAX_ENTRIES:
        return [together]
    apart = [_elimination(compiled, [table]) for table in tables]
    for part in apart:
        entries, labels = _largest(compiled, part)
        if entries > MAX_ENTRIES:
            raise UnsupportedError(
                f"the expectation needs a table of {entries:,} entries (at most {MAX_ENTRIES:,}), because "
                f"the factors tie {len(labels)} labels together: {', '.join(compiled.labels[p] for p in labels)}. "
                "Split factors over many labels into sums of smaller ones"
            )
    return apart


def _elimination(compiled: Compiled, costs: list[Table]) -> _Elimination:
    needed = {p for table in costs for p in table.scope}
    definitions = []
    for p, sources, table in reversed(compiled.derived):
        if p in needed:
            needed.update(sources)
            scope = (*sources, p)
            order = np.argsort(scope)
            values = table[..., None] == np.arange(compiled.sizes[p])
            definitions.append(Table(tuple(sorted(scope)), values.transpose(order)))
    scopes = [table.scope for table in (*costs, *definitions)]
    order_of_labels = elimination_order(scopes, compiled.sizes)
    return _Elimination(costs, definitions, order_of_labels)


def _largest(compiled: Compiled, part: _Elimination) -> tuple[int, tuple[int, ...]]:
    graph = neighbours([table.scope for table in (*part.costs, *part.definitions)])
    return largest_table(graph, part.order, compiled.sizes)


def _eliminate(pool: list[_Weighted], order: Sequence[int]) -> Tensor:
    """Sum out all labels; return the sum of the costs times their probabilities."""
    for label in order:
        touching = [each for each in pool if label in each.scope]
        pool = [each for each in pool if label not in each.scope]
        product = reduce(_times, sorted(touching, key=lambda each: len(each.scope)))
        axis = product.scope.index(label)
        rest = product.scope[:axis] + product.scope[axis + 1 :]
        probability = None if product.probability is None else product.probability.sum(axis)
        pool.append(_Weighted(rest, probability, None if product.cost is None else product.cost.sum(axis)))
    total = reduce(_times, pool).cost
    assert total is not None
    return total


def _times(a: _Weighted, b: _Weighted) -> _Weighted:
    scope = tuple(sorted({*a.scope, *b.scope}))

    def aligned(values: Tensor, of: _Weighted) -> Tensor:
        sizes = iter(values.shape)
        return values.reshape([next(sizes) if p in of.scope else 1 for p in scope])

    def product(x: Tensor | None, y: Tensor | None) -> Tensor | None:
        """Multiply; None is one."""
        if x is None or y is None:
            only, of = (y, b) if x is None else (x, a)
            return None if only is None else aligned(only, of)
        return aligned(x, a) * aligned(y, b)

    left = None if a.cost is None else product(a.cost, b.probability)
    right = None if b.cost is None else product(a.probability, b.cost)
    cost = left + right if left is not None and right is not None else right if left is None else left
    return _Weighted(scope, product(a.probability, b.probability), cost)
