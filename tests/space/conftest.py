"""Small conditional spaces, built from plain descriptions for which the truth is found by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from hwnas.space import Categorical, ExpressionConstraint, Mutable, MutableList, Sample

LEAVES = {"a": [0, 1], "b": [0, 1, 2], "c": [1, 3], "d": [2]}


class Branch(Mutable):
    """One of several parts, as a choice of layers is."""

    def __init__(self, label: str, parts: list[Mutable], weights: list[float] | None = None) -> None:
        self.choice = Categorical(range(len(parts)), label=label, weights=weights)
        self.parts = parts

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        yield self.choice
        if sample is None:
            yield from self.parts
        else:
            yield self.parts[sample[self.choice.label]]

    def path_piece(self, sub: Mutable) -> str:
        return "" if sub is self.choice else next(f"part{i}" for i, part in enumerate(self.parts) if part is sub)

    def freeze(self, sample: Sample) -> Any:
        self.validate(sample)
        return self.parts[sample[self.choice.label]].freeze(sample)


class Prefix(Mutable):
    """The first few of several parts, as a repetition is."""

    def __init__(self, label: str, parts: list[Mutable]) -> None:
        self.depth = Categorical(range(len(parts) + 1), label=label) + 0
        self.parts = parts

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        yield self.depth
        yield from self.parts if sample is None else self.parts[: self.depth.evaluate(sample)]

    def freeze(self, sample: Sample) -> Any:
        self.validate(sample)
        return [part.freeze(sample) for part in self.parts[: self.depth.evaluate(sample)]]


def build(spec: tuple[Any, ...]) -> Mutable:
    """Make the space of a description."""
    kind, *rest = spec
    if kind == "leaf":
        return Categorical(LEAVES[rest[0]], label=rest[0])
    if kind == "list":
        return MutableList(map(build, rest[0]))
    if kind == "branch":
        return Branch(branch_label(*rest), list(map(build, rest[1])))
    if kind == "prefix":
        return Prefix(prefix_label(*rest), list(map(build, rest[1])))
    total = sum(Categorical(LEAVES[label], label=label) for label in rest[0])
    return ExpressionConstraint(total <= rest[1])


def branch_label(name: str, parts: list[Any]) -> str:
    return f"{name}_of_{len(parts)}"


def prefix_label(name: str, parts: list[Any]) -> str:
    return f"{name}_to_{len(parts)}"


def domains(spec: tuple[Any, ...]) -> dict[str, list[int]]:
    """List the values of every label of a description, in order of appearance."""
    kind, *rest = spec
    if kind == "leaf":
        return {rest[0]: LEAVES[rest[0]]}
    if kind == "sum_at_most":
        return {label: LEAVES[label] for label in rest[0]}
    found: dict[str, list[int]] = {}
    if kind == "branch":
        found[branch_label(*rest)] = list(range(len(rest[1])))
    if kind == "prefix":
        found[prefix_label(*rest)] = list(range(len(rest[1]) + 1))
    for part in rest[-1]:
        for label, values in domains(part).items():
            found.setdefault(label, values)
    return found


def activity(spec: tuple[Any, ...], sample: Sample) -> tuple[set[str], bool]:
    """Return the active labels under a full sample, and whether the active constraints hold."""
    kind, *rest = spec
    if kind == "leaf":
        return {rest[0]}, True
    if kind == "sum_at_most":
        return set(rest[0]), sum(sample[label] for label in rest[0]) <= rest[1]
    labels: set[str] = set()
    parts = rest[-1]
    if kind == "branch":
        labels = {branch_label(*rest)}
        parts = [parts[sample[branch_label(*rest)]]]
    if kind == "prefix":
        labels = {prefix_label(*rest)}
        parts = parts[: sample[prefix_label(*rest)]]
    holds = True
    for part in parts:
        part_labels, part_holds = activity(part, sample)
        labels |= part_labels
        holds &= part_holds
    return labels, holds


def all_points(spec: tuple[Any, ...]) -> list[Sample]:
    """List the valid full samples, the last label fastest."""
    values = domains(spec)
    points = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
    return [point for point in points if activity(spec, point)[1]]


def active_points(spec: tuple[Any, ...]) -> set[tuple[tuple[str, Any], ...]]:
    """Return the distinct assignments of active labels."""
    return {tuple(sorted((label, point[label]) for label in activity(spec, point)[0])) for point in all_points(spec)}


_leaf = st.tuples(st.just("leaf"), st.sampled_from(sorted(LEAVES)))
_constraint = st.tuples(
    st.just("sum_at_most"),
    st.lists(st.sampled_from(sorted(LEAVES)), min_size=1, max_size=3, unique=True),
    st.integers(0, 6),
)


def _inner(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.tuples(st.just("list"), st.lists(parts, max_size=3)),
        st.tuples(st.just("branch"), st.sampled_from("pq"), st.lists(parts, min_size=1, max_size=3)),
        st.tuples(st.just("prefix"), st.sampled_from("rs"), st.lists(parts, max_size=3)),
    )


_specs = st.recursive(st.one_of(_leaf, _leaf, _constraint), _inner, max_leaves=7)


@pytest.fixture(scope="session")
def toys() -> SimpleNamespace:
    """Return the toy mutables, the strategy of descriptions and the brute-force truth."""
    return SimpleNamespace(
        Branch=Branch,
        Prefix=Prefix,
        specs=_specs,
        build=build,
        domains=domains,
        activity=activity,
        all_points=all_points,
        active_points=active_points,
    )
