"""Which members are trained: equal counts counted, extremes found by listing, refusals by name."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

import hwnas.nn as nn
from hwnas.cost import CostModel, Factor
from hwnas.profilers.filters import AllOf, ProfilerFilter, RangeProfilerFilter
from hwnas.profilers.profiler import Profiler
from hwnas.space import Categorical, CategoricalMultiple, ExpressionConstraint, MutableDict, Numerical
from hwnas.strategies import FairSampling, RandomOneShot, SandwichSampling, UniformSampling
from hwnas.strategies.feasible import FeasibleSampler
from hwnas.strategies.member_sampling import as_sampling


class Space(MutableDict):
    """Labels without layers."""

    def __init__(self, *mutables: Any) -> None:
        super().__init__({f"m{i}": mutable for i, mutable in enumerate(mutables)})


def plan(sampling: Any, *mutables: Any, filter: Any = None, seed: int = 0) -> Any:
    return sampling.plan(FeasibleSampler(Space(*mutables), filter, seed=seed), seed)


def choices(sizes: list[int]) -> list[Categorical]:
    return [Categorical([10 * i + j for j in range(n)], label=f"l{i}") for i, n in enumerate(sizes)]


def drawn(members: Any, steps: int) -> list[dict[str, Any]]:
    return [sample for step in range(steps) for sample in members.of(step)]


# -- fair ------------------------------------------------------------------------------------------------------


def test_each_step_uses_each_value_of_each_label_once_where_all_have_as_many():
    members = plan(FairSampling(), *choices([4, 4, 4]))
    assert members.count == 4
    for step in range(30):
        for i, label in enumerate(("l0", "l1", "l2")):
            assert sorted(sample[label] for sample in members.of(step)) == [10 * i + j for j in range(4)]


def test_any_round_of_a_label_uses_each_value_once_whatever_the_others_have():
    sizes = [2, 3, 5, 1]
    members = plan(FairSampling(), *choices(sizes))
    assert members.count == 5
    samples = drawn(members, 12)
    assert len(samples) == 60
    for i, n in enumerate(sizes):
        for start in range(0, 60, n):
            assert len({sample[f"l{i}"] for sample in samples[start : start + n]}) == n
    # 60 is a multiple of 2, 3 and 5
    assert all(set(Counter(s[f"l{i}"] for s in samples).values()) == {60 // n} for i, n in enumerate(sizes))


def test_labels_are_independent_and_orders_change():
    samples = drawn(plan(FairSampling(), *choices([3, 3])), 300)
    pairs = Counter((sample["l0"], sample["l1"]) for sample in samples)
    assert len(pairs) == 9
    # chi-square with 4 degrees of freedom (the margins are fixed): above 18.5 once in a thousand
    assert sum((n - 100) ** 2 / 100 for n in pairs.values()) < 18.5
    orders = Counter(tuple(s["l0"] for s in samples[i : i + 3]) for i in range(0, 900, 3))
    assert len(orders) == 6
    assert sum((n - 50) ** 2 / 50 for n in orders.values()) < 20.5  # 5 degrees


def test_a_choice_inside_a_candidate_is_not_biased():
    """What counts for it are the members that have the candidate: a third of all."""
    samples = drawn(plan(FairSampling(), *choices([3, 3])), 400)
    inside = Counter(sample["l1"] for sample in samples if sample["l0"] == 1)
    assert sum(inside.values()) == 400
    assert sum((n - 400 / 3) ** 2 / (400 / 3) for n in inside.values()) < 13.8  # 2 degrees


def test_combinations_of_inputs_are_values():
    members = plan(FairSampling(), CategoricalMultiple([0, 1, 2, 3], n_chosen=2, label="in"), *choices([2]))
    assert members.count == 6
    for step in range(5):
        combinations = [sample["in"] for sample in members.of(step)]
        assert sorted(combinations) == [list(pair) for pair in itertools.combinations(range(4), 2)]
        assert set(Counter(item for chosen in combinations for item in chosen).values()) == {3}


def test_fewer_members_a_step_keep_the_rounds():
    whole = drawn(plan(FairSampling(), *choices([6, 3])), 2)
    assert drawn(plan(FairSampling(members=4), *choices([6, 3])), 3) == whole


def test_the_members_of_a_step_depend_on_seed_and_step_only():
    steps = [7, 0, 3, 3, 1000]
    for sampling in (FairSampling(), SandwichSampling(profiler=sizes_profiler()), UniformSampling()):
        one, other = plan(sampling, *choices([3, 2]), seed=5), plan(sampling, *choices([3, 2]), seed=5)
        forward = {step: one.of(step) for step in sorted(steps)}
        assert all(other.of(step) == forward[step] for step in steps)
        different = plan(sampling, *choices([3, 2]), seed=6)
        assert [different.of(step) for step in range(20)] != [one.of(step) for step in range(20)]
        assert one.of(0) != one.of(1)


def test_members_share_nothing():
    members = plan(FairSampling(), CategoricalMultiple([0, 1, 2], n_chosen=2, label="in"))
    expected = copy.deepcopy(members.of(0))
    for sample in members.of(0):
        sample["in"].append("changed")
    assert members.of(0) == expected


@pytest.mark.parametrize(
    ("mutables", "filter", "message"),
    [
        (choices([2]), lambda sample: True, "fair sampling uses all values equally often, which the filter"),
        ([Categorical([1, 2], weights=[0.4, 0.6], label="x")], None, r"those of 'x' have the weights \[0.4, 0.6\]"),
        ([Categorical([1, 2], weights=[1.0, 0.0], label="x")], None, r"those of 'x' have the weights \[1.0, 0.0\]"),
        ([CategoricalMultiple(range(20), label="x")], None, "'x' has 1048575"),
        ([Numerical(0, 1, label="x")], None, "'x'"),
    ],
)
def test_fair_refusals(mutables, filter, message):
    with pytest.raises(ValueError, match=message):
        plan(FairSampling(), *mutables, filter=filter)


def test_fair_refuses_constraints():
    a, b = choices([2, 2])
    with pytest.raises(ValueError, match=r"which the constraint ExpressionConstraint\(.*l0.*\) rules out"):
        plan(FairSampling(), a, b, ExpressionConstraint(a + b < 12))


# -- sandwich --------------------------------------------------------------------------------------------------


TABLES = {"l0": [3.0, 1.0, 2.0], "l1": [0.5, 4.0]}


def sizes_profiler(constant: float = 0.0) -> Profiler:
    domain = {label: [10 * i + j for j in range(len(table))] for i, (label, table) in enumerate(TABLES.items())}
    factors = [Factor((label,), np.array(table)) for label, table in TABLES.items()]
    return Profiler(CostModel(domain, factors, constant=constant, unit="parameters"))


def test_largest_then_smallest_then_random():
    members = plan(SandwichSampling(profiler=sizes_profiler()), *choices([3, 2]))
    assert members.count == 4
    steps = [members.of(step) for step in range(50)]
    assert all(step[0] == {"l0": 0, "l1": 11} and step[1] == {"l0": 1, "l1": 10} for step in steps)
    assert all(len(step) == 4 for step in steps)
    random = Counter(tuple(sample.values()) for step in steps for sample in step[2:])
    assert len(random) == 6
    assert sum((n - 100 / 6) ** 2 / (100 / 6) for n in random.values()) < 20.5  # 5 degrees
    assert plan(SandwichSampling(random=0, profiler=sizes_profiler()), *choices([3, 2])).count == 2


def random_profiler(rng: np.random.Generator, sizes: list[int]) -> Profiler:
    domain = {f"l{i}": [10 * i + j for j in range(n)] for i, n in enumerate(sizes)}
    factors = [Factor((label,), rng.normal(size=len(values))) for label, values in domain.items()]
    factors.append(Factor(("l0", "l1"), rng.normal(size=sizes[:2])))
    return Profiler(CostModel(domain, factors, unit="ms"))


@pytest.mark.parametrize("seed", range(5))
def test_extremes_are_those_of_the_range(seed):
    rng, sizes = np.random.default_rng(seed), [4, 3, 5, 4]
    profiler = random_profiler(rng, sizes)
    everything = [{f"l{i}": 10 * i + j for i, j in enumerate(point)} for point in itertools.product(*map(range, sizes))]
    costs = sorted(map(profiler.profile, everything))
    close = 1e-3 * (costs[-1] - costs[0])
    for low, high in ((None, costs[150]), (costs[30], None), (costs[40], costs[60]), (costs[100], costs[100])):
        within = [cost for cost in costs if (low is None or cost >= low) and (high is None or cost <= high)]
        members = plan(SandwichSampling(), *choices(sizes), filter=RangeProfilerFilter(profiler, low, high))
        largest, smallest, *others = members.of(0)
        assert profiler.profile(largest) == pytest.approx(within[-1], abs=close)
        assert profiler.profile(smallest) == pytest.approx(within[0], abs=close)
        assert all(within[0] <= profiler.profile(sample) <= within[-1] for sample in others)


def test_extremes_have_no_value_of_weight_0_and_meet_constraints():
    a, b = Categorical([0, 1, 2], weights=[0.0, 0.5, 0.5], label="l0"), Categorical([10, 11], label="l1")
    members = plan(SandwichSampling(profiler=sizes_profiler()), a, b)
    assert members.of(0)[:2] == [{"l0": 2, "l1": 11}, {"l0": 1, "l1": 10}]
    # A constraint of which the cost model does not know.
    a, b = choices([3, 2])
    members = plan(SandwichSampling(profiler=sizes_profiler()), a, b, ExpressionConstraint(a + b < 11))
    assert members.of(0)[:2] == [{"l0": 0, "l1": 10}, {"l0": 0, "l1": 10}]


def test_extremes_within_other_filters():
    class Even(ProfilerFilter):
        def accepts(self, cost: float) -> bool:
            return cost in (1.5, 3.5, 5.0)

    members = plan(SandwichSampling(), *choices([3, 2]), filter=Even(sizes_profiler()))
    assert members.of(0)[:2] == [{"l0": 1, "l1": 11}, {"l0": 1, "l1": 10}]
    # Several ranges: large is what the first says, within all of them.
    other = Profiler(CostModel({"l1": [10, 11]}, [Factor(("l1",), np.array([0.0, 1.0]))], unit="ms"))
    both = AllOf([RangeProfilerFilter(sizes_profiler(), max=6.5), RangeProfilerFilter(other, max=0.5)])
    assert plan(SandwichSampling(), *choices([3, 2]), filter=both).of(0)[:2] == [
        {"l0": 0, "l1": 10},
        {"l0": 1, "l1": 10},
    ]
    # One by which members are large, another by which they are feasible.
    members = plan(SandwichSampling(profiler=other), *choices([3, 2]), filter=lambda sample: sample["l0"] == 2)
    assert members.of(0)[:2] == [{"l0": 2, "l1": 11}, {"l0": 2, "l1": 10}]


def test_labels_of_which_the_cost_does_not_know_have_their_defaults():
    members = plan(
        SandwichSampling(profiler=sizes_profiler()), *choices([3, 2]), Categorical([5, 6], default=6, label="x")
    )
    assert [sample["x"] for sample in members.of(0)[:2]] == [6, 6]


def test_sandwich_refusals(kit):
    with pytest.raises(ValueError, match="no profiler that says which members are large"):
        plan(SandwichSampling(), *choices([2]))
    with pytest.raises(ValueError, match="no profiler that says which members are large"):
        plan(SandwichSampling(), *choices([2]), filter=lambda sample: True)
    with pytest.raises(ValueError, match="sandwich sampling: its cost depends on the label 'l1'"):
        plan(SandwichSampling(profiler=sizes_profiler()), *choices([3]))


# -- names -----------------------------------------------------------------------------------------------------


def test_names():
    assert as_sampling("uniform") == UniformSampling()
    assert as_sampling("fair") == FairSampling()
    assert as_sampling("sandwich") == SandwichSampling()
    own = FairSampling(members=2)
    assert as_sampling(own) is own
    with pytest.raises(ValueError, match="sampling is 'strict'; expected 'uniform', 'fair', 'sandwich'"):
        RandomOneShot(sampling="strict")
    with pytest.raises(ValueError, match="members is 0; expected at least 1"):
        FairSampling(members=0)
    with pytest.raises(ValueError, match="random is -1; expected at least 0"):
        SandwichSampling(random=-1)


def test_the_space_is_unchanged_when_sampling_does_not_fit(kit):
    space = kit.Net()
    for strategy in (RandomOneShot(sampling="sandwich"), RandomOneShot(lambda sample: True, sampling="fair")):
        with pytest.raises(ValueError, match="sampling"):
            strategy.mutate_model(space)
    RandomOneShot(sampling="fair").mutate_model(space)
    assert isinstance(space, nn.ModelSpace)
