"""Iteration over all points of a space, one at a time, without making the product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hwnas.space import sampling
from hwnas.space.walk import Partial, Structure


def points(structure: Structure, memo: dict[str, Any] | None, granularity: int | None) -> Iterator[dict[str, Any]]:
    """Iterate over full samples, the last label fastest; see `Mutable.grid`."""
    fixed = sampling.decided(structure.dimensions, memo)
    labels = list(structure.dimensions)

    def options(depth: int) -> Iterator[Any]:
        label = labels[depth]
        return iter([fixed[label]]) if label in fixed else structure.dimensions[label].grid_values(granularity)

    partial = Partial()
    # known[d]: the verdict when the first d labels are decided; iterators[d]: the values still to come of
    # label d.
    known: list[bool | str] = [structure.verdict(partial)]
    if known[0] is False:
        return
    if not labels:
        yield {}
        return
    iterators = [options(0)]
    while iterators:
        depth = len(iterators) - 1
        label = labels[depth]
        try:
            partial[label] = next(iterators[depth])
        except StopIteration:
            iterators.pop()
            known.pop()
            partial.pop(label, None)
            continue
        # The verdict can change only when the label that it waited for is decided.
        verdict = structure.verdict(partial) if known[depth] == label else known[depth]
        if verdict is False:
            continue
        if depth + 1 < len(labels):
            known.append(verdict)
            iterators.append(options(depth + 1))
            continue
        if isinstance(verdict, str):
            structure.dimension(verdict)
        yield sampling.fresh(partial)


def active_points(
    structure: Structure, memo: dict[str, Any] | None, granularity: int | None
) -> Iterator[dict[str, Any]]:
    """Iterate over the distinct assignments of active labels; see `Mutable.grid`."""
    fixed = sampling.decided(structure.dimensions, memo)
    partial = Partial()
    stack: list[tuple[str, Iterator[Any]]] = []
    while True:
        # The verdict alone sees a violated constraint behind labels that are still undecided.
        state = structure.verdict(partial) is not False and structure.settle(partial)
        if isinstance(state, str):
            dimension = structure.dimension(state)
            values = iter([fixed[state]]) if state in fixed else dimension.grid_values(granularity)
            stack.append((state, values))
        elif state:
            yield sampling.fresh(partial)
        # Step to the next value of the deepest label that has one.
        while stack:
            label, values = stack[-1]
            try:
                partial[label] = next(values)
                break
            except StopIteration:
                stack.pop()
                partial.pop(label, None)
        if not stack:
            return
