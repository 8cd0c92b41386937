"""What has to hold for every model space, checked on random nested ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import hwnas.nn as nn
from hwnas.space import Sample, sample_from_json, sample_to_json, space_from_json, space_to_json
from hwnas.supernet import OneHot, make_supernet

WIDTH = 3

# A description of a module: its kind and its parts. Labels come from a small pool, so that choices are shared within
# and across branches; a label says how many options there are, as choices of one label must be equal.
_label = st.sampled_from(["x", "y"])
_leaf = st.one_of(
    st.tuples(st.just("linear")),
    st.tuples(st.just("act"), _label),
    st.tuples(st.just("hidden"), _label),
    st.tuples(st.just("scale"), _label),
)


def _inner(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(parts, min_size=1, max_size=3)
    return st.one_of(
        st.tuples(st.just("sequence"), some),
        st.tuples(st.just("layer"), _label, some),
        st.tuples(st.just("repeat"), _label, parts, st.sampled_from([(0, 1), (1, 2), (0, 2)])),
        st.tuples(st.just("inputs"), _label, some, st.sampled_from([1, None]), st.sampled_from(["sum", "mean"])),
    )


specs = st.recursive(_leaf, _inner, max_leaves=5)


class Hidden(torch.nn.Module):
    def __init__(self, label: str) -> None:
        super().__init__()
        width = nn.ValueChoice([2, 4], label=f"width {label}")
        self.up, self.down = nn.Linear(WIDTH, width + 1), nn.Linear(width + 1, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


class Scale(torch.nn.Module):
    def __init__(self, label: str) -> None:
        super().__init__()
        self.factor = nn.ValueChoice([0.5, 2.0], label=f"scale {label}")

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor()


class Inputs(torch.nn.Module):
    def __init__(self, label: str, branches: list[torch.nn.Module], n_chosen: int | None, reduction: Any) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.pick = nn.InputChoice(len(branches), n_chosen, reduction, label=label)

    def forward(self, x: Tensor) -> Tensor:
        return self.pick([branch(x) for branch in self.branches])


def build(spec: tuple[Any, ...]) -> torch.nn.Module:
    kind, *rest = spec
    if kind == "linear":
        return nn.Linear(WIDTH, WIDTH)
    if kind == "act":
        return nn.LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, label=f"act {rest[0]}")
    if kind == "hidden":
        return Hidden(rest[0])
    if kind == "scale":
        return Scale(rest[0])
    if kind == "sequence":
        return nn.Sequential(*map(build, rest[0]))
    if kind == "layer":
        return nn.LayerChoice([build(part) for part in rest[1]], label=layer_label(spec))
    if kind == "repeat":
        return nn.Repeat(build(rest[1]), rest[2], label=depth_label(spec))
    return Inputs(inputs_label(spec), [build(part) for part in rest[1]], rest[2], rest[3])


def layer_label(spec: Any) -> str:
    return f"layer {spec[1]} of {len(spec[2])}"


def depth_label(spec: Any) -> str:
    return f"depth {spec[1]} in {spec[3]}"


def inputs_label(spec: Any) -> str:
    return f"inputs {spec[1]}: {spec[3]} of {len(spec[2])}"


class Net(nn.ModelSpace):
    def __init__(self, spec: tuple[Any, ...]) -> None:
        super().__init__()
        self.body = build(spec)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def domains(spec: tuple[Any, ...]) -> dict[str, list[Any]]:
    """Return the values of each label, found without the library."""
    kind, *rest = spec
    if kind == "linear":
        return {}
    if kind == "act":
        return {f"act {rest[0]}": ["relu", "tanh"]}
    if kind == "hidden":
        return {f"width {rest[0]}": [2, 4]}
    if kind == "scale":
        return {f"scale {rest[0]}": [0.5, 2.0]}
    if kind == "sequence":
        own: dict[str, list[Any]] = {}
        parts = rest[0]
    elif kind == "layer":
        own, parts = {layer_label(spec): list(range(len(rest[1])))}, rest[1]
    elif kind == "repeat":
        low, high = rest[2]
        own, parts = {depth_label(spec): list(range(low, high + 1))}, [rest[1]]
    else:
        n = len(rest[1])
        sizes = [rest[2]] if rest[2] else range(1, n + 1)
        subsets = [list(chosen) for size in sizes for chosen in itertools.combinations(range(n), size)]
        own, parts = {inputs_label(spec): subsets}, rest[1]
    for part in parts:
        own |= domains(part)
    return own


def active(spec: tuple[Any, ...], sample: Sample) -> Iterator[str]:
    """Yield the labels that matter under a sample."""
    kind, *rest = spec
    if kind == "layer":
        yield layer_label(spec)
        yield from active(rest[1][sample[layer_label(spec)]], sample)
    elif kind == "repeat":
        yield depth_label(spec)
        if sample[depth_label(spec)]:
            yield from active(rest[1], sample)
    elif kind == "sequence":
        for part in rest[0]:
            yield from active(part, sample)
    elif kind == "inputs":
        yield inputs_label(spec)
        for part in rest[1]:
            yield from active(part, sample)
    else:
        yield from domains(spec)


def points(spec: tuple[Any, ...]) -> list[Sample]:
    values = domains(spec)
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def frozen_set(sample: Sample) -> frozenset[tuple[str, str]]:
    return frozenset((label, repr(value)) for label, value in sample.items())


often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@often
@given(specs, st.integers(0, 2**31))
def test_random_samples_are_members_and_depend_on_the_seed_alone(spec: tuple[Any, ...], seed: int) -> None:
    space = Net(spec)
    sample = space.random(random_state=seed)
    assert space.contains(sample)
    assert sample == Net(spec).random(random_state=seed)
    assert set(sample) == set(domains(spec))
    assert all(value in domains(spec)[label] for label, value in sample.items())


@often
@given(specs.filter(lambda spec: len(points(spec)) <= 200))
def test_the_size_is_the_length_of_the_grid_and_that_of_brute_force(spec: tuple[Any, ...]) -> None:
    space = Net(spec)
    every = points(spec)
    assert {frozen_set(point) for point in space.grid()} == {frozen_set(point) for point in every}
    assert space.size() == len(every)
    relevant = {frozen_set({label: point[label] for label in active(spec, point)}) for point in every}
    listed = list(space.grid(active_only=True))
    assert len(listed) == len({frozen_set(point) for point in listed}) == space.size(active_only=True)
    assert {frozen_set(point) for point in listed} == relevant


@often
@given(specs, st.integers(0, 1000))
def test_a_frozen_model_computes_what_the_super_net_computes(spec: tuple[Any, ...], seed: int) -> None:
    space = Net(spec)
    sample = space.random(random_state=seed)
    relaxation = OneHot(space.simplify().values())
    make_supernet(space, relaxation)
    relaxation.resample(sample)
    x = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed))
    relevant = {label: sample[label] for label in active(spec, sample)}
    model = space.freeze(relevant)
    torch.testing.assert_close(model(x), space(x))
    assert not any(type(part).__module__.startswith("hwnas") for part in model.modules())
    ours = {parameter.data_ptr() for parameter in space.parameters()}
    assert ours.isdisjoint(parameter.data_ptr() for parameter in model.parameters())


@often
@given(specs, st.integers(0, 1000))
def test_the_default_model_computes_what_the_space_computes(spec: tuple[Any, ...], seed: int) -> None:
    space = Net(spec)
    x = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(space.freeze(space.default())(x), space(x))


@often
@given(specs, st.integers(0, 1000))
def test_samples_and_spaces_go_through_json(spec: tuple[Any, ...], seed: int) -> None:
    space = Net(spec)
    sample = space.random(random_state=seed)
    text = json.dumps(sample_to_json(sample), allow_nan=False)
    assert sample_from_json(json.loads(text), space) == sample
    described = space_from_json(json.loads(json.dumps(space_to_json(space), allow_nan=False)))
    assert described.random(random_state=seed) == sample
    assert described.size(active_only=True) == space.size(active_only=True)
    assert described.freeze(sample) == {label: sample[label] for label in active(spec, sample)}
