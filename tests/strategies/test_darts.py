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
from lightning.pytorch.loggers import Logger
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

import hwnas.nn as nn
from hwnas.errors import SampleError, TrainingError
from hwnas.evaluators import LightningModule, seeded_loader
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
    class Records(Logger):
        name, version = "records", 0

        def __init__(self) -> None:
            super().__init__()
            self.rows: list[tuple[int | None, dict[str, float]]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if any(name.startswith("arch/") for name in metrics):
                self.rows.append((step, metrics))

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            pass

    records = Records()
    strategy = DARTS(1e-9, penalty={"profiler": kit.profiler(), "baseline": 5.0}, log_prob_every_n_step=4)
    strategy.run(kit.Net(), kit.evaluator(logger=records, max_epochs=2))
    assert [step for step, _ in records.rows] == [0, 4, 8]
    row = records.rows[0][1]
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
    monkeypatch.setattr("hwnas.strategies.darts.MAX_COMBINATIONS", 2)
    space, strategy = kit.Net(), DARTS()
    space.add_mutable(ExpressionConstraint(space.first.choice == "skip"))
    strategy.mutate_model(space)
    set_alphas(strategy, [1.0, 0.3, -5.0], [1.0, 0.9, 0.8])
    assert strategy.best_sample() == {"layer_1": "skip", "layer_2": "conv3"}


def test_export_without_any_valid_sample(kit):
    space, strategy = kit.Net(), DARTS()
    space.add_mutable(ExpressionConstraint(space.first.choice == "none"))
    strategy.mutate_model(space)
    with pytest.raises(SampleError, match="no sample of positive weight"):
        strategy.best_sample()


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
        ({"arc_learning_rate": 0}, "arc_learning_rate is 0"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"log_prob_every_n_step": 0}, "log_prob_every_n_step is 0"),
        ({"seed": -1}, "seed is -1"),
    ]:
        with pytest.raises(ValueError, match=name):
            DARTS(**kwargs)
    with pytest.raises(TypeError, match="SampleProfilerPenalty"):
        DARTS(penalty=SampleProfilerPenalty(kit.profiler(), 1.0))


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
