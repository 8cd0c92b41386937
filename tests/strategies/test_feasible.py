"""Frequencies of draws against the exact conditional distribution."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hwnas.cost import CostModel, Factor
from hwnas.errors import BudgetError
from hwnas.profilers.filters import AllOf, RangeProfilerFilter
from hwnas.profilers.profiler import Profiler
from hwnas.space import Categorical, ExpressionConstraint, MutableList, Numerical
from hwnas.strategies.architecture_key import active_labels, architecture_key
from hwnas.strategies.feasible import FeasibleSampler

WEIGHTS = [0.5, 0.3, 0.2]


def space(*more) -> MutableList:
    choices = [Categorical(["conv3", "conv1", "skip"], weights=WEIGHTS, label=f"layer_{i}") for i in (1, 2)]
    return MutableList([*choices, *more])


@pytest.mark.parametrize("form", ["range", "callable"])
@pytest.mark.parametrize("known", [True, False])
def test_draws_follow_priors_within_constraint_and_filter(kit, form, known):
    root = space()
    first, second = root.simplify().values()
    root = MutableList([first, second, ExpressionConstraint((first != "skip") | (second != "skip"))])
    # The profiler need not know the constraint.
    from hwnas.profilers.profiler import constraints_of

    profiler = kit.profiler(constraints=tuple(constraints_of(root)) if known else ())
    filter = RangeProfilerFilter(profiler, max=10)
    sampler = FeasibleSampler(root, filter if form == "range" else filter.__call__, seed=5)
    n = 3000
    counts = Counter(tuple(sampler.sample(i).values()) for i in range(n))
    prior = dict(zip(kit.costs, WEIGHTS, strict=True))
    mass = {
        (a, b): prior[a] * prior[b]
        for a in prior
        for b in prior
        if kit.costs[a] + kit.costs[b] <= 9 and (a, b) != ("skip", "skip")
    }
    assert set(counts) == set(mass)
    expected = {pair: n * p / sum(mass.values()) for pair, p in mass.items()}
    # chi-square with 4 degrees of freedom: above 18.5 once in a thousand
    assert sum((counts[pair] - e) ** 2 / e for pair, e in expected.items()) < 18.5


def test_numbers_decide():
    sampler, other = FeasibleSampler(space(), seed=1), FeasibleSampler(space(), seed=1)
    forwards = [sampler.sample(i) for i in range(150)]
    assert [other.sample(i) for i in reversed(range(150))] == forwards[::-1]
    sampler.sample(3)["layer_1"] = "changed"
    assert sampler.sample(3) == forwards[3]


def test_labels_that_the_cost_does_not_know_are_drawn(kit):
    root = space(Numerical(0.0, 1.0, label="rate"))
    sampler = FeasibleSampler(root, RangeProfilerFilter(kit.profiler(), max=3))
    samples = [sampler.sample(i) for i in range(50)]
    assert all(set(sample) == {"layer_1", "layer_2", "rate"} for sample in samples)
    assert all(sampler.accepts(sample) and sampler.cost(sample) <= 3 for sample in samples)
    assert len({sample["rate"] for sample in samples}) == 50


def test_first(kit):
    assert FeasibleSampler(space()).first() == {"layer_1": "conv3", "layer_2": "conv3"}
    cheap = FeasibleSampler(space(), RangeProfilerFilter(kit.profiler(), max=1))
    assert cheap.first() == {"layer_1": "skip", "layer_2": "skip"}


def test_rejection_ends():
    sampler = FeasibleSampler(space(), lambda sample: False, max_tries=100)
    with pytest.raises(BudgetError, match=r"rejected \d+ random samples in a row.*RangeProfilerFilter"):
        sampler.sample(0)


def test_values_that_differ_are_refused(kit):
    root = MutableList([Categorical(["conv3", "skip"], label=f"layer_{i}") for i in (1, 2)])
    with pytest.raises(ValueError, match=r"knows the values .* of the label 'layer_1'"):
        FeasibleSampler(root, RangeProfilerFilter(kit.profiler(), max=3))


def test_keys():
    first, second = (Categorical([1, 2], label=label) for label in "ba")
    only_constrained = Categorical([1, 2], label="c")
    root = MutableList([first, second, ExpressionConstraint(only_constrained + first > 0)])
    sample = {"a": 1, "b": 2, "c": 1}
    assert active_labels(root, sample) == ["b", "a"]
    dimensions = root.simplify()
    key = architecture_key(root, dimensions, sample)
    assert key == (("a", "1"), ("b", "2"))
    assert architecture_key(root, dimensions, sample | {"c": 2}) == key
    assert architecture_key(root, dimensions, sample | {"a": True}) == key  # equal to 1


def test_draws_within_two_ranges_follow_priors(kit):
    domain = {f"layer_{i}": list(kit.costs) for i in (1, 2)}
    rare = CostModel(domain, [Factor(("layer_2",), np.array([0.0, 1.0, 1.0]))], unit="bytes")
    loose, tight = RangeProfilerFilter(kit.profiler(), max=12), RangeProfilerFilter(Profiler(rare), min=0.5)
    prior = dict(zip(kit.costs, WEIGHTS, strict=True))
    mass = {
        (a, b): prior[a] * prior[b] for a in prior for b in prior if kit.costs[a] + kit.costs[b] <= 11 and b != "conv3"
    }
    n = 3000
    for filters in ([loose, tight], [tight, loose]):
        sampler = FeasibleSampler(space(), AllOf(filters), seed=3)
        counts = Counter(tuple(sampler.sample(i).values()) for i in range(n))
        assert set(counts) == set(mass)
        expected = {pair: n * p / sum(mass.values()) for pair, p in mass.items()}
        # chi-square with 5 degrees of freedom: above 20.5 once in a thousand
        assert sum((counts[pair] - e) ** 2 / e for pair, e in expected.items()) < 20.5
        sample = sampler.sample(0)
        assert sampler.cost(sample) == filters[0].profiler.profile(sample)


def test_weights_take_the_place_of_priors(kit):
    weights = {"layer_1": [0.0, 1.0, 0.0], "layer_2": [1.0, 1.0, 2.0]}
    sampler = FeasibleSampler(space(), RangeProfilerFilter(kit.profiler(), max=10), weights=weights)
    counts = Counter(tuple(sampler.sample(i).values()) for i in range(900))
    assert set(counts) == {("conv1", "conv1"), ("conv1", "skip")}
    assert counts["conv1", "skip"] == pytest.approx(600, abs=60)


def test_weights_take_the_place_of_priors_without_a_range_too():
    weights = {"layer_1": [0.0, 1.0, 0.0], "layer_2": [1.0, 1.0, 2.0]}
    sampler = FeasibleSampler(space(), weights=weights, seed=3)
    n = 4000
    counts = Counter(tuple(sampler.sample(i).values()) for i in range(n))
    expected = {("conv1", "conv3"): n / 4, ("conv1", "conv1"): n / 4, ("conv1", "skip"): n / 2}
    assert counts.keys() == expected.keys()
    statistic = sum((counts[key] - expected[key]) ** 2 / expected[key] for key in expected)
    assert statistic < 13.8  # chi-square, 2 degrees of freedom, p = 0.001


class Uncertain(Profiler):
    """Counts how often errors are asked for, and of how many members; they differ between members."""

    least_relative_stderr = 0.02

    def __init__(self) -> None:
        domain = {f"l{i}": list(range(4)) for i in range(8)}
        super().__init__(CostModel(domain, [Factor((label,), [1.0, 2.0, 4.0, 5.0]) for label in domain], unit="ms"))
        self.asked: list[int] = []

    def stderr(self, sample):
        return (0.02 + 0.01 * sample["l0"]) * self.profile(sample)

    def stderrs(self, samples):
        self.asked.append(len(samples))
        return super().stderrs(samples)


def wide() -> MutableList:
    return MutableList([Categorical(range(4), label=f"l{i}") for i in range(8)])


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_proposals_made_together_are_those_made_one_by_one(confidence):
    profiler, root = Uncertain(), wide()
    sampler = FeasibleSampler(root, RangeProfilerFilter(profiler, max=17.0, confidence=confidence))

    def one_by_one(rng, tries):
        for _ in range(tries):
            sample = root.random(random_state=rng)
            if sampler.accepts(sample):
                yield sample, rng.bit_generator.state

    def propose(rng):
        return root.random(random_state=rng)

    for tries in (1, 2, 3, 500):
        alone, together = np.random.default_rng(tries), np.random.default_rng(tries)
        expected = list(one_by_one(alone, tries))
        profiler.asked.clear()
        found = [(sample, together.bit_generator.state) for sample in sampler.accepted(propose, together, tries)]
        assert found == expected
        assert together.bit_generator.state == alone.bit_generator.state  # also after proposals in vain
    assert 5 < len(expected) < 100
    assert (0 if confidence is None else 4) <= len(profiler.asked) <= (0 if confidence is None else 14)
    # Who stops at a sample leaves the generator as if nothing had been proposed beyond it.
    alone, together = np.random.default_rng(9), np.random.default_rng(9)
    sample, state = next(one_by_one(alone, 500))
    assert next(sampler.accepted(propose, together, 500)) == sample
    assert together.bit_generator.state == state


def test_a_filter_that_is_a_function_is_not_asked_in_advance():
    asked = []

    def wanted(sample):
        asked.append(sample)
        return sample["l0"] == 0

    sampler = FeasibleSampler(wide(), wanted)
    rng = np.random.default_rng(0)
    first = next(sampler.accepted(lambda rng: wide().random(random_state=rng), rng, 100))
    assert asked[-1] == first
