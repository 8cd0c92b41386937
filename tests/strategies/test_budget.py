"""What is trained and returned is within the budget, for every strategy; feasible sets by brute force."""

from __future__ import annotations

import itertools
import math
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

import hwnas.nn as nn
from hwnas.cost import CostModel, Factor
from hwnas.errors import BudgetError
from hwnas.evaluators import FunctionalEvaluator, LightningModule
from hwnas.profilers import FlopsProfiler, LatencyStore, Measurement, NumParamsProfiler, OnnxRuntimeLatencyProfiler
from hwnas.profilers.filters import RangeProfilerFilter
from hwnas.profilers.profiler import Profiler
from hwnas.space import ExpressionConstraint
from hwnas.strategies import DARTS, ENAS, Budget, GumbelDARTS, Proxyless, RandomOneShot, RegularizedEvolution
from hwnas.strategies.budget import BUILT, as_budget

DIFFERENTIABLE = [DARTS, GumbelDARTS, Proxyless]
ONE_SHOT = [*DIFFERENTIABLE, RandomOneShot, ENAS]


def second_cost(kit) -> Profiler:
    """conv3, conv1 and skip cost 1, 2 and 3 in the second block, where the other cost says 9, 2 and 0."""
    domain = {f"layer_{i}": list(kit.costs) for i in (1, 2)}
    return Profiler(CostModel(domain, [Factor(("layer_2",), np.array([1.0, 2.0, 3.0]))], unit="bytes"))


def within(kit, macs: float = math.inf, other: float = math.inf) -> list[dict[str, str]]:
    """All members within limits, by brute force."""
    rank = {"conv3": 1, "conv1": 2, "skip": 3}
    return [
        {"layer_1": a, "layer_2": b}
        for a, b in itertools.product(kit.costs, repeat=2)
        if 1 + kit.costs[a] + kit.costs[b] <= macs and rank[b] <= other
    ]


def set_alphas(strategy: DARTS, alphas: Tensor) -> None:
    with torch.no_grad():
        for parameter, values in zip(strategy.relaxation.parameters(), alphas, strict=True):
            parameter.copy_(values)


def of_probability(alphas: Tensor, sample: dict[str, str]) -> float:
    options = ["conv3", "conv1", "skip"]
    return sum(float(alphas[i, options.index(sample[f"layer_{i + 1}"])]) for i in range(2))


# -- the object ----------------------------------------------------------------------------------------------


def test_names_carry_the_unit(kit):
    space, x = kit.Net(), torch.zeros(1, 1, 5, 5)
    assert FlopsProfiler(space, x).name == "macs"
    assert NumParamsProfiler(space, x).name == "parameters"
    model = CostModel({"a": [0, 1]}, [Factor(("a",), np.array([1.0, 2.0]))])
    for unit, name in (("ms", "latency_ms"), ("us", "latency_us"), ("MACs", "macs"), ("peak bytes", "peak_bytes")):
        assert Profiler(model.scaled(1.0, unit)).name == name
    assert Profiler(model, name="energy_mj").name == "energy_mj"


@pytest.mark.parametrize("limits", [{"macs": 10}, {"macs": 4.5}, {"macs": 10, "bytes": 2}, {"bytes": 1}])
def test_members_within(kit, limits):
    budget = Budget(limits, [kit.profiler(), second_cost(kit)])
    found = [sample for sample in within(kit) if budget.meets(sample)]
    assert found == within(kit, limits.get("macs", math.inf), limits.get("bytes", math.inf))
    for sample in found:
        assert budget.excess(sample) <= 0


