"""Filters at a confidence level, against the normal distribution and against all members of small spaces."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hwnas.cost import CostModel, Factor
from hwnas.errors import BudgetError
from hwnas.profilers.filters import AllOf, RangeProfilerFilter, accept_many, as_filter, parts_of, ranges_in
from hwnas.profilers.profiler import Profiler
from hwnas.space import Categorical, MutableList, Sample
from hwnas.strategies import Budget
from hwnas.strategies.budget import as_budget, joined
from hwnas.strategies.dual_ascent import DualAscent
from hwnas.strategies.feasible import FeasibleSampler
from hwnas.strategies.reachable import limits_of

COSTS: Mapping[str, list[float]] = {"a": [1.0, 2.0, 4.0, 7.0], "b": [10.0, 11.5, 13.0], "c": [0.5, 3.0, 3.5, 6.0]}
SAMPLES = [
    dict(zip(COSTS, choice, strict=True)) for choice in itertools.product(*(range(len(c)) for c in COSTS.values()))
]


class Uncertain(Profiler):
    """A cost whose relative error is known: the same for all members, or more for some."""

    def __init__(self, relative: float, more: Callable[[Sample], float] = lambda sample: 0.0) -> None:
        factors = [Factor((label,), np.array(costs)) for label, costs in COSTS.items()]
        super().__init__(CostModel({label: range(len(costs)) for label, costs in COSTS.items()}, factors, unit="ms"))
        self.relative, self.more = relative, more

    @property
    def least_relative_stderr(self) -> float:
        return self.relative

    def stderr(self, sample: Sample) -> float:
        return (self.relative + self.more(sample)) * self.profile(sample)


def probability(profiler: Profiler, sample: Sample, low: float, high: float) -> float:
    """The least probability of the two ends, from the normal distribution itself."""
    true = stats.norm(profiler.profile(sample), profiler.stderr(sample))
    return float(min(true.sf(low), true.cdf(high)))


def space() -> MutableList:
    return MutableList([Categorical(range(len(costs)), label=label) for label, costs in COSTS.items()])


def wider_where_a_is_large(sample: Sample) -> float:
    return 0.03 * sample["a"]


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("more", [lambda sample: 0.0, wider_where_a_is_large])
def test_what_is_accepted(confidence: float, more: Callable[[Sample], float]) -> None:
    profiler = Uncertain(0.02, more)
    within = RangeProfilerFilter(profiler, 14.2, 19.3, confidence)
    accepted = [sample for sample in SAMPLES if within(sample)]
    assert accepted == [s for s in SAMPLES if probability(profiler, s, 14.2, 19.3) >= confidence]
    assert 0 < len(accepted) < len(SAMPLES)
    assert within.low is not None
    assert within.high is not None
    assert all(within.low <= profiler.profile(sample) <= within.high for sample in accepted)


def test_each_end_alone_with_a_large_error() -> None:
    profiler = Uncertain(0.2)
    at_least, at_most = (RangeProfilerFilter(profiler, **end, confidence=0.9) for end in ({"min": 14.0}, {"max": 20.0}))
    for sample in SAMPLES:
        assert at_least(sample) == (probability(profiler, sample, 14.0, math.inf) >= 0.9)
        assert at_most(sample) == (probability(profiler, sample, -math.inf, 20.0) >= 0.9)


def test_a_limit_that_no_cost_can_be_below_is_no_limit() -> None:
    for least in (0.0, -1.0):
        within = RangeProfilerFilter(Uncertain(0.9), min=least, confidence=0.9)
        assert within.low == least
        assert all(map(within, SAMPLES))


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_many_are_accepted_as_each_is(confidence: float | None) -> None:
    within = RangeProfilerFilter(Uncertain(0.02, wider_where_a_is_large), 14.2, 19.3, confidence)
    each = [within(sample) for sample in SAMPLES]
    assert within.accept_many(SAMPLES) == each
    assert within.accept_many([]) == []

    def is_even(sample: Sample) -> bool:
        return bool(sample["c"] % 2 == 0)

    assert accept_many(AllOf([within, is_even]), SAMPLES) == [
        one and is_even(sample) for one, sample in zip(each, SAMPLES, strict=True)
    ]
    assert accept_many(None, SAMPLES) == [True] * len(SAMPLES)


def test_errors_are_asked_for_many_at_once_when_members_are_drawn() -> None:
    class Asked(Uncertain):
        asked: list[int]

        def stderrs(self, samples: Sequence[Sample]) -> np.ndarray:
            self.asked.append(len(samples))
            return super().stderrs(samples)

    profiler = Asked(0.03, wider_where_a_is_large)
    profiler.asked = []
    sampler = FeasibleSampler(space(), {"profiler": profiler, "min": 13.0, "max": 18.0, "confidence": 0.9})
    drawn = [sampler.sample(i) for i in range(64)]
    assert all(probability(profiler, sample, 13.0, 18.0) >= 0.9 for sample in drawn)
    assert profiler.asked[0] > 30
    assert len(profiler.asked) < 8


@pytest.mark.parametrize("more", [lambda sample: 0.0, wider_where_a_is_large])
def test_draws_are_uniform_over_what_is_accepted(more: Callable[[Sample], float]) -> None:
    profiler = Uncertain(0.03, more)
    sampler = FeasibleSampler(space(), {"profiler": profiler, "min": 13.0, "max": 18.0, "confidence": 0.9}, seed=3)
    n = 2000
    counts = Counter(tuple(sampler.sample(i).values()) for i in range(n))
    expected = {tuple(s.values()) for s in SAMPLES if probability(profiler, s, 13.0, 18.0) >= 0.9}
    assert set(counts) == expected
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_a_relative_error_needs_no_rejection() -> None:
    """One member in a million is feasible, and each draw is one."""
    labels = [f"l{i}" for i in range(20)]
    model = CostModel(
        {label: [0, 1] for label in labels}, [Factor((label,), [1.0, 2.0]) for label in labels], unit="ms"
    )

    class Counted(Profiler):
        least_relative_stderr = 0.1
        asked = 0

        def stderr(self, sample: Sample) -> float:
            self.asked += 1
            return 0.1 * self.profile(sample)

    profiler = Counted(model)
    # z(0.9) = 1.2816: members of cost 20 are predicted within a limit of 22.57, those of cost 21 from 23.7 on.
    within = RangeProfilerFilter(profiler, max=23.0, confidence=0.9)
    assert within.high == pytest.approx(23.0 / 1.12816, rel=1e-5)
    root = MutableList([Categorical([0, 1], label=label) for label in labels])
    sampler = FeasibleSampler(root, within, seed=0)
    assert [sampler.sample(i) for i in range(64)] == [dict.fromkeys(labels, 0)] * 64
    assert profiler.asked == 64


def test_costs_without_error_do_not_change() -> None:
    profiler = Uncertain(0.0)
    exact = RangeProfilerFilter(profiler, 14.0, 18.5, 0.99)
    assert (exact.low, exact.high) == (14.0, 18.5)
    assert [exact(s) for s in SAMPLES] == [RangeProfilerFilter(profiler, 14.0, 18.5)(s) for s in SAMPLES]
    assert Profiler(profiler.cost_model).stderr(SAMPLES[0]) == 0.0


def test_no_confidence_takes_predictions_as_they_are() -> None:
    uncertain, exact = Uncertain(0.5), Uncertain(0.0)
    assert [RangeProfilerFilter(uncertain, max=15.0)(s) for s in SAMPLES] == [
        RangeProfilerFilter(exact, max=15.0)(s) for s in SAMPLES
    ]


def test_what_cannot_be_is_told() -> None:
    for confidence in (0.49, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"confidence is {confidence}"):
            RangeProfilerFilter(Uncertain(0.1), max=15.0, confidence=confidence)
        with pytest.raises(ValueError, match=f"confidence is {confidence}"):
            Budget({"latency_ms": 1.0}, confidence=confidence)
    with pytest.raises(ValueError, match=r"needs the error of latency_ms.*Calibrate"):
        RangeProfilerFilter(Uncertain(math.nan), max=15.0, confidence=0.9)
    with pytest.raises(BudgetError, match=r"at least 12 ms with a confidence of 0\.9.*Lower the confidence"):
        RangeProfilerFilter(Uncertain(0.9), min=12.0, confidence=0.9)
    with pytest.raises(BudgetError, match=r"confidence=0\.9\).*predicted as at least .* and at most .*Widen the range"):
        RangeProfilerFilter(Uncertain(0.2), min=14.0, max=15.0, confidence=0.9)
    with pytest.raises(BudgetError, match=r"the minimum is 11\.5 ms") as caught:
        RangeProfilerFilter(Uncertain(0.1), max=12.0, confidence=0.9)
    assert caught.value.nearest == 11.5


def test_several_filters_in_any_form() -> None:
    profiler = Uncertain(0.02)
    forms: list[Any] = [
        {"profiler": profiler, "max": 18.0, "confidence": 0.9},
        RangeProfilerFilter(profiler, min=13.0),
        lambda sample: sample["a"] != 1,
    ]
    every = as_filter(forms)
    assert isinstance(every, AllOf)
    assert [type(part) for part in parts_of(every)[:2]] == [RangeProfilerFilter] * 2
    single = [as_filter(form) for form in forms]
    assert [every(s) for s in SAMPLES] == [all(part(s) for part in single if part) for s in SAMPLES]
    assert as_filter([]) is None
    assert as_filter(forms[1:2]) is forms[1]
    # A budget joins them, and strategies see all ranges, however deep they were.
    budget = Budget({"latency_ms": 20.0}, profiler, confidence=0.8)
    assert [within.confidence for within in ranges_in(joined(AllOf([every]), budget))] == [0.9, None, 0.8]
    drawn = [FeasibleSampler(space(), forms, seed=1).sample(i) for i in range(64)]
    assert all(every(sample) for sample in drawn)
    with pytest.raises(ValueError, match="a filter is a dictionary with `profiler`"):
        as_filter([{"max": 3.0}])


def test_a_budget_with_confidence() -> None:
    profiler, quantile = Uncertain(0.05), stats.norm.ppf(0.9)
    budget = Budget({"latency_ms": 16.0}, profiler, confidence=0.9)
    assert budget.bounds == {"latency_ms": pytest.approx(16.0 / (1 + 0.05 * quantile))}
    assert [budget.meets(s) for s in SAMPLES] == [probability(profiler, s, 0, 16.0) >= 0.9 for s in SAMPLES]
    assert [budget.excess(s) <= 0 for s in SAMPLES] == [budget.meets(s) for s in SAMPLES]
    assert repr(budget) == "Budget(latency_ms <= 16, confidence 0.9)"
    other = Profiler(profiler.cost_model, name="other")
    extended = as_budget(budget, other)
    assert extended is not None
    assert extended.confidence == 0.9
    # What is trained under a budget is charged to the bound.
    dimensions = {str(label): mutable for label, mutable in space().simplify().items()}
    dual = DualAscent(budget, dimensions, learning_rate=0.1)  # type: ignore[arg-type]
    assert [limit for _, _, limit in dual.limits] == [budget.bounds["latency_ms"]]
    (limit,) = limits_of(budget.ranges[0], {label: list(range(len(costs))) for label, costs in COSTS.items()})
    assert limit.high == budget.bounds["latency_ms"]
