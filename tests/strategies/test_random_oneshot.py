"""Which members are trained, and that the best one found is what it is said to be."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import hwnas.nn as nn
from hwnas.errors import BudgetError
from hwnas.evaluators import evaluate_accuracy
from hwnas.profilers.filters import ProfilerFilter, RangeProfilerFilter
from hwnas.space import ExpressionConstraint
from hwnas.strategies import RandomOneShot, SubnetSearch


def trained(kit: Any, strategy: RandomOneShot, space: Any = None, **kwargs: Any) -> list[dict[str, Any]]:
    """Train, and return the members that were trained on, one for each batch."""
    samples: list[dict[str, Any]] = []
    probe = kit.Probe(end=lambda: samples.append(dict(strategy.relaxation.sample)))
    strategy.run(space or kit.Net(), kit.evaluator(**kwargs), callbacks=[probe])
    return samples


def cost(kit: Any, sample: dict[str, Any]) -> float:
    return 1 + sum(kit.costs[sample[label]] for label in ("layer_1", "layer_2"))


def test_a_new_member_for_each_batch(kit):
    strategy = RandomOneShot()
    samples = trained(kit, strategy, max_epochs=3, accumulate_grad_batches=3)
    members = strategy.callback().members
    many = [sample for step in range(180) for sample in members.of(step)]
    assert samples == many[:18]
    counts = Counter(tuple(sample.values()) for sample in many)
    assert len(counts) == 9
    # chi-square with 8 degrees of freedom: above 26 once in a thousand
    assert sum((n - 20) ** 2 / 20 for n in counts.values()) < 26
    assert many[:64] != many[64:128]


def forms(kit: Any) -> dict[str, Any]:
    class UpTo(ProfilerFilter):
        def accepts(self, cost: float) -> bool:
            return 2 <= cost <= 6

    return {
        "range": RangeProfilerFilter(kit.profiler(), 2, 6),
        "mapping": {"profiler": kit.profiler(), "min": 2, "max": 6},
        "profiler": UpTo(kit.profiler()),
        "callable": lambda sample: 2 <= cost(kit, sample) <= 6,
    }


@pytest.mark.parametrize("form", ["range", "mapping", "profiler", "callable"])
def test_only_feasible_members_are_trained_validated_and_returned(kit, form):
    validated = []

    class Strategy(RandomOneShot):
        pass

    strategy = Strategy(forms(kit)[form])

    class Module(kit.Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            validated.append(dict(strategy.relaxation.sample))
            super().validation_step(batch, batch_idx)

    samples = trained(kit, strategy, module=Module(), max_epochs=4)
    feasible = {("conv1", "conv1"), ("conv1", "skip"), ("skip", "conv1")}
    assert {tuple(sample.values()) for sample in samples} == feasible
    assert len({tuple(sample.values()) for sample in validated}) == 1
    assert tuple(validated[0].values()) in feasible
    assert {tuple(member.sample.values()) for member in strategy.ranking()} == feasible


def test_a_budget_below_the_minimum_names_the_minimum(kit):
    profiler = kit.profiler()
    limit = 0.9 * profiler.cost_model.minimum().cost
    for make in (lambda: {"profiler": profiler, "max": limit}, lambda: RangeProfilerFilter(profiler, max=limit)):
        with pytest.raises(BudgetError, match=r"no architecture costs at most 0\.9 MACs: the minimum is 1 MACs"):
            RandomOneShot(make())


def test_a_sandwich_lies_within_the_filter(kit):
    strategy = RandomOneShot({"profiler": kit.profiler(), "min": 2, "max": 11}, sampling="sandwich")
    strategy.mutate_model(kit.Net())
    for step in range(5):
        costs = [cost(kit, sample) for sample in strategy.callback().members.of(step)]
        assert costs[0] == 10
        assert costs[1] == 3
        assert all(3 <= each <= 10 for each in costs[2:])


def test_constraints_and_priors_are_honoured(kit):
    class Space(kit.Net):
        def __init__(self) -> None:
            super().__init__()
            names = self.first.names
            self.first = nn.LayerChoice(
                dict(zip(names, self.first, strict=True)), weights=[0.8, 0.2, 0.0], label="layer_1"
            )
            self.add_mutable(ExpressionConstraint(self.first.choice != self.second.choice))

    strategy = RandomOneShot()
    samples = trained(kit, strategy, Space(), max_epochs=8)
    counts = Counter(sample["layer_1"] for sample in samples)
    assert all(sample["layer_1"] != sample["layer_2"] for sample in samples)
    assert counts["skip"] == 0
    assert abs(counts["conv3"] - 0.8 * 48) < 3.3 * (48 * 0.8 * 0.2) ** 0.5
    ranked = [member.sample for member in strategy.ranking()]
    assert len(ranked) == 6
    assert all(sample["layer_1"] != sample["layer_2"] for sample in ranked)


def test_validation_scores_the_default_member_where_it_is_feasible(kit):
    strategy = RandomOneShot()
    strategy.run(kit.Net(), kit.evaluator())
    assert strategy.relaxation.sample == {"layer_1": "conv3", "layer_2": "conv3"}


def test_members_that_are_not_drawn_get_no_gradient(kit):
    space, strategy = kit.Net(), RandomOneShot(lambda sample: sample["layer_1"] == "conv1")
    checked = []

    class Module(kit.Module):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            assert all(p.grad is None for p in space.first["conv3"].parameters())
            assert all(p.grad is not None for p in space.first["conv1"].parameters())
            checked.append(True)

    strategy.run(space, kit.evaluator(Module()))
    assert len(checked) == 6


def test_a_resumed_run_equals_the_whole_run(kit, tmp_path):
    def run(ckpt_path: Any = None) -> tuple[Any, list]:
        torch.manual_seed(0)
        space = kit.Net(dropout=0.5)
        strategy, samples = RandomOneShot(search=SubnetSearch(evaluations=3)), []
        strategy.run(
            space,
            kit.evaluator(max_epochs=2),
            callbacks=[
                ModelCheckpoint(tmp_path, save_top_k=-1),
                kit.Probe(end=lambda: samples.append(strategy.relaxation.sample)),
            ],
            ckpt_path=ckpt_path,
        )
        return strategy, samples

    whole, expected = run()
    (path,) = tmp_path.glob("epoch=0*.ckpt")
    resumed, samples = run(path)
    assert samples == expected[6:]
    assert kit.equal(kit.snapshot(resumed.supernet), kit.snapshot(whole.supernet))
    assert resumed.ranking() == whole.ranking()


def test_seeds(kit):
    first = trained(kit, RandomOneShot(seed=1))
    assert first == trained(kit, RandomOneShot(seed=1))
    assert first != trained(kit, RandomOneShot(seed=2))


def test_the_ranking_depends_on_the_seeds_only(kit):
    def ranking(seed: int, noise: int) -> Any:
        torch.manual_seed(0)
        strategy = RandomOneShot(search=SubnetSearch(evaluations=4, seed=seed), sampling="fair")
        strategy.run(kit.Net(), kit.evaluator())
        torch.manual_seed(noise)
        return strategy.ranking()

    assert ranking(1, 0) == ranking(1, 1)
    assert ranking(1, 0) != ranking(2, 0)


def test_the_exported_model_scores_what_the_search_found(kit):
    strategy = RandomOneShot(search=SubnetSearch(evaluations=4, max_recalibration_batches=2))
    strategy.run(kit.Net(), kit.evaluator(max_epochs=3))
    ranking = strategy.ranking()
    assert len(ranking) == 4
    val = strategy.evaluator.val_dataloaders
    for member, model in zip(ranking, strategy.list_models(4), strict=True):
        assert evaluate_accuracy(model, val) == member.score
    assert strategy.best_sample() == ranking[0].sample
    assert strategy.ranking() is ranking


def test_double_precision(kit):
    """The trainer converts batches; so does whatever runs the super-net afterwards."""
    strategy = RandomOneShot(search=SubnetSearch(evaluations=2))
    strategy.run(kit.Net(), kit.evaluator(precision="64-true"))
    (member, model), batch = (
        next(zip(strategy.ranking(), strategy.list_models(), strict=False)),
        torch.randn(4, 1, 5, 5),
    )
    assert evaluate_accuracy(model, strategy.evaluator.val_dataloaders) == member.score
    assert model(batch.double()).dtype == torch.float64


def test_an_infeasible_filter_is_refused_before_the_space_is_changed(kit):
    space = kit.Net()
    with pytest.raises(BudgetError, match=r"rejected \d+ random samples in a row"):
        RandomOneShot(lambda sample: False).mutate_model(space)
    with pytest.raises(ValueError, match="filter: its cost depends on the label 'layer_7'"):
        RandomOneShot(RangeProfilerFilter(kit.profiler(("layer_7",)), max=3)).mutate_model(space)
    RandomOneShot().mutate_model(space)
