"""A controller within ranges of costs, against enumeration."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hwnas.cost import CostModel, Factor
from hwnas.profilers.filters import RangeProfilerFilter
from hwnas.profilers.profiler import Profiler
from hwnas.space import Categorical, CategoricalMultiple, MutableDict, Sample
from hwnas.strategies.controller import Controller


def space() -> MutableDict:
    return MutableDict(
        {
            "free": Categorical(["u", "v"], label="free"),  # no cost depends on it
            "op": Categorical(["a", "b", "c"], weights=[0.6, 0.0, 0.4], label="op"),
            "two": CategoricalMultiple([0, 1, 2], 2, label="two"),
            "width": Categorical([8, 16, 32], label="width"),
        }
    )


def profiler(seed: int = 0) -> Profiler:
    generator = torch.Generator().manual_seed(seed)
    domain = {
        label: list(dimension.grid_values()) for label, dimension in space().simplify().items() if label != "free"
    }
    factors = [
        Factor(scope, torch.rand([len(domain[label]) for label in scope], generator=generator).numpy())
        for scope in (("width",), ("op", "two"), ("width", "op"), ("two", "width"))
    ]
    return Profiler(CostModel({**domain, "free": ["u", "v"]}, factors, constant=1.0, unit="ms"))


def key(sample: Sample) -> tuple[Any, ...]:
    return tuple(tuple(value) if isinstance(value, list) else value for value in sample.values())


@pytest.mark.parametrize("ends", [("max",), ("min",), ("min", "max")])
def test_draws_are_within_the_range_and_reach_all_of_it(ends: tuple[str, ...]) -> None:
    cost = profiler()
    members = [sample for sample in space().grid() if sample["op"] != "b"]
    costs = sorted(cost.profile(sample) for sample in members)
    low, high = costs[len(costs) // 3], costs[len(costs) // 2]
    within = RangeProfilerFilter(cost, **{end: {"min": low, "max": high}[end] for end in ends})
    wanted = {key(sample) for sample in members if within(sample)}
    controller = Controller(space(), hidden=4, ranges=[within])
    drawn = controller._roll(3000, torch.Generator().manual_seed(0))
    found = {key(sample) for sample in drawn if sample is not None}
    assert found == wanted
    if len(ends) == 1:  # two limits together may come to a dead end
        assert None not in drawn
        feasible = [sample for sample in members if within(sample)]
        assert math.isclose(sum(math.exp(controller.log_probability(s)) for s in feasible), 1, abs_tol=1e-5)


def test_one_member_in_a_million_is_drawn_at_once() -> None:
    labels = [f"l{i:02}" for i in range(20)]
    wide = MutableDict({label: Categorical([1, 2], label=label) for label in labels})
    model = CostModel({label: [1, 2] for label in labels}, [Factor((label,), [1.0, 2.0]) for label in labels])
    within = RangeProfilerFilter(Profiler(model), max=20.0)
    controller = Controller(wide, hidden=4, ranges=[within])
    assert controller.draw(3, torch.Generator().manual_seed(0), within) == 3 * [dict.fromkeys(labels, 1)]


def test_ranges_of_several_costs_hold_together() -> None:
    ranges = []
    members = [sample for sample in space().grid() if sample["op"] != "b"]
    for seed in (0, 1):
        costs = sorted(profiler(seed).profile(sample) for sample in members)
        ranges.append(RangeProfilerFilter(profiler(seed), max=costs[len(costs) * 2 // 3]))
    wanted = {key(sample) for sample in members if all(within(sample) for within in ranges)}
    controller = Controller(space(), hidden=4, ranges=ranges)
    drawn = [sample for sample in controller._roll(3000, torch.Generator().manual_seed(0)) if sample is not None]
    assert {key(sample) for sample in drawn} == wanted
