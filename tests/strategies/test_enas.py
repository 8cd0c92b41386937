"""What the controller is trained on, that the super-net does not notice, and that the best member comes first."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F

import hwnas.nn as nn
from hwnas.cost import CostModel, Factor
from hwnas.errors import BudgetError, TrainingError
from hwnas.evaluators import Classification, digits, evaluate_accuracy
from hwnas.experiment import NasExperiment
from hwnas.profilers.penalties import ExpectationProfilerPenalty, SampleProfilerPenalty
from hwnas.profilers.profiler import Profiler
from hwnas.space import Categorical, ExpressionConstraint
from hwnas.strategies import ENAS, ControllerLearning
from hwnas.strategies.controller import Controller
from hwnas.strategies.controller_training import ControllerTraining, preferred

FEW = {"batches_per_update": 4, "hidden": 8, "candidates": 4}
FAST = ControllerLearning(learning_rate=0.03)


def bandit(kit: Any, strategy: ENAS, value: Any) -> Any:
    """Return a module that logs `value(sample)` as the metric of the present member."""

    class Bandit(kit.Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log("default", torch.tensor(float(value(strategy.relaxation.sample))))

    return Bandit()


def probabilities(strategy: ENAS) -> dict[tuple[str, str], float]:
    points = list(strategy.supernet.grid())
    return {tuple(point.values()): math.exp(strategy.controller.log_probability(point)) for point in points}


def cost(kit: Any, sample: dict[str, Any]) -> float:
    return 1 + sum(kit.costs[sample[label]] for label in ("layer_1", "layer_2"))


def best_is(sample: dict[str, Any]) -> float:
    return 0.5 + 0.2 * (sample["layer_1"] == "skip") + 0.2 * (sample["layer_2"] == "conv1")


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_member_becomes_likely(kit, mode):
    sign = 1 if mode == "max" else -1
    strategy = ENAS(**FEW, mode=mode, updates_per_epoch=20, learning=FAST)
    strategy.run(kit.Net(), kit.evaluator(bandit(kit, strategy, lambda s: sign * best_is(s)), max_epochs=3))
    assert probabilities(strategy)["skip", "conv1"] > 0.9
    assert strategy.best_sample() == {"layer_1": "skip", "layer_2": "conv1"}
    scores = [member.score for member in strategy.ranking()]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(sign * sign * 0.9)


def test_equal_rewards_leave_the_policy_where_it_is(kit):
    strategy = ENAS(**FEW, updates_per_epoch=10)
    strategy.run(kit.Net(), kit.evaluator(bandit(kit, strategy, lambda s: 0.7), max_epochs=2))
    assert list(probabilities(strategy).values()) == pytest.approx([1 / 9] * 9, abs=1e-3)


def test_a_heavier_penalty_costs_less(kit):
    expected = []
    for scale in (0.0, -0.1, -1.0):
        penalty = {"profiler": kit.profiler(), "baseline": 5.0, "scale": scale}
        strategy = ENAS(**FEW, penalty=penalty, updates_per_epoch=30, learning=ControllerLearning(learning_rate=0.02))

        def accuracy(sample: dict[str, Any]) -> float:
            return 0.5 + 0.3 * (sample["layer_1"] == "conv3") + 0.1 * (sample["layer_2"] == "conv3")

        strategy.run(kit.Net(), kit.evaluator(bandit(kit, strategy, accuracy), max_epochs=2))
        expected.append(sum(p * (1 + kit.costs[a] + kit.costs[b]) for (a, b), p in probabilities(strategy).items()))
    assert expected[0] > 16
    assert 8 < expected[1] < 13
    assert expected[2] < 3


def test_several_penalties(kit):
    forms = [
        {"profiler": kit.profiler(("layer_1",)), "baseline": 5.0, "scale": -0.1},
        {"profiler": kit.profiler(("layer_2",)), "baseline": 2.0, "scale": -0.2},
    ]
    strategy = ENAS(penalty=forms)
    joint, cost = strategy.reward.of(0.8, {"layer_1": "conv3", "layer_2": "conv1"})
    costs = [
        kit.profiler((label,)).profile({"layer_1": "conv3", "layer_2": "conv1"}) for label in ("layer_1", "layer_2")
    ]
    assert joint == pytest.approx(0.8 - 0.1 * (costs[0] / 5 - 1) - 0.2 * (costs[1] / 2 - 1))
    assert cost == costs[0]
    with pytest.warns(UserWarning, match=r"scale of the penalty 0\.2: this rewards cost"):
        ENAS(penalty=[forms[0], {**forms[1], "scale": 0.2}])
    with pytest.raises(ValueError, match="depends on the label 'layer_9'"):
        ENAS(penalty=[forms[0], {**forms[1], "profiler": kit.profiler(("layer_9",))}]).mutate_model(kit.Net())


def test_the_sign_of_the_penalty(kit):
    profiler = kit.profiler()
    with pytest.warns(UserWarning, match="mode is 'max' and the scale of the penalty 0.5: this rewards cost"):
        ENAS(penalty={"profiler": profiler, "baseline": 5.0, "scale": 0.5})
    with pytest.warns(UserWarning, match="Give a positive scale"):
        ENAS(mode="min", penalty={"profiler": profiler, "baseline": 5.0, "scale": -0.5})
    reward = ENAS(penalty=SampleProfilerPenalty(profiler, 5.0, -0.5)).reward
    assert reward.of(0.8, {"layer_1": "conv3", "layer_2": "skip"}) == (pytest.approx(0.8 - 0.5), 10.0)
    reward = ENAS(mode="min", penalty=SampleProfilerPenalty(profiler, 5.0, 0.5)).reward
    assert reward.of(0.8, {"layer_1": "conv3", "layer_2": "skip"}) == (pytest.approx(-0.8 - 0.5), 10.0)
    assert ENAS().reward.of(0.8, {}) == (0.8, None)


# -- what is trained when, and on what -----------------------------------------------------------------------


def watched(kit: Any, strategy: ENAS, monkeypatch: Any) -> list[str]:
    """Note updates, and check that they leave the super-net and the global generators as they were."""
    done: list[str] = []
    original = ControllerTraining._update

    def update(self: ControllerTraining, trainer: Any, module: Any) -> None:
        before, flags = kit.snapshot(module), [m.training for m in module.modules()]
        state = torch.get_rng_state(), np.random.get_state()[1].copy()
        original(self, trainer, module)
        assert kit.equal(before, kit.snapshot(module))
        assert flags == [m.training for m in module.modules()]
        assert torch.equal(state[0], torch.get_rng_state())
        assert (state[1] == np.random.get_state()[1]).all()
        assert all(p.requires_grad for p in module.parameters())
        done.append(f"controller {trainer.current_epoch}")

    monkeypatch.setattr(ControllerTraining, "_update", update)
    return done


class Wide(nn.ModelSpace):
    """A number of channels, so that slices of batch normalisation are used."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([2, 4], label="width")
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 3)
        self.add_mutable(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize("space", ["layers", "widths"])
def test_training_the_controller_leaves_the_super_net_as_it_is(kit, monkeypatch, space):
    strategy = ENAS(**FEW, updates_per_epoch=2)
    done = watched(kit, strategy, monkeypatch)
    net = kit.Net(dropout=0.5) if space == "layers" else Wide()
    before = None

    def remember() -> None:
        nonlocal before
        before = before or kit.snapshot(strategy.controller)

    strategy.run(net, kit.evaluator(max_epochs=2), callbacks=[kit.Probe(start=remember)])
    assert done == ["controller 0"] * 2 + ["controller 1"] * 2
    assert not kit.equal(before, kit.snapshot(strategy.controller))


def test_the_trained_weights_do_not_depend_on_how_the_controller_is_scored(kit):
    """Warm-up draws the same members, so one epoch of it is one epoch without controller training."""
    ends = []
    for warmup in (0, 1):
        torch.manual_seed(0)
        space, strategy = kit.Net(dropout=0.5), ENAS(**FEW, warmup_epochs=warmup)
        evaluator = kit.evaluator(max_epochs=1)
        if warmup:
            with pytest.warns(UserWarning, match="the controller is never trained"):
                strategy.run(space, evaluator)
        else:
            strategy.run(space, evaluator)
        ends.append(kit.snapshot(space))
    assert kit.equal(*ends)


def test_scoring_uses_the_statistics_of_the_batch_and_no_dropout(kit):
    """Against the frozen member in training mode without dropout."""
    strategy, seen = ENAS(**FEW), []

    class Module(kit.Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if self.model.first["conv3"][1].training:
                with torch.enable_grad():
                    scores = self.model(batch[0])
                assert scores.requires_grad  # only because of the line above
                assert not self.model(batch[0]).requires_grad
                member = strategy.supernet.freeze(strategy.relaxation.sample).train()
                for module in member.modules():
                    module.training = not isinstance(module, torch.nn.Dropout)
                torch.testing.assert_close(scores, member(batch[0]))
                seen.append(strategy.relaxation.sample)

    strategy.run(kit.Net(dropout=0.5), kit.evaluator(Module(), max_epochs=2))
    assert len(seen) == 2 * 4


def test_the_controller_sees_validation_data_only_each_batch_once_in_a_pass(kit):
    module, strategy = kit.Module(), ENAS(**{**FEW, "batches_per_update": 2})
    strategy.run(kit.Net(), kit.evaluator(module, max_epochs=1, limit_val_batches=0))
    assert sorted(module.seen["weights"]) == list(kit.train)
    assert sorted(module.seen["validation"]) == list(kit.val)
    assert module.seen["architecture"] == []


def test_nothing_that_scoring_logs_reaches_the_trainer(kit):
    strategy, fits = ENAS(**FEW), []

    class Module(kit.Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if self.model.first["conv3"][1].training:
                self.log("leak", 1.0)

        def on_fit_end(self) -> None:
            fits.append(dict(self.trainer.callback_metrics))

    strategy.run(kit.Net(), kit.evaluator(Module()))
    assert "leak" not in fits[0]
    assert "val_acc" in fits[0]


def test_warm_up_leaves_the_controller_as_it_is(kit):
    strategy, seen = ENAS(**FEW, warmup_epochs=2), []
    probe = kit.Probe(end=lambda: seen.append(kit.snapshot(strategy.controller)))
    strategy.run(kit.Net(), kit.evaluator(max_epochs=4), callbacks=[probe])
    assert all(kit.equal(seen[0], state) for state in seen[:18])
    assert not kit.equal(seen[0], seen[18])


def members(kit: Any, strategy: ENAS, space: Any, **kwargs: Any) -> list[dict[str, Any]]:
    samples: list[dict[str, Any]] = []
    probe = kit.Probe(end=lambda: samples.append(dict(strategy.relaxation.sample)))
    strategy.run(space, kit.evaluator(**kwargs), callbacks=[probe])
    return samples


def test_priors_constraints_and_filter_are_honoured(kit):
    class Space(kit.Net):
        def __init__(self) -> None:
            super().__init__()
            names = self.first.names
            self.first = nn.LayerChoice(
                dict(zip(names, self.first, strict=True)), weights=[0.8, 0.2, 0.0], label="layer_1"
            )
            self.add_mutable(ExpressionConstraint(self.first.choice != self.second.choice))

    strategy = ENAS(**FEW, warmup_epochs=19, filter={"profiler": kit.profiler(), "max": 11})
    scored: list[dict[str, Any]] = []
    module = bandit(kit, strategy, lambda sample: scored.append(dict(sample)) or 0.5)
    samples = members(kit, strategy, Space(), module=module, max_epochs=20)
    counts = Counter(tuple(sample.values()) for sample in samples)
    # conv1 before conv3 costs 12, so that of conv1 only skip is left.
    assert set(counts) == {("conv3", "skip"), ("conv1", "skip")}
    assert abs(counts["conv3", "skip"] - 96) < 3.3 * (120 * 0.8 * 0.2) ** 0.5
    assert {tuple(sample.values()) for sample in scored} <= set(counts)
    assert {tuple(member.sample.values()) for member in strategy.ranking()} == set(counts)


def test_a_preferred_member_that_the_filter_refuses_is_replaced(kit):
    strategy = ENAS(**FEW, filter=lambda sample: sample["layer_1"] == "skip")
    samples = members(kit, strategy, kit.Net())
    assert all(sample["layer_1"] == "skip" for sample in samples)
    assert all(sample["layer_1"] == "skip" for sample in strategy.ranked_samples())


def test_in_place_of_a_preferred_member_comes_the_most_probable_one():
    controller = Controller(Categorical(["a", "b", "c", "d"], weights=[0.5, 0.3, 0.15, 0.05], label="x"))
    assert preferred(controller, lambda sample: True, 0) == {"x": "a"}
    assert preferred(controller, lambda sample: sample["x"] != "a", 0) == {"x": "b"}


def test_random_metrics_differ_from_update_to_update(kit):
    drawn: list[float] = []

    class Module(kit.Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            drawn.append(float(torch.rand(())))
            self.log("default", drawn[-1])

    strategy = ENAS(**FEW, updates_per_epoch=2)
    strategy.run(kit.Net(), kit.evaluator(Module(), limit_val_batches=0))
    assert len(drawn) == len(set(drawn)) == 2 * 4


def test_a_filter_that_accepts_nothing_is_refused_before_the_space_changes(kit):
    space = kit.Net()
    with pytest.raises(BudgetError):
        ENAS(filter=lambda sample: False).run(space, kit.evaluator())
    assert type(space.first) is nn.LayerChoice


@pytest.mark.parametrize("every", ["every_n_epochs", "every_n_train_steps"])
def test_a_resumed_run_equals_the_whole_run(kit, tmp_path, every):
    """From the end of an epoch, and from its last batch, before the controller is trained."""
    n = 1 if every == "every_n_epochs" else 6

    def run(ckpt_path: Any = None) -> tuple[ENAS, list]:
        torch.manual_seed(0)
        strategy, samples = ENAS(**{**FEW, "batches_per_update": 3}, updates_per_epoch=2), []
        strategy.run(
            kit.Net(dropout=0.5),
            kit.evaluator(max_epochs=3),
            callbacks=[
                ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **{every: n}),
                kit.Probe(end=lambda: samples.append(strategy.relaxation.sample)),
            ],
            ckpt_path=ckpt_path,
        )
        return strategy, samples

    whole, expected = run()
    resumed, samples = run(tmp_path / "step=6.ckpt")
    assert samples == expected[6:]
    assert kit.equal(kit.snapshot(resumed.supernet), kit.snapshot(whole.supernet))
    assert kit.equal(kit.snapshot(resumed.controller), kit.snapshot(whole.controller))
    assert resumed.ranking() == whole.ranking()


def test_seeds(kit):
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        runs.append(members(kit, ENAS(**FEW, seed=seed), kit.Net(), max_epochs=2))
    assert runs[0] == runs[1] != runs[2]


# -- the result ----------------------------------------------------------------------------------------------


def test_a_model_scores_what_it_scored_in_the_ranking(kit):
    strategy, evaluator = ENAS(**FEW), kit.evaluator(max_epochs=3)
    space = kit.Net()
    strategy.run(space, evaluator)
    before = kit.snapshot(space)
    best = strategy.ranking()[0]
    assert len(strategy.ranking()) == 4
    assert strategy.ranking()[0] is best
    (model,) = strategy.list_models()
    assert evaluate_accuracy(model, evaluator.val_dataloaders) == best.score
    assert kit.equal(before, kit.snapshot(space))


def test_the_ranking_takes_the_penalty_into_account(kit):
    penalty = {"profiler": kit.profiler(), "baseline": 5.0, "scale": -10.0}
    strategy = ENAS(**{**FEW, "candidates": 9}, penalty=penalty)
    strategy.run(kit.Net(), kit.evaluator())
    costs = [member.cost for member in strategy.ranking()]
    assert len(costs) == 9
    assert costs == sorted(costs)
    assert costs[0] == 1


def test_a_metric_that_is_a_mean_counts_batches_by_their_size(kit):
    strategy = ENAS(**FEW)

    class Module(kit.Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("numbers", batch[0][:, 0, 0, 0].mean())

    numbers = torch.utils.data.DataLoader(kit.images(range(24, 30)), 4)
    strategy.run(kit.Net(), kit.evaluator(Module(), val_dataloaders=numbers, limit_val_batches=0))
    assert strategy.ranking()[0].score == pytest.approx(26.5)


def test_records(kit):
    records = kit.Records("controller/")
    strategy = ENAS(
        **{**FEW, "batches_per_update": 50},
        updates_per_epoch=2,
        penalty={"profiler": kit.profiler(), "baseline": 5.0, "scale": -1e-9},
        log_prob_every_n_step=3,
        learning={"learning_rate": 1e-9},
    )
    module = bandit(kit, strategy, best_is)
    strategy.run(kit.Net(), kit.evaluator(module, logger=records, max_epochs=2))
    assert records.steps == [6, 12]
    row = records.rows[0]
    assert set(row) == {
        f"controller/{name}" for name in ("reward", "baseline", "entropy", "preferred_probability", "expected_cost")
    }
    assert row["controller/reward"] == pytest.approx(0.5 + 0.4 / 3, abs=0.08)
    assert row["controller/baseline"] == pytest.approx(row["controller/reward"])
    assert row["controller/entropy"] == pytest.approx(2 * math.log(3))
    assert row["controller/preferred_probability"] == pytest.approx(1 / 9)
    assert row["controller/expected_cost"] == pytest.approx(1 + 2 * 11 / 3, abs=3)


class DigitsNet(nn.ModelSpace):
    """16 or 32 hidden units, two layers to choose from, either of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([16, 32], label="width")
        self.first = nn.Linear(64, width)
        self.second = nn.LayerChoice({"linear": nn.Linear(width, 32), "none": nn.Linear(width, 32, bias=False)})
        self.skip = nn.Linear(64, 32)
        self.join = nn.InputChoice(2, None)
        self.head = nn.Linear(32, 10)
        self.add_mutable(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return self.head(F.relu(self.join([self.second(F.relu(self.first(x))), self.skip(x)])))


def test_digits_in_an_experiment():
    data = digits(seed=0)
    evaluator = Classification(
        train_dataloaders=data.train_loader(),
        val_dataloaders=data.val_loader(),
        max_epochs=8,
        learning_rate=5e-3,
        accelerator="cpu",
    )
    strategy = ENAS(batches_per_update=4, hidden=16, candidates=5)
    experiment = NasExperiment(DigitsNet(), evaluator, strategy)
    experiment.run()
    (model,) = experiment.export_top_models()
    assert not any(type(module).__module__.startswith("hwnas") for module in model.modules())
    assert evaluate_accuracy(model, data.val_loader()) == pytest.approx(strategy.ranking()[0].score)
    assert strategy.ranking()[0].score > 0.8


# -- what is refused -----------------------------------------------------------------------------------------


def logging(kit: Any, **metrics: Any) -> Any:
    class Module(kit.Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log_dict(metrics)

    return Module()


def fit(kit: Any, strategy: ENAS, module: Any) -> ENAS:
    strategy.run(kit.Net(), kit.evaluator(module, limit_val_batches=0))
    return strategy


def test_which_metric_is_the_reward(kit):
    metrics = {"default": 0.25, "f1": 0.5}
    assert fit(kit, ENAS(**FEW), logging(kit, **metrics)).ranking()[0].score == 0.25
    assert fit(kit, ENAS(**FEW, reward_metric_name="f1"), logging(kit, **metrics)).ranking()[0].score == 0.5
    assert fit(kit, ENAS(**FEW), logging(kit, f1=0.5)).ranking()[0].score == 0.5


@pytest.mark.parametrize(
    ("metrics", "name", "message"),
    [
        ({"f1": 0.5, "loss": 1.0}, None, r"no metric named 'default'; it logs \['f1', 'loss'\]"),
        ({"default": 0.5}, "f1", r"no metric named 'f1'; it logs \['default'\]"),
        ({}, None, "it logs nothing"),
        ({"default": math.nan}, None, "the metric 'default' of a validation batch is nan"),
        ({"default": torch.ones(3)}, None, "logs 'default' as a Tensor; a reward is a number"),
    ],
)
def test_a_metric_that_is_no_reward(kit, metrics, name, message):
    with pytest.raises(TrainingError, match=message):
        fit(kit, ENAS(**FEW, reward_metric_name=name), logging(kit, **metrics))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches_per_update": 0}, "batches_per_update is 0; expected at least 1"),
        ({"updates_per_epoch": 0}, "updates_per_epoch is 0"),
        ({"candidates": 0}, "candidates is 0"),
        ({"hidden": 0}, "hidden is 0"),
        ({"log_prob_every_n_step": 0}, "log_prob_every_n_step is 0"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1; expected at least 0"),
        ({"mode": "best"}, "mode is 'best'; expected 'max' or 'min'"),
        ({"learning": {"clip": 0}}, "clip is 0; expected a number above 0"),
        ({"max_recalibration_batches": -1}, "max_recalibration_batches is -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ENAS(**arguments)


def test_a_penalty_on_expectations_is_refused(kit):
    with pytest.raises(TypeError, match="needs a SampleProfilerPenalty"):
        ENAS(penalty=ExpectationProfilerPenalty(kit.profiler(), 5.0))


def test_spaces_that_do_not_fit_are_refused_unchanged(kit):
    space = kit.Net()
    other = Profiler(CostModel({"depth": [1, 2]}, [Factor(("depth",), np.array([1.0, 2.0]))], unit="MACs"))
    with pytest.raises(ValueError, match="penalty: its cost depends on the label 'depth'"):
        ENAS(penalty={"profiler": other, "baseline": 1.0, "scale": -1.0}).mutate_model(space)
    space.add_mutable(nn.ValueChoice([0, 1], label="more"))

    class Wider(kit.Net):
        def __init__(self) -> None:
            super().__init__()
            self.join = nn.InputChoice(13, None, label="join")

    wider = Wider()
    with pytest.raises(ValueError, match="'join' has 8191 values"):
        ENAS().mutate_model(wider)
    assert type(space.first) is type(wider.first) is nn.LayerChoice


def test_a_loader_without_a_length_needs_the_number_of_updates(kit):
    class Endless:
        def __init__(self, loader: Any) -> None:
            self.loader = loader

        def __iter__(self) -> Any:
            return iter(self.loader)

    evaluator = kit.evaluator()
    endless = evaluator.replace(val_dataloaders=Endless(evaluator.val_dataloaders))
    with pytest.raises(ValueError, match="the loader has no length"):
        ENAS(**FEW).run(kit.Net(), endless)
    ENAS(**FEW, updates_per_epoch=1).run(kit.Net(), endless)
