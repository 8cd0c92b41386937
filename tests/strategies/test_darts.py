"""Who is trained on what and when; gradients against finite differences; resumed runs against whole ones."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import CombinedLoader
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

import hwnas.nn as nn
from hwnas.errors import SampleError, TrainingError
from hwnas.evaluators import LightningModule, seeded_loader
from hwnas.profilers import Profiler
from hwnas.profilers.flops import FlopsProfiler
from hwnas.profilers.penalties import ExpectationProfilerPenalty, SampleProfilerPenalty
from hwnas.space import ExpressionConstraint
from hwnas.strategies import DARTS


class Watched(DARTS):
    """Keeps its callback."""

    def callback(self) -> L.Callback:
        self.made = super().callback()
        return self.made


def test_each_step_trains_its_own_parameters(kit):
    space, strategy = kit.Net(), DARTS(0.1)
    weight_gradients = []

    class Module(kit.Module):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            weight_gradients.append([p.grad is not None for p in space.parameters()])

    log: list[tuple[dict, dict, list]] = []

    def note() -> None:
        gradients = [None if p.grad is None else p.grad.clone() for p in space.parameters()]
        gradients_of_alpha = [p.grad for p in strategy.relaxation.parameters()]
        assert gradients_of_alpha == [None, None]
        log.append((kit.snapshot(space), kit.snapshot(strategy.relaxation), gradients))

    # Callbacks of the evaluator come before that of the strategy, those of the run behind it.
    evaluator = kit.evaluator(Module(), callbacks=[kit.Probe(start=note)])
    strategy.run(space, evaluator, callbacks=[kit.Probe(start=note, end=note)])
    assert len(log) == 3 * 6
    for before, between, after in zip(log[::3], log[1::3], log[2::3], strict=True):
        assert kit.equal(before[0], between[0])  # weights and buffers in the architecture step
        assert not kit.equal(before[1], between[1])
        assert kit.equal(between[1], after[1])  # alphas in the weight step
        assert not kit.equal(between[0], after[0])
        for old, new in zip(before[2], between[2], strict=True):
            assert (old is None and new is None) or torch.equal(old, new)
    assert all(p.requires_grad for p in space.parameters())
    assert weight_gradients == [[True] * len(weight_gradients[0])] * 6


def test_architecture_sees_validation_data_only(kit):
    module = kit.Module()
    DARTS().run(kit.Net(), kit.evaluator(module, max_epochs=2))
    assert sorted(module.seen["weights"]) == sorted([*kit.train] * 2)
    architecture = module.seen["architecture"]
    assert len(architecture) == 2 * 24
    assert sorted(architecture) == sorted([*kit.val] * 3)
    passes = [architecture[i : i + 16] for i in range(0, 48, 16)]
    assert all(sorted(each) == [*kit.val] for each in passes)  # one pass after another
    assert passes[0] != passes[1]  # in another order
    assert sorted(module.seen["validation"]) == sorted([*kit.val] * 2)


def test_nothing_is_logged_by_the_architecture_step(kit):
    class Loud(kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            numbers = batch[0][:, 0, 0, 0]
            self.log("train" if numbers.max() in kit.train else "leak", numbers.max(), on_epoch=True, on_step=False)
            return super().training_step(batch, batch_idx)

    module = Loud()
    fits: list[L.Trainer] = []

    class Keep(L.Callback):
        def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            fits.append(trainer)

    DARTS().run(kit.Net(), kit.evaluator(module), callbacks=[Keep()])
    logged = fits[0].callback_metrics
    assert logged["train"] <= max(kit.train)
    assert "leak" not in logged


def test_gradient_against_finite_differences(kit):
    space = kit.Net().double()
    penalty = ExpectationProfilerPenalty(kit.profiler(), 5.0, 0.7, nonlinear="absolute", aggregate="mul")
    strategy = Watched(penalty=penalty)
    strategy.mutate_model(space)
    relaxation = strategy.relaxation.double()
    weights, alphas = kit.snapshot(space), kit.snapshot(relaxation)
    found = []

    class Recording(Watched):
        def callback(self) -> L.Callback:
            callback = super().callback()
            callback.optimizer.register_step_pre_hook(
                lambda *_: found.append([parameter.grad.clone() for parameter in callback.parameters])
            )
            return callback

    strategy.__class__ = Recording
    module = kit.Module()
    evaluator = kit.evaluator(module, precision=64, limit_train_batches=1)
    strategy.run(space, evaluator)
    assert len(found) == 1

    chosen = [number - 24 for number in module.seen["architecture"]]
    data = kit.images(kit.val)
    x, y = data.tensors[0][chosen].double(), data.tensors[1][chosen]
    space.load_state_dict(weights)
    relaxation.load_state_dict(alphas)
    space.train()

    def value() -> float:
        with torch.no_grad():
            cost = 1.0
            for alpha in relaxation.parameters():
                cost += float(torch.softmax(alpha, 0) @ torch.tensor(list(kit.costs.values())).double())
            return float(F.cross_entropy(space(x), y)) * (1 + abs(cost / 5.0 - 1)) ** 0.7

    step = 1e-6
    for alpha, gradient in zip(relaxation.parameters(), found[0], strict=True):
        for i in range(len(alpha)):
            with torch.no_grad():
                alpha[i] += step
                up = value()
                alpha[i] -= 2 * step
                down = value()
                alpha[i] += step
            assert float(gradient[i]) == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-8)


def test_one_adam_step_with_the_published_settings(kit):
    space, strategy = kit.Net(), Watched()
    strategy.mutate_model(space)
    twin = [parameter.detach().clone().requires_grad_() for parameter in strategy.relaxation.parameters()]
    adam = torch.optim.Adam(twin, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    class Recording(Watched):
        def callback(self) -> L.Callback:
            callback = super().callback()

            def follow(*_: Any) -> None:
                for mine, theirs in zip(twin, callback.parameters, strict=True):
                    mine.grad = theirs.grad.clone()
                adam.step()

            callback.optimizer.register_step_pre_hook(follow)
            return callback

    strategy.__class__ = Recording
    strategy.run(space, kit.evaluator())
    for mine, theirs in zip(twin, strategy.relaxation.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("form", [dict, ExpectationProfilerPenalty])
def test_a_large_penalty_finds_the_cheapest(kit, form):
    space = kit.Net()
    profiler = FlopsProfiler(space, torch.zeros(1, 1, 5, 5))
    penalty = form(profiler=profiler, baseline=1000.0, scale=100.0)
    strategy = DARTS(0.3, penalty=penalty)
    strategy.run(space, kit.evaluator(max_epochs=2))
    assert strategy.best_sample() == profiler.cost_model.minimum().sample == {"layer_1": "skip", "layer_2": "skip"}
    (model,) = strategy.list_models()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def expected_cost(kit, strategy: DARTS) -> float:
    costs = torch.tensor(list(kit.costs.values()))
    return 1 + sum(float(strategy.relaxation.probabilities(label) @ costs) for label in ("layer_1", "layer_2"))


def test_a_growing_penalty_lowers_the_expected_cost(kit):
    found = []
    for scale in (0.0, 0.01, 0.03, 0.1, 1.0):
        torch.manual_seed(0)
        penalty = {"profiler": kit.profiler(), "baseline": 5.0, "scale": scale}
        strategy = DARTS(0.1, arc_betas=(0.9, 0.999), penalty=penalty)
        strategy.run(kit.Net(), kit.evaluator())
        found.append(expected_cost(kit, strategy))
    assert all(dearer > cheaper + 1e-3 for dearer, cheaper in itertools.pairwise(found)), found
    torch.manual_seed(0)
    strategy = DARTS(0.1, arc_betas=(0.9, 0.999))
    strategy.run(kit.Net(), kit.evaluator())
    assert expected_cost(kit, strategy) == found[0]  # a penalty without weight is none


@pytest.mark.parametrize("aggregate", ["add", "mul"])
def test_the_unit_of_the_cost_does_not_change_the_search(kit, aggregate):
    results = []
    for factor in (1.0, 1000.0):  # milliseconds, microseconds
        torch.manual_seed(0)
        profiler = Profiler(kit.profiler().cost_model.scaled(factor, "us"))
        penalty = {"profiler": profiler, "baseline": 5.0 * factor, "scale": 0.5, "aggregate": aggregate}
        space, strategy = kit.Net(), DARTS(0.1, penalty=penalty)
        strategy.run(space, kit.evaluator())
        results.append({**kit.snapshot(space), **kit.snapshot(strategy.relaxation)})
    for name, in_ms in results[0].items():
        torch.testing.assert_close(in_ms, results[1][name], rtol=1e-5, atol=1e-6)


def test_warm_up_leaves_the_architecture_alone(kit):
    space, strategy = kit.Net(), DARTS(0.1, warmup_epochs=2)
    strategy.mutate_model(space)
    states = [kit.snapshot(strategy.relaxation)]
    module = kit.Module()
    strategy.run(
        space,
        kit.evaluator(module, max_epochs=3),
        callbacks=[kit.Probe(end=lambda: states.append(kit.snapshot(strategy.relaxation)))],
    )
    assert len(states) == 1 + 18
    assert all(kit.equal(states[0], state) for state in states[:13])
    assert not any(kit.equal(a, b) for a, b in itertools.pairwise(states[12:]))
    assert len(module.seen["architecture"]) == 24


def test_warm_up_without_end_warns(kit):
    with pytest.warns(UserWarning, match="architecture is never trained"):
        DARTS(warmup_epochs=1).run(kit.Net(), kit.evaluator())


def everything(kit, strategy: Watched, space: torch.nn.Module) -> dict[str, Any]:
    moments = strategy.made.optimizer.state_dict()["state"]
    return {
        **kit.snapshot(space),
        **{f"alpha {name}": tensor for name, tensor in kit.snapshot(strategy.relaxation).items()},
        **{f"adam {i} {name}": tensor for i, state in moments.items() for name, tensor in state.items()},
        "place": torch.tensor(list(strategy.made.batches.state_dict().values())),
    }


@pytest.mark.parametrize("shuffled_by", ["seeded_loader", "DataLoader"])
@pytest.mark.parametrize("warmup", [0, 1])
def test_a_resumed_run_equals_the_whole_run(kit, tmp_path, shuffled_by, warmup):
    def run(ckpt_path: Any = None) -> tuple[Watched, Any, Any]:
        torch.manual_seed(0)
        space = kit.Net(dropout=0.5)
        data = kit.images(kit.val)
        val = seeded_loader(data, 3, shuffle=True, seed=1)
        if shuffled_by == "DataLoader":
            val = DataLoader(data, 3, shuffle=True)
        strategy = Watched(0.05, warmup_epochs=warmup, penalty={"profiler": kit.profiler(), "baseline": 5.0})
        module = kit.Module(optimizer="adam", schedule="cosine")
        evaluator = kit.evaluator(module, val_dataloaders=val, max_epochs=3)
        strategy.run(space, evaluator, callbacks=[ModelCheckpoint(tmp_path, save_top_k=-1)], ckpt_path=ckpt_path)
        return strategy, everything(kit, strategy, space), module

    whole, expected, all_seen = run()
    (path,) = tmp_path.glob("epoch=1*.ckpt")
    torch.manual_seed(99)
    resumed, state, rest_seen = run(path)
    assert kit.equal(state, expected)
    assert len(rest_seen.seen["weights"]) == 24
    rest = rest_seen.seen["architecture"]
    assert 12 < len(rest) < 24
    assert all_seen.seen["architecture"][-len(rest) :] == rest
    assert resumed.best_sample() == whole.best_sample()
    # And no more than plain data is in the checkpoint.
    saved = torch.load(path, weights_only=True)["callbacks"]["hwnas.Watched"]
    assert saved["labels"] == ["layer_1", "layer_2"]


def test_a_run_resumed_in_its_warm_up_has_the_architecture_it_began_with(kit, tmp_path):
    def run(ckpt_path: Any = None) -> tuple[Watched, list[dict], dict[str, Any]]:
        torch.manual_seed(0)
        space, strategy = kit.Net(), Watched(0.05, warmup_epochs=2, seed=3)
        strategy.mutate_model(space)
        states = [kit.snapshot(strategy.relaxation)]
        probe = kit.Probe(end=lambda: states.append(kit.snapshot(strategy.relaxation)))
        callbacks = [ModelCheckpoint(tmp_path, save_top_k=-1), probe]
        strategy.run(space, kit.evaluator(max_epochs=3), callbacks=callbacks, ckpt_path=ckpt_path)
        return strategy, states, everything(kit, strategy, space)

    whole, states, expected = run()
    (path,) = tmp_path.glob("epoch=0*.ckpt")
    resumed, rest, state = run(path)
    assert len(rest) == 1 + 12
    assert all(kit.equal(states[0], each) for each in (*states[:13], *rest[:7]))
    assert not kit.equal(rest[6], rest[7])
    assert kit.equal(state, expected)
    assert (whole.made.steps, resumed.made.steps) == (6, 6)


def test_seeds(kit):
    def run(seed: int) -> dict[str, Any]:
        torch.manual_seed(0)
        space = kit.Net()
        strategy = Watched(0.1, seed=seed)
        strategy.run(space, kit.evaluator())
        return everything(kit, strategy, space)

    first, torch_state = run(0), torch.random.get_rng_state()
    torch.rand(3)
    assert kit.equal(first, run(0))
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert not kit.equal(first, run(1))


def test_what_the_trainer_offers_works(kit):
    class Checked(kit.Module):
        norms: list[float]
        rates: list[float]

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            pass

        def configure_gradient_clipping(self, optimizer: Any, **kwargs: Any) -> None:
            super().configure_gradient_clipping(optimizer, **kwargs)
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            self.norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))

        def on_train_epoch_start(self) -> None:
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    module = Checked(
        learning_rate=0.5,
        schedule=lambda optimizer: ReduceLROnPlateau(optimizer, mode="max", patience=0, threshold=10, factor=0.1),
    )
    module.norms, module.rates = [], []
    evaluator = kit.evaluator(module, max_epochs=3, gradient_clip_val=0.01, accumulate_grad_batches=4)
    strategy = Watched()
    strategy.run(kit.Net(), evaluator)
    assert len(module.norms) == 3 * 2  # 6 batches: a step after 4, and at the end of the epoch
    assert all(norm <= 0.01 * 1.001 for norm in module.norms)
    assert module.rates == pytest.approx([0.5, 0.5, 0.05])
    assert strategy.made.steps == 3 * 2  # one of the architecture for each of the weights
    assert module.trainer.callback_metrics["default"] >= 0


def test_accumulation_keeps_the_gradients_of_earlier_batches(kit):
    """Accumulating over the whole epoch equals the sum of the gradients at one architecture."""
    torch.manual_seed(0)
    space, strategy = kit.Net(), DARTS(0.1)
    strategy.mutate_model(space)
    twin = copy.deepcopy(space)  # deep copies share no relaxation state with the original
    module = kit.Module(learning_rate=1.0, momentum=0.0)
    batches = []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            batches.append(batch)

    strategy.run(space, kit.evaluator(module, accumulate_grad_batches=6), callbacks=[Keep()])
    from hwnas.supernet import supernet_modules

    for part in supernet_modules(twin):
        part.attach(strategy.relaxation)
    loss = sum(F.cross_entropy(twin(x), y) for x, y in batches) / 6
    loss.backward()
    for old, new in zip(twin.parameters(), space.parameters(), strict=True):
        torch.testing.assert_close(new, old - old.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision(kit, precision):
    space, strategy = kit.Net(), Watched(0.1)
    strategy.run(space, kit.evaluator(precision=precision, max_epochs=1))
    assert strategy.made.steps == 6
    assert all(alpha.dtype == torch.float32 for alpha in strategy.relaxation.parameters())


def test_scaled_losses_give_the_gradient_of_the_loss(kit):
    def gradients(scale: float) -> tuple[list[torch.Tensor], Watched, dict[str, torch.Tensor]]:
        found: list[torch.Tensor] = []

        class Recording(Watched):
            def callback(self) -> L.Callback:
                callback = super().callback()
                callback.optimizer.register_step_pre_hook(
                    lambda *_: found.extend(parameter.grad.clone() for parameter in callback.parameters)
                )
                return callback

        torch.manual_seed(0)
        space, strategy = kit.Net(), Recording(0.1)
        strategy.mutate_model(space)
        before = kit.snapshot(strategy.relaxation)
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
        strategy.run(space, kit.evaluator(plugins=[plugin], limit_train_batches=1))
        return found, strategy, before

    plain, _, _ = gradients(1.0)
    scaled, _, _ = gradients(1024.0)
    assert max(float(gradient.abs().max()) for gradient in plain) > 1e-3
    for a, b in zip(plain, scaled, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-4)
    # Where half precision overflows, the step is left out, as the scaler leaves out that of the weights.
    overflown, strategy, before = gradients(2.0**120)
    assert overflown == []
    assert kit.equal(before, kit.snapshot(strategy.relaxation))


def test_running_statistics_come_from_training_data_only(kit):
    space, strategy = kit.Net(), DARTS()
    strategy.mutate_model(space)
    norm = next(module for module in space.modules() if isinstance(module, torch.nn.BatchNorm2d))
    strategy.run(space, kit.evaluator())
    assert norm.num_batches_tracked == 6
    assert norm.track_running_stats


def test_running_statistics_of_chosen_widths_come_from_training_data_only(kit):
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            width = nn.ValueChoice([2, 4], label="width")
            self.stem = nn.Conv2d(1, width, 1)
            self.norm = nn.BatchNorm2d(width)
            self.head = nn.Linear(width, 3)

        def forward(self, x):
            return self.head(self.norm(self.stem(x)).mean((2, 3)))

    space, strategy = Net(), DARTS()
    strategy.mutate_model(space)
    strategy.run(space, kit.evaluator())
    assert space.norm.num_batches_tracked == 6


def test_records(kit):
    records = kit.Records("arch/loss")
    strategy = DARTS(1e-9, penalty={"profiler": kit.profiler(), "baseline": 5.0}, log_prob_every_n_step=4)
    strategy.run(kit.Net(), kit.evaluator(logger=records, max_epochs=2))
    assert records.steps == [0, 4, 8]
    row = records.rows[0]
    assert row["arch/layer_1/skip"] == pytest.approx(1 / 3, abs=1e-2)
    assert row["arch/expected_cost"] == pytest.approx(1 + 2 * 11 / 3, rel=1e-2)
    assert row["arch/entropy"] == pytest.approx(math.log(3), rel=1e-3)
    assert set(row) == {
        "arch/loss",
        "arch/entropy",
        "arch/expected_cost",
        *(f"arch/layer_{i}/{value}" for i in (1, 2) for value in kit.costs),
    }


def set_alphas(strategy: DARTS, *alphas: list[float]) -> None:
    with torch.no_grad():
        for parameter, values in zip(strategy.relaxation.parameters(), alphas, strict=True):
            parameter.copy_(torch.tensor(values))


def test_export_is_the_argmax(kit):
    space, strategy = kit.Net(), DARTS()
    strategy.mutate_model(space)
    set_alphas(strategy, [0.1, 0.3, 0.2], [1.0, -1.0, 0.9])
    assert strategy.best_sample() == {"layer_1": "conv1", "layer_2": "conv3"}
    assert strategy.best_sample() == {label: strategy.relaxation.export(label) for label in ("layer_1", "layer_2")}
    assert len(list(strategy.list_models(20))) == 9


def test_export_meets_constraints(kit):
    space, strategy = kit.Net(), DARTS()
    first, second = space.first.choice, space.second.choice
    space.add_mutable(ExpressionConstraint((first == "skip") != (second == "skip")))
    strategy.mutate_model(space)
    alphas = [0.1, 0.3, -0.5], [1.0, -1.0, 0.9]
    set_alphas(strategy, *alphas)

    def score(sample: dict[str, str]) -> float:
        return sum(a[list(kit.costs).index(sample[f"layer_{i + 1}"])] for i, a in enumerate(alphas))

    valid = [s for s in space.grid() if (s["layer_1"] == "skip") != (s["layer_2"] == "skip")]
    assert list(strategy.ranked_samples()) == sorted(valid, key=lambda sample: -score(sample))
    assert strategy.best_sample() == {"layer_1": "conv1", "layer_2": "skip"}


def test_export_when_the_probable_ones_are_all_invalid(kit, monkeypatch):
    monkeypatch.setattr("hwnas.supernet.most_probable.MAX_COMBINATIONS", 2)
    space, strategy = kit.Net(), DARTS()
    space.add_mutable(ExpressionConstraint(space.first.choice == "skip"))
    strategy.mutate_model(space)
    set_alphas(strategy, [1.0, 0.3, -5.0], [1.0, 0.9, 0.8])
    assert strategy.best_sample() == {"layer_1": "skip", "layer_2": "conv3"}


def test_samples_of_one_architecture_are_yielded_once():
    class Nested(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            inner = nn.LayerChoice({"tanh": nn.Tanh(), "relu": nn.ReLU()}, label="inner")
            self.outer = nn.LayerChoice({"plain": nn.Identity(), "inner": inner}, label="outer")

    strategy = DARTS()
    strategy.mutate_model(Nested())
    set_alphas(strategy, [1.0, 0.0], [0.0, 3.0])
    found = [(sample["outer"], sample["inner"]) for sample in strategy.ranked_samples()]
    assert found == [("plain", "relu"), ("inner", "relu"), ("inner", "tanh")]


def test_export_without_any_valid_sample(kit):
    space, strategy = kit.Net(), DARTS()
    space.add_mutable(ExpressionConstraint(space.first.choice == "none"))
    strategy.mutate_model(space)
    with pytest.raises(SampleError, match="no sample of positive weight"):
        strategy.best_sample()


# --- validation --------------------------------------------------------------------------------------------------


class Brightened(LightningModule):
    """What it does with its batches is its own affair; logs the loss of each validation."""

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(self.model(batch["x"] * 2 + 1), batch["y"])

    def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
        loss = self.training_step(batch)
        self.log("default", loss, on_epoch=True, batch_size=len(batch["y"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.05)


class Named(torch.utils.data.Dataset):
    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return dict(zip("xy", self.data[i], strict=True))


class Around(L.Callback):
    """Calls functions before a validation and after it."""

    def __init__(self, start: Any = None, end: Any = None) -> None:
        self.start, self.end = start, end

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.start:
            self.start()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.end:
            self.end(trainer)


@pytest.mark.parametrize("limit", [0, 2, None])
def test_validation_scores_the_best_member_with_its_own_statistics(kit, limit):
    torch.manual_seed(0)
    space, strategy = kit.Net(dropout=0.5), DARTS(0.1, max_recalibration_batches=limit)
    space.add_mutable(ExpressionConstraint((space.first.choice != "skip") & (space.second.choice != "conv3")))
    strategy.mutate_model(space)
    set_alphas(strategy, [-1.0, 0.0, 2.0], [2.0, 0.0, -1.0])  # both argmaxes are forbidden
    train = seeded_loader(Named(kit.images(kit.train)), 4, shuffle=True)
    val = seeded_loader(Named(kit.images(kit.val)), 4, shuffle=False)
    expected, found = [], []

    def by_hand() -> None:
        best = strategy.best_sample()
        assert best == {"layer_1": "conv1", "layer_2": "conv1"}
        member = space.freeze(best).eval()
        norms = [module for module in member.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert len(norms) == 2
        if limit != 0:
            train.sampler.set_epoch(0)
            batches = list(train)[:limit]
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None
            for batch in batches:
                member(batch["x"] * 2 + 1)
            member.eval()
        data = kit.images(kit.val).tensors
        expected.append(float(F.cross_entropy(member(data[0] * 2 + 1), data[1])))

    callbacks = [Around(by_hand, lambda trainer: found.append(float(trainer.callback_metrics["default"])))]
    strategy.run(
        space,
        kit.evaluator(Brightened(), train_dataloaders=train, val_dataloaders=val, max_epochs=2, callbacks=callbacks),
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(found) == 2


@pytest.mark.parametrize(
    "join", [lambda a, b: [a], lambda a, b: {"a": a, "b": b}, lambda a, b: CombinedLoader({"a": a, "b": b}, "min_size")]
)
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of the constructor of CombinedLoader
def test_statistics_see_batches_of_several_loaders_as_training_does(kit, join):
    forms: dict[bool, set[str]] = {True: set(), False: set()}

    class Module(kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if any(p.requires_grad for p in self.model.parameters()):  # validation batches have one form only
                forms[torch.is_grad_enabled()].add(f"{type(batch).__name__} of {len(batch)}")
                batch = batch[0] if isinstance(batch, list) else batch["a"]
            return super().training_step(batch, batch_idx)

    loaders = [seeded_loader(kit.images(kit.train), size, shuffle=True) for size in (4, 8)]
    module = Module()
    DARTS().run(kit.Net(), kit.evaluator(module, train_dataloaders=join(*loaders), val_check_interval=2))
    assert forms[True] == forms[False] != set()
    assert len(module.seen["statistics"]) > 0


def test_validation_runs_one_candidate_of_each_choice(kit):
    space, strategy = kit.Net(), DARTS(0.1)
    strategy.mutate_model(space)
    ran = []
    for block in (space.first, space.second):
        for name in kit.costs:
            block.candidate(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    counts = []
    around = [Around(ran.clear, lambda _: counts.append(len(ran)))]
    strategy.run(space, kit.evaluator(callbacks=around, limit_val_batches=1, max_epochs=1))
    assert counts == [2 * (1 + 6)]  # one batch is scored, six give the statistics


def test_validation_leaves_no_trace(kit):
    class Noisy(kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step([batch[0] + 0.1 * torch.randn(batch[0].shape), batch[1]], batch_idx)

    def search(limit: int, **options: Any) -> tuple[dict[str, Any], Any]:
        torch.manual_seed(0)
        space, strategy = kit.Net(dropout=0.5), Watched(0.1, max_recalibration_batches=limit)
        states: list[Any] = []

        def note(*_: Any) -> None:
            flags = [module.training for module in space.modules() if module is not space]
            momenta = [m.momentum for m in space.modules() if isinstance(m, torch.nn.BatchNorm2d)]
            states.append((kit.snapshot(space), kit.snapshot(strategy.relaxation), torch.get_rng_state(), momenta))
            assert set(flags) == {False}

        module = Noisy()
        before, after = Around(start=note), Around(end=note)
        evaluator = kit.evaluator(module, max_epochs=2, callbacks=[before], **options)
        strategy.run(space, evaluator, callbacks=[after])
        for a, b in zip(states[::2], states[1::2], strict=True):
            assert kit.equal(a[0], b[0])
            assert kit.equal(a[1], b[1])
            assert torch.equal(a[2], b[2])
            assert a[3] == b[3]
        assert strategy.relaxation.training
        assert all(module.training for module in space.modules())
        found = everything(kit, strategy, space)
        set_alphas(strategy, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
        assert [strategy.relaxation.preferred(label) for label in ("layer_1", "layer_2")] == ["conv3", "conv1"]
        set_alphas(strategy, [0.0, 0.0, 1.0], [0.0, 0.0, 1.0])
        assert [strategy.relaxation.preferred(label) for label in ("layer_1", "layer_2")] == ["skip", "skip"]
        return found, module

    with_statistics, module = search(4)
    assert len(module.seen["statistics"]) == 2 * 16
    assert set(module.seen["statistics"]) <= set(kit.train)
    without, other = search(0)
    assert other.seen["statistics"] == []
    assert kit.equal(with_statistics, without)
    often, module = search(4, val_check_interval=2, num_sanity_val_steps=1)
    assert len(module.seen["statistics"]) == (1 + 2 * 3) * 16
    assert module.seen["weights"] == other.seen["weights"]
    assert kit.equal(often, without)


def test_checkpoints_of_a_validation_have_the_statistics_of_the_search(kit, tmp_path):
    space, strategy = kit.Net(), DARTS(0.1)
    states = []

    class Middle(L.Callback):
        def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            assert not kit.equal(states[-1], kit.snapshot(space))
            trainer.save_checkpoint(tmp_path / "middle.ckpt")

    around = Around(start=lambda: states.append(kit.snapshot(space)))
    checkpoint = ModelCheckpoint(tmp_path, filename="end", monitor="default", save_on_train_epoch_end=False)
    strategy.run(space, kit.evaluator(callbacks=[around]), callbacks=[Middle(), checkpoint])
    for name in ("middle", "end"):
        state = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"]
        assert kit.equal(state, {f"model.{key}": tensor for key, tensor in states[0].items()})


def test_a_validation_that_fails_leaves_the_super_net_as_it_was(kit):
    space, strategy = kit.Net(), DARTS(0.1)
    states = []

    class Module(kit.Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise RuntimeError("broken")

    around = Around(start=lambda: states.append(kit.snapshot(space)))
    evaluator = kit.evaluator(Module(), callbacks=[around])
    with pytest.raises(RuntimeError, match="broken"):
        strategy.run(space, evaluator)
    assert kit.equal(states[0], kit.snapshot(space))
    assert strategy.relaxation.training
    assert strategy.relaxation.mixture(strategy.relaxation.dimension("layer_1")).weights is not None


class Expression(nn.ModelSpace):
    """Its depth depends on two labels; a width is mixed; a layer is inactive without a second block."""

    def __init__(self) -> None:
        super().__init__()
        depth = nn.ValueChoice([0, 1], label="a") + nn.ValueChoice([0, 1], label="b")
        width = nn.ValueChoice([2, 4], label="width")
        self.stem = nn.Conv2d(1, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Repeat(nn.ReLU(), depth)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.norm(self.stem(x))).mean((2, 3)))


def test_expressions_after_a_sanity_check(kit):
    """Validation in inference mode comes first and must leave nothing behind that training cannot use."""
    strategy = Watched(0.1)
    strategy.run(Expression(), kit.evaluator(num_sanity_val_steps=1))
    assert strategy.made.steps == 6


def test_bad_arguments(kit):
    for kwargs, name in [
        ({"max_recalibration_batches": -1}, "max_recalibration_batches is -1"),
        ({"arc_learning_rate": 0}, "arc_learning_rate is 0"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"log_prob_every_n_step": 0}, "log_prob_every_n_step is 0"),
        ({"seed": -1}, "seed is -1"),
    ]:
        with pytest.raises(ValueError, match=name):
            DARTS(**kwargs)
    with pytest.raises(TypeError, match="SampleProfilerPenalty"):
        DARTS(penalty=SampleProfilerPenalty(kit.profiler(), 1.0))


def test_several_penalties_pull_together(kit):
    """Each of two penalties is on one layer; without the other its layer would be free."""
    forms = [
        {"profiler": kit.profiler((label,)), "baseline": 5.0, "scale": 50.0, "aggregate": "add"}
        for label in ("layer_1", "layer_2")
    ]
    strategy = DARTS(0.3, penalty=forms)
    strategy.run(kit.Net(), kit.evaluator(max_epochs=2))
    assert strategy.best_sample() == {"layer_1": "skip", "layer_2": "skip"}
    assert len(strategy.watched_costs()) == 2
    strategy = DARTS(penalty=[forms[0], {**forms[1], "profiler": kit.profiler(("layer_9",))}])
    with pytest.raises(ValueError, match="depends on the label 'layer_9'"):
        strategy.run(kit.Net(), kit.evaluator())


def test_a_penalty_of_another_space_is_refused(kit):
    space = kit.Net()
    strategy = DARTS(penalty={"profiler": kit.profiler(("layer_1", "layer_9")), "baseline": 1.0})
    with pytest.raises(ValueError, match="depends on the label 'layer_9'"):
        strategy.run(space, kit.evaluator())
    DARTS().mutate_model(space)  # it was left alone


def test_a_module_that_optimises_by_itself_is_refused(kit):
    module = kit.Module()
    module.automatic_optimization = False
    with pytest.raises(ValueError, match="automatic_optimization"):
        DARTS().run(kit.Net(), kit.evaluator(module))


class Bare(LightningModule):
    """Optional arguments and dictionaries, as Lightning allows them."""

    def __init__(self, scale: float = 1.0, detached: bool = False) -> None:
        super().__init__()
        self.scale, self.detached = scale, detached

    def training_step(self, batch: Any) -> dict[str, torch.Tensor]:
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        if not next(self.model.parameters()).requires_grad:
            loss = loss * self.scale
            if self.detached:
                loss = loss.detach()
        return {"loss": loss}

    def validation_step(self, batch: Any) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.1)


def test_other_forms_of_training_step(kit):
    strategy = Watched()
    strategy.run(kit.Net(), kit.evaluator(Bare()))
    assert strategy.made.steps == 6


def test_losses_that_cannot_train_the_architecture(kit):
    with pytest.raises(TrainingError, match=r"architecture step 0 \(epoch 0, batch 0\): .* is nan"):
        DARTS().run(kit.Net(), kit.evaluator(Bare(scale=math.nan)))
    space = kit.Net()
    with pytest.raises(TrainingError, match="does not depend on the architecture"):
        DARTS().run(space, kit.evaluator(Bare(detached=True)))
    assert all(p.requires_grad for p in space.parameters())
