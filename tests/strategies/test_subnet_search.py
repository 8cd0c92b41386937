"""Search on a super-net: finds what is known to be best, and leaves no trace."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import hwnas.nn as nn
from hwnas.errors import TrainingError
from hwnas.evaluators import evaluate_accuracy
from hwnas.profilers.filters import RangeProfilerFilter
from hwnas.space import ExpressionConstraint
from hwnas.strategies import RandomOneShot, SubnetSearch


class Wide(nn.ModelSpace):
    """4^8 members that differ in nothing but their samples."""

    def __init__(self) -> None:
        super().__init__()
        self.choices = [nn.ValueChoice([0, 1, 2, 3], label=f"v{i}") for i in range(8)]
        for choice in self.choices:
            self.add_mutable(choice)
        self.layer = nn.LayerChoice([nn.Linear(2, 2), nn.Identity()], label="layer")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def search(space: Any, **kwargs: Any) -> Any:
    strategy = RandomOneShot()
    strategy.mutate_model(space)
    filter = kwargs.pop("filter", None)
    metric = kwargs.pop("metric", None)
    scorer = None if metric is None else (lambda model, batches: metric(strategy.relaxation.sample))
    data = [(torch.randn(4, 1, 5, 5) + i, torch.tensor([0, 1, 2, 0])) for i in range(3)]
    made = SubnetSearch(metric=scorer, **kwargs)
    return made.run(space, train_batches=data, val_batches=data, filter=filter)


TARGET = (3, 1, 0, 2, 2, 1, 3, 0)


def matches(sample: dict[str, Any]) -> float:
    return float(sum(sample[f"v{i}"] == wanted for i, wanted in enumerate(TARGET)))


def test_evolution_finds_the_known_best():
    asked: list[Any] = []

    def metric(sample: dict[str, Any]) -> float:
        asked.append(sample)
        return matches(sample)

    ranked = search(Wide(), metric=metric, evaluations=600, population=40, parents=10)
    assert ranked[0].score == 8
    assert len(ranked) == len({member.key for member in ranked}) == len(asked) == 600
    assert [member.score for member in ranked] == sorted((m.score for m in ranked), reverse=True)
    # Random search of equal cost: eight of eight once in a hundred searches.
    assert 600 * 0.25**8 < 0.01


def test_constraints_and_filter_hold_for_offspring():
    space = Wide()
    space.add_mutable(ExpressionConstraint(space.choices[0] < 3))
    ranked = search(
        space,
        metric=matches,
        evaluations=300,
        population=30,
        filter=lambda sample: sample["v1"] + sample["v2"] >= 2,
    )
    assert len(ranked) == 300
    assert all(member.sample["v0"] < 3 and member.sample["v1"] + member.sample["v2"] >= 2 for member in ranked)
    assert ranked[0].score == 6  # 7 match at most without v0; v1 + v2 is 1 at the target


def test_small_spaces_are_searched_exhaustively(kit):
    seen = []
    ranked = search(
        kit.Net(),
        metric=lambda sample: float(sample["layer_1"] == "skip"),
        evaluations=9,
        filter=RangeProfilerFilter(kit.profiler(), max=10),
        on_evaluation=lambda member, done, budget: seen.append((member.sample, done, budget)),
    )
    assert len(ranked) == 6  # cost 1, 3, 3, 5, 10, 10
    # Equal scores are ordered by cost.
    assert [(member.score, member.cost) for member in ranked] == [
        (1, 1),
        (1, 3),
        (1, 10),
        (0, 3),
        (0, 5),
        (0, 10),
    ]
    assert [done for _, done, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert {budget for *_, budget in seen} == {9}


def test_full_ties_are_ordered_by_the_key(kit):
    ranked = search(kit.Net(), metric=lambda sample: 1.0)
    assert [member.key for member in ranked] == sorted(member.key for member in ranked)


class Conditional(nn.ModelSpace):
    """The width of the second layer means nothing where it is skipped: 2 * (2 + 1) architectures of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.first = nn.LayerChoice([nn.Linear(25, 4), nn.Linear(25, 4, bias=False)], label="first")
        hidden = nn.ValueChoice([3, 5], label="hidden")
        self.second = nn.LayerChoice(
            [nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 4)), nn.Identity()],
            label="second",
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(self.flatten(x))))