def test_bad_budgets(kit):
    with pytest.raises(ValueError, match="it has no limit"):
        Budget({})
    for limit in (0, -1.0, math.nan, math.inf, "3"):
        with pytest.raises(ValueError, match=r"the limit of 'macs' is .*; expected a positive number"):
            Budget({"macs": limit})
    with pytest.raises(ValueError, match=r"no profiler gives 'flops'\. Those given are of macs; macs, parameters, lat"):
        Budget({"flops": 1.0}, kit.profiler())
    with pytest.raises(ValueError, match="two profilers are named 'macs'"):
        Budget({"macs": 1.0}, [kit.profiler(), kit.profiler()])
    with pytest.raises(ValueError, match="profilers are given, but no budget"):
        as_budget(None, kit.profiler())
    with pytest.raises(ValueError, match="there is no profiler of macs yet"):
        DARTS(budget={"macs": 1.0}).mutate_model(kit.Net())


@pytest.mark.parametrize("strategy_type", [*ONE_SHOT, RegularizedEvolution])
def test_a_limit_below_the_minimum_is_refused_before_anything_changes(kit, strategy_type):
    space = kit.Net()
    before = kit.snapshot(space)
    strategy = strategy_type(budget={"macs": 0.9}, profilers=kit.profiler())
    with pytest.raises(BudgetError, match=r"at most 0\.9 MACs: the minimum is 1 MACs; of it 1 ") as caught:
        strategy.run(space, kit.evaluator())
    assert caught.value.nearest == 1.0
    assert kit.equal(before, kit.snapshot(space))
    DARTS().mutate_model(space)  # it is a plain space still


def test_limits_that_only_exclude_each_other_are_refused(kit):
    # Within 10 MACs and 1 byte nothing but conv3 in the second block and skip in the first one is left.
    budget = Budget({"macs": 10, "bytes": 1}, [kit.profiler(), second_cost(kit)])
    strategy = RandomOneShot(budget=budget)
    strategy.mutate_model(kit.Net())
    with pytest.raises(BudgetError, match=r"10 MACs instead of at most 9\.5 MACs, or 2 bytes instead of at") as error:
        DARTS(budget={"macs": 9.5, "bytes": 1}, profilers=[kit.profiler(), second_cost(kit)]).mutate_model(kit.Net())
    assert error.value.nearest == (10, 2)


# -- what is built ---------------------------------------------------------------------------------------------


def test_counted_costs_are_built_from_the_space_and_one_sample(kit):
    space, strategy = kit.Net(), DARTS(budget={"macs": 2_600, "parameters": 200})
    one = torch.zeros(1, 1, 5, 5)
    macs, parameters = FlopsProfiler(kit.Net(), one), NumParamsProfiler(kit.Net(), one)
    module = kit.Module()
    strategy.run(space, kit.evaluator(module))
    expected = [s for s in kit.Net().grid() if macs.profile(s) <= 2_600 and parameters.profile(s) <= 200]
    assert 0 < len(expected) < 9
    found = list(strategy.ranked_samples())
    assert {str(sample) for sample in found} == {str(sample) for sample in expected}
    # Looking at the sample has moved no loader on.
    plain = kit.Module()
    DARTS().run(kit.Net(), kit.evaluator(plain))
    assert module.seen["weights"] == plain.seen["weights"]


def test_latency_is_measured_on_the_plain_space_when_no_profiler_is_given(kit, monkeypatch):
    calls: list[tuple[tuple[int, ...], bool]] = []

    def build(space: Any, example: Tensor) -> Profiler:
        from hwnas.supernet import is_supernet

        calls.append((tuple(example.shape), is_supernet(space)))
        return Profiler(kit.profiler().cost_model.scaled(1.0, "ms"))

    assert BUILT["latency_ms"] is OnnxRuntimeLatencyProfiler
    monkeypatch.setattr("hwnas.strategies.budget.BUILT", {**BUILT, "latency_ms": build})
    strategy = RandomOneShot(budget={"latency_ms": 10})
    strategy.run(kit.Net(), kit.evaluator())
    assert calls == [((1, 1, 5, 5), False)]
    assert strategy.best_sample() in within(kit, 10)
    trained = strategy.supernet
    with pytest.raises(ValueError, match=r"the space is a super-net, whose latency_ms cannot be counted"):
        RegularizedEvolution(budget={"latency_ms": 10}).run(trained, FunctionalEvaluator(lambda model: 0.0))


