from __future__ import annotations

import math

import numpy as np
import pytest

from hwnas.cost import CostModel, Factor
from hwnas.errors import BudgetError
from hwnas.profilers.filters import AllOf, ProfilerFilter, RangeProfilerFilter, as_filter
from hwnas.profilers.profiler import Profiler


@pytest.fixture
def profiler() -> Profiler:
    factors = [Factor(("a",), np.array([1.0, 2.0, 4.0])), Factor(("b",), np.array([10.0, 20.0]))]
    return Profiler(CostModel({"a": [0, 1, 2], "b": ["x", "y"]}, factors, unit="ms"))


def test_both_ends_belong_to_the_range(profiler: Profiler) -> None:
    accepts = RangeProfilerFilter(profiler, min=12, max=21)
    costs = {11: False, 12: True, 14: True, 21: True, 22: False, 24: False}
    for a, b in ((a, b) for a in (0, 1, 2) for b in "xy"):
        sample = {"a": a, "b": b, "other": 1}
        assert accepts(sample) is costs[int(profiler.profile(sample))]


def test_one_end_is_enough(profiler: Profiler) -> None:
    assert RangeProfilerFilter(profiler, max=11)({"a": 0, "b": "x"})
    assert not RangeProfilerFilter(profiler, max=11)({"a": 1, "b": "x"})
    assert RangeProfilerFilter(profiler, min=24)({"a": 2, "b": "y"})


def test_the_dictionary_form(profiler: Profiler) -> None:
    made = as_filter({"profiler": profiler, "max": 12})
    assert isinstance(made, RangeProfilerFilter)
    assert (made.min, made.max) == (None, 12)
    assert as_filter(made) is made
    for wrong in ({"max": 12}, {"profiler": profiler, "maximum": 12}):
        with pytest.raises(ValueError, match="a filter is a dictionary with `profiler`"):
            as_filter(wrong)


def test_impossible_ranges(profiler: Profiler) -> None:
    with pytest.raises(ValueError, match="give `min`, `max`, or both"):
        RangeProfilerFilter(profiler)
    with pytest.raises(ValueError, match=r"min \(5\) is greater than max \(3\)"):
        RangeProfilerFilter(profiler, min=5, max=3)
    with pytest.raises(ValueError, match=r"max is nan.*ms"):
        RangeProfilerFilter(profiler, max=math.nan)


def test_a_budget_below_the_minimum_names_the_minimum(profiler: Profiler) -> None:
    with pytest.raises(BudgetError, match="11") as caught:
        RangeProfilerFilter(profiler, max=10)
    assert caught.value.nearest == pytest.approx(11)
    with pytest.raises(BudgetError, match="24"):
        RangeProfilerFilter(profiler, min=25)
    with pytest.raises(BudgetError):
        RangeProfilerFilter(profiler, min=15, max=20)


def test_an_own_filter(profiler: Profiler) -> None:
    class Even(ProfilerFilter):
        def accepts(self, cost: float) -> bool:
            return cost % 2 == 0

    assert Even(profiler)({"a": 1, "b": "x"})
    assert not Even(profiler)({"a": 0, "b": "x"})
    with pytest.raises(NotImplementedError, match="ProfilerFilter"):
        ProfilerFilter(profiler)({"a": 0, "b": "x"})


def test_all_of_several(profiler: Profiler) -> None:
    accepts = AllOf([RangeProfilerFilter(profiler, max=21), lambda sample: sample["a"] != 1])
    found = [(a, b) for a in (0, 1, 2) for b in "xy" if accepts({"a": a, "b": b})]
    assert found == [(0, "x"), (0, "y"), (2, "x")]
    assert repr(accepts).startswith("AllOf(RangeProfilerFilter(latency_ms, max=21), <function")