@pytest.mark.parametrize("evaluations", [6, 500])
def test_each_architecture_is_scored_once(evaluations):
    ranked = search(Conditional(), evaluations=evaluations)
    assert len(ranked) == 6
    assert all(set(member.sample) == {"first", "second", "hidden"} for member in ranked)


def test_duplicates_are_not_scored_by_evolution(monkeypatch):
    monkeypatch.setattr("hwnas.strategies.subnet_search._LISTED_PER_EVALUATION", 0)
    assert len(search(Conditional(), evaluations=500)) == 6  # and it ends although the budget is not used up


def trained(kit: Any) -> RandomOneShot:
    torch.manual_seed(0)
    strategy = RandomOneShot()
    strategy.run(kit.Net(), kit.evaluator(max_epochs=5))
    return strategy


def test_the_supernet_is_bit_equal_afterwards(kit):
    strategy = trained(kit)
    space = strategy.supernet
    state, sample = kit.snapshot(space), dict(strategy.relaxation.sample)
    modes = [module.training for module in space.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in space.parameters()]
    random_state = torch.random.get_rng_state()
    strategy.ranking()
    assert kit.equal(kit.snapshot(space), state)
    assert strategy.relaxation.sample == sample
    assert [module.training for module in space.modules()] == modes
    for parameter, gradient in zip(space.parameters(), gradients, strict=True):
        assert (parameter.grad is None and gradient is None) or torch.equal(parameter.grad, gradient)
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_the_supernet_is_restored_when_the_metric_fails(kit):
    strategy = trained(kit)
    state = kit.snapshot(strategy.supernet)
    for metric, error in ((lambda *_: math.nan, TrainingError), (lambda *_: {}["x"], KeyError)):
        strategy.search, strategy._ranking = SubnetSearch(metric=metric), None
        with pytest.raises(error):
            strategy.ranking()
        assert kit.equal(kit.snapshot(strategy.supernet), state)


def test_scores_do_not_depend_on_what_was_scored_before(kit):
    strategy = trained(kit)

    def loss(model: nn.Module, batches: Any) -> float:
        model.eval()
        with torch.no_grad():
            return -float(sum(nn.functional.cross_entropy(model(x), y) for x, y in batches))

    def scores(**kwargs: Any) -> dict[Any, float]:
        strategy.search, strategy._ranking = SubnetSearch(metric=loss, **kwargs), None
        return {member.key: member.score for member in strategy.ranking()}

    everything = scores()
    assert len(set(everything.values())) > 5
    for seed in range(3):
        few = scores(evaluations=3, seed=seed)
        assert len(few) == 3
        assert all(everything[key] == score for key, score in few.items())


def test_statistics_are_those_of_the_member(kit):
    """The score is the accuracy of the frozen member, recalibrated on the same batches by hand."""
    strategy = trained(kit)
    strategy.search = SubnetSearch(max_recalibration_batches=None)
    strategy.evaluator.train_dataloaders.sampler.set_epoch(0)
    batches = list(strategy.evaluator.train_dataloaders)
    for member in strategy.ranking():
        model = strategy.supernet.freeze(member.sample)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        model.train()
        for x, _ in batches:
            model(x)
        assert evaluate_accuracy(model, strategy.evaluator.val_dataloaders) == member.score


def test_seeds():
    def run(seed: int) -> list[Any]:
        torch.manual_seed(0)
        return search(Wide(), metric=matches, evaluations=100, seed=seed)

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"evaluations": 0},
        {"population": 0},
        {"parents": 0},
        {"mutation_probability": 0},
        {"max_recalibration_batches": -1},
    ],
)
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match=f"{next(iter(kwargs))} is {next(iter(kwargs.values()))}"):
        SubnetSearch(**kwargs)