def test_data_of_another_form(kit):
    strategy = RegularizedEvolution(budget={"macs": 10})
    with pytest.raises(ValueError, match=r"no train_dataloaders.*Build the profiler of macs"):
        strategy.run(kit.Net(), FunctionalEvaluator(lambda model: 0.0))
    evaluator = kit.evaluator(train_dataloaders=DataLoader([{"x": torch.zeros(1, 5, 5)}]))
    with pytest.raises(ValueError, match="a training batch is a dict that does not begin with a tensor"):
        DARTS(budget={"macs": 10}).run(kit.Net(), evaluator)


# -- what is trained and returned ------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"macs": 10}, {"macs": 12, "bytes": 2}, {"macs": 1}])
@pytest.mark.parametrize("strategy_type", ONE_SHOT)
def test_one_shot_strategies_stay_within(kit, strategy_type, limits):
    budget = Budget(limits, [kit.profiler(), second_cost(kit)])
    feasible = within(kit, limits.get("macs", math.inf), limits.get("bytes", math.inf))
    samples = []

    class Module(kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            samples.append(dict(strategy.relaxation.sample))
            return super().training_step(batch, batch_idx)

    sampled = strategy_type in (RandomOneShot, ENAS)
    strategy = strategy_type(budget=budget)
    strategy.run(kit.Net(), kit.evaluator(Module() if sampled else kit.Module(), max_epochs=2))
    assert all(sample in feasible for sample in samples)
    assert len(samples) == (12 if sampled else 0)
    ranked = list(strategy.ranked_samples())
    assert 0 < len(ranked) <= len(feasible)
    assert all(sample in feasible for sample in ranked)
    assert strategy.best_sample() == ranked[0]
    assert len(list(strategy.list_models(20))) == len(ranked)


def test_evolution_stays_within(kit):
    budget = Budget({"macs": 12, "bytes": 2}, [kit.profiler(), second_cost(kit)])
    feasible = within(kit, 12, 2)
    strategy = RegularizedEvolution(budget=budget, population=2, sample_size=2)
    strategy.run(kit.Net(), FunctionalEvaluator(lambda model: sum(p.numel() for p in model.parameters())))
    tried = [trial.sample for trial in strategy.trials()]
    assert sorted(map(str, tried)) == sorted(map(str, feasible))
    assert set(strategy.best_sample().values()) == {"conv3", "conv1"}  # most parameters
    assert strategy.trials()[0].cost == kit.profiler().profile(tried[0])


def test_budget_and_filter_hold_together(kit):
    bytes_ = RangeProfilerFilter(second_cost(kit), min=2)
    strategy = RandomOneShot(bytes_, budget={"macs": 10}, profilers=kit.profiler())
    strategy.run(kit.Net(), kit.evaluator())
    expected = [sample for sample in within(kit, 10) if sample["layer_2"] != "conv3"]
    assert sorted(map(str, strategy.ranked_samples())) == sorted(map(str, expected))


@pytest.mark.parametrize("limits", [{"macs": 10}, {"macs": 3.5}, {"macs": 12, "bytes": 2}])
@pytest.mark.parametrize("listed", [10_000, 1])
def test_the_most_probable_members_within(kit, monkeypatch, limits, listed):
    monkeypatch.setattr("hwnas.strategies.most_probable.MAX_COMBINATIONS", listed)
    strategy = DARTS(budget=limits, profilers=[kit.profiler(), second_cost(kit)])
    strategy.mutate_model(kit.Net())
    feasible = within(kit, limits.get("macs", math.inf), limits.get("bytes", math.inf))
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        alphas = 2 * torch.randn(2, 3, generator=generator)
        set_alphas(strategy, alphas)
        expected = sorted(feasible, key=lambda sample: -of_probability(alphas, sample))
        found = list(strategy.ranked_samples())
        assert found == (expected if listed > 1 or found != expected[:1] else expected[:1])


def test_the_most_probable_member_where_the_probable_ones_are_far_too_large(monkeypatch):
    """Twelve labels, of which the distribution wants the dear value and a quarter can be afforded."""
    monkeypatch.setattr("hwnas.strategies.most_probable.MAX_COMBINATIONS", 50)

    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.LayerChoice([nn.Identity(), nn.ReLU()], label=f"layer_{i:02}") for i in range(12)
            )
            first, last = self.layers[0].choice, self.layers[11].choice
            self.add_mutable(ExpressionConstraint((first == 0) | (last == 0)))

    space = Net()
    rng = np.random.default_rng(0)
    costs, gains = rng.uniform(1, 2, 12), rng.uniform(0.5, 4, 12)
    labels = list(space.simplify())
    labels = [label for label in labels if str(label).startswith("layer_")]
    model = CostModel(
        {k: [0, 1] for k in labels}, [Factor((k,), np.array([0, c])) for k, c in zip(labels, costs, strict=True)]
    )
    strategy = DARTS(budget={"units": costs.sum() / 4}, profilers=Profiler(model, name="units"))
    strategy.mutate_model(space)
    set_alphas(strategy, torch.tensor(np.stack([0 * gains, gains], 1)))
    best = max(
        (chosen for chosen in itertools.product((0, 1), repeat=12) if chosen[0] * chosen[11] == 0),
        key=lambda chosen: (np.dot(chosen, costs) <= costs.sum() / 4, np.dot(chosen, gains)),
    )
    found = [tuple(sample.values()) for sample in itertools.islice(strategy.ranked_samples(), 20)]
    assert found[0] == best
    assert len(set(found)) == 20
    values = [float(np.dot(chosen, gains)) for chosen in found]
    assert values == sorted(values, reverse=True)
    assert all(np.dot(chosen, costs) <= costs.sum() / 4 for chosen in found)


# -- dual ascent -----------------------------------------------------------------------------------------------


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


class Greedy(nn.ModelSpace):
    """Its output is what its layers cost, which the loss wants to be large."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(1, 1)
        self.layers = nn.ModuleList(
            nn.LayerChoice({"conv3": Constant(9), "conv1": Constant(2), "skip": Constant(0)}, label=f"layer_{i}")
            for i in (1, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((1, 2, 3)) * 0
        for layer in self.layers:
            x = layer(x)
        return x


class Wants(LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return -self.model(batch[0]).mean() / 10 + 0 * sum(p.sum() for p in self.model.parameters())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.1)


@pytest.mark.parametrize("strategy_type", DIFFERENTIABLE)
def test_the_charged_cost_comes_to_the_limit_where_the_loss_wants_all(kit, strategy_type):
    records = kit.Records("arch/loss")
    strategy = strategy_type(
        0.1, budget={"macs": 8.0}, profilers=kit.profiler(), arc_weight_decay=0.0, log_prob_every_n_step=1
    )
    evaluator = kit.evaluator(Wants(), logger=records, max_epochs=50, limit_val_batches=0)
    strategy.run(Greedy(), evaluator)
    assert len(records.rows) == 300
    charged = [row["budget/macs/charged"] for row in records.rows]
    multipliers = [row["budget/macs/multiplier"] for row in records.rows]
    assert multipliers[0] == 0
    assert max(charged[:10]) > 8  # it starts above the limit
    # Where a sample is charged instead of the expectation, means of 60 steps scatter by a few percent.
    assert np.mean(charged[-60:]) == pytest.approx(8.0, rel=0.05 if strategy_type is DARTS else 0.1)
    for a, b, cost in zip(multipliers, multipliers[1:], charged, strict=False):
        assert b == pytest.approx(max(0.0, a + 0.5 * (1 + a) * (cost / 8 - 1)), abs=1e-6)
    assert strategy.best_sample() in within(kit, 8)


def test_the_unit_makes_no_difference(kit):
    found = []
    for scale, unit in ((1.0, "ms"), (1000.0, "us")):
        torch.manual_seed(0)
        cost = Profiler(kit.profiler().cost_model.scaled(scale, unit))
        strategy = DARTS(0.1, budget={f"latency_{unit}": 8 * scale}, profilers=cost)
        space = kit.Net()
        strategy.run(space, kit.evaluator())
        found.append((list(strategy.ranked_samples()), kit.snapshot(strategy.relaxation), kit.snapshot(space)))
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_warm_up_leaves_the_multiplier_alone_and_a_resumed_run_equals_the_whole_run(kit, tmp_path):
    class Watched(DARTS):
        def callback(self) -> L.Callback:
            self.made = super().callback()
            return self.made

    def run(ckpt_path: Any = None) -> Watched:
        torch.manual_seed(0)
        strategy = Watched(0.1, budget={"macs": 2.0}, profilers=kit.profiler(), warmup_epochs=1)
        seen = []
        callbacks = [
            ModelCheckpoint(tmp_path, save_top_k=-1),
            kit.Probe(end=lambda: seen.append(strategy.made.dual.multipliers[0])),
        ]
        strategy.run(kit.Net(), kit.evaluator(max_epochs=3), callbacks=callbacks, ckpt_path=ckpt_path)
        strategy.seen = seen
        return strategy

    whole = run()
    assert whole.seen[:6] == [0.0] * 6
    assert whole.seen[6] > 0
    (path,) = tmp_path.glob("epoch=1*.ckpt")
    resumed = run(path)
    assert resumed.seen == whole.seen[12:]
    assert kit.equal(kit.snapshot(resumed.relaxation), kit.snapshot(whole.relaxation))


def test_bad_dual_learning_rate():
    with pytest.raises(ValueError, match="dual_learning_rate is 0"):
        DARTS(dual_learning_rate=0)


# -- measured again --------------------------------------------------------------------------------------------


class Measured(Profiler):
    """Predicts `kit.costs` in milliseconds; members take `factor` times as long."""

    measures_here = True

    def __init__(self, kit: Any, factors: dict[tuple[str, str], float], default: float = 1.0) -> None:
        super().__init__(kit.profiler().cost_model.scaled(1.0, "ms"))
        self.factors, self.default = factors, default
        self.groups: list[list[tuple[str, ...]]] = []

    def measure(self, samples: Any) -> list[Measurement]:
        self.groups.append([tuple(sample.values()) for sample in samples])
        latencies = [self.profile(s) * self.factors.get(tuple(s.values()), self.default) for s in samples]
        return [Measurement(latency, 0.01, 20, False) for latency in latencies]


SAMPLES = [  # costs 5, 10, 3, 3, 1
    {"layer_1": a, "layer_2": b}
    for a, b in [("conv1", "conv1"), ("conv3", "skip"), ("conv1", "skip"), ("skip", "conv1"), ("skip", "skip")]
]


def test_members_that_take_too_long_are_passed_over(kit):
    profiler = Measured(kit, {("conv1", "conv1"): 2.1})
    budget = Budget({"latency_ms": 10.3}, profiler)
    told = []
    found = budget.measured(iter(SAMPLES), group=2, on_group=lambda *counts: told.append(counts))
    assert profiler.groups == []  # nothing before it is asked for
    assert next(found) == SAMPLES[1]
    assert len(profiler.groups) == 1
    assert list(found) == SAMPLES[2:]
    assert told == [(1, 2), (3, 4), (4, 5)]


def test_some_of_the_limit_has_to_be_left(kit):
    profiler = Measured(kit, {})
    assert list(Budget({"latency_ms": 10.1}, profiler).measured(SAMPLES)) == [SAMPLES[0], *SAMPLES[2:]]
    # But the limit is the limit: where none leaves so much, one that meets it is what there is.
    assert list(Budget({"latency_ms": 10.1}, profiler).measured(SAMPLES[1:2])) == [SAMPLES[1]]
    assert list(Budget({"latency_ms": 10.1}, profiler).measured(SAMPLES, to_spare=0.0)) == SAMPLES


def test_none_is_within(kit):
    budget = Budget({"latency_ms": 10}, Measured(kit, {}, default=12.0))
    with pytest.raises(
        BudgetError, match=r"within Budget\(latency_ms <= 10\), but of 5 .* nearest takes 12\.000 ms \(latency_ms\)"
    ) as e:
        list(budget.measured(SAMPLES, group=5))
    assert e.value.nearest == pytest.approx(12.0)


def test_what_cannot_be_fast_enough_is_not_measured(kit):
    # All take at least 2.5 times as long as predicted, so the second would take 25. That the third took even longer
    # says nothing about the others.
    profiler = Measured(kit, {("conv1", "skip"): 5.0}, default=2.5)
    budget = Budget({"latency_ms": 12}, profiler)
    assert list(budget.measured(SAMPLES, group=1)) == SAMPLES[3:]
    assert profiler.groups == [[("conv1", "conv1")], [("conv1", "skip")], [("skip", "conv1")], [("skip", "skip")]]


def test_hopeless_rankings_are_given_up(kit):
    # After the first one all that follow seem fast enough.
    profiler = Measured(kit, {("skip", "skip"): 100.0})
    endless = itertools.chain([SAMPLES[0]], itertools.repeat(SAMPLES[4]))
    with pytest.raises(BudgetError, match="but of 100 that were measured"):
        list(Budget({"latency_ms": 4}, profiler).measured(endless))


def test_counted_costs_are_not_measured(kit):
    assert list(Budget({"macs": 10}, kit.profiler()).measured(SAMPLES)) == SAMPLES


@pytest.mark.parametrize("strategy_type", [DARTS, RandomOneShot, RegularizedEvolution])
def test_what_is_exported_is_measured_first(kit, strategy_type):
    slow = [("conv3", "skip"), ("skip", "conv3")]
    profiler = Measured(kit, dict.fromkeys(slow, 1.5))
    options = {"population": 2} if strategy_type is RegularizedEvolution else {}
    strategy = strategy_type(budget={"latency_ms": 11}, profilers=profiler, **options)
    strategy.run(kit.Net(), kit.evaluator())
    assert profiler.groups == []
    ranked = [tuple(sample.values()) for sample in strategy.ranked_samples()]
    assert set(slow) < set(ranked)
    assert tuple(strategy.best_sample().values()) == next(sample for sample in ranked if sample not in slow)
    models = list(strategy.list_models(20))
    assert len(models) == len(ranked) - 2


def test_with_onnx_runtime(kit, tmp_path):
    """The limit is the median of the measured members; half of them may be exported, and hold when measured again."""
    space = kit.Net()
    with LatencyStore(tmp_path / "store.sqlite") as store:
        profiler = OnnxRuntimeLatencyProfiler(
            space, torch.zeros(64, 1, 5, 5), store=store, budget_s=2.0, relative_error=0.2, calibration=6
        )
        everything = within(kit)
        found = [measured.latency_ms for measured in profiler.measure(everything)]
        limit = float(np.median(found)) / 0.97
        strategy = DARTS(
            budget={"latency_ms": max(limit, 1.05 * profiler.cost_model.minimum().cost)}, profilers=profiler
        )
        strategy.run(space, kit.evaluator())
        exported = strategy.best_sample()
        (measured,) = profiler.measure([exported])
        assert measured.latency_ms <= strategy.budget.limits["latency_ms"]
        # Among the faster ones, whatever the machine does meanwhile.
        assert sorted(found).index(found[everything.index(exported)]) <= 6
