"""Draws, temperature and validation of GumbelDARTS; resumed runs against whole ones; a toy with a known answer."""

from __future__ import annotations

import itertools
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import TensorDataset

import hwnas.nn as nn
from hwnas.evaluators import ClassificationModule, Lightning, seeded_loader
from hwnas.profilers.penalties import SampleProfilerPenalty
from hwnas.strategies import DARTS, GumbelDARTS, LinearTemperatureScheduler, Proxyless

STRATEGIES: dict[str, tuple[type[DARTS], dict[str, Any]]] = {
    "soft": (GumbelDARTS, {}),
    "hard": (GumbelDARTS, {"hard": True}),
    "gates": (Proxyless, {"paths": None}),
    "two paths": (Proxyless, {}),
}


def watched(kind: str, *args: Any, **options: Any) -> Any:
    """Return a strategy that keeps its callback."""
    base, defaults = STRATEGIES[kind]

    class Watched(base):
        def callback(self) -> L.Callback:
            self.made = super().callback()
            return self.made

    return Watched(*args, **{**defaults, **options})


def alphas(strategy: DARTS) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in strategy.relaxation.named_parameters()}


# --- what all strategies that draw have in common ----------------------------------------------------------------


@pytest.mark.parametrize("kind", STRATEGIES)
def test_each_step_trains_its_own_parameters_on_a_new_draw(kit, kind):
    space, strategy = kit.Net(), watched(kind, 0.1)
    strategy.mutate_model(space)
    draws: list[Any] = []
    resample = strategy.relaxation.resample
    strategy.relaxation.resample = lambda *args: draws.append(resample(*args)) or draws[-1]
    log: list[tuple[dict, dict, int]] = []

    def note() -> None:
        assert [p.grad for p in strategy.relaxation.parameters()] == [None, None]
        log.append((kit.snapshot(space), alphas(strategy), len(draws)))

    # Callbacks of the evaluator come before that of the strategy, those of the run behind it.
    evaluator = kit.evaluator(callbacks=[kit.Probe(start=note)])
    strategy.run(space, evaluator, callbacks=[kit.Probe(start=note, end=note)])
    assert len(log) == 3 * 6
    for before, between, after in zip(log[::3], log[1::3], log[2::3], strict=True):
        assert kit.equal(before[0], between[0])  # weights and buffers in the architecture step
        assert not kit.equal(before[1], between[1])
        assert kit.equal(between[1], after[1])  # alphas in the weight step
        assert not kit.equal(between[0], after[0])
        assert (between[2] - before[2], after[2] - between[2]) == (2, 0)
    assert len({str(draw) for draw in draws}) > 1


@pytest.mark.parametrize("kind", STRATEGIES)
def test_warm_up_draws_but_leaves_the_architecture_alone(kit, kind):
    space, strategy = kit.Net(), watched(kind, 0.1, warmup_epochs=1)
    strategy.mutate_model(space)
    states = [alphas(strategy)]
    draws = []

    def end() -> None:
        states.append(alphas(strategy))
        draws.append(strategy.relaxation.state_dict()["_extra_state"]["generator"])

    strategy.run(space, kit.evaluator(max_epochs=2), callbacks=[kit.Probe(end=end)])
    assert all(kit.equal(states[0], state) for state in states[:7])
    assert not any(kit.equal(a, b) for a, b in itertools.pairwise(states[6:]))
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(draws))


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_resumed_run_equals_the_whole_run(kit, tmp_path, kind):
    def run(ckpt_path: Any = None) -> tuple[Any, dict[str, Any]]:
        torch.manual_seed(0)
        space = kit.Net(dropout=0.5)
        penalty = {"profiler": kit.profiler(), "baseline": 5.0}
        strategy = watched(kind, 0.05, warmup_epochs=1, penalty=penalty)
        checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        module = kit.Module(optimizer="adam", schedule="cosine")
        strategy.run(space, kit.evaluator(module, max_epochs=3), callbacks=[checkpoint], ckpt_path=ckpt_path)
        moments = strategy.made.optimizer.state_dict()["state"]
        extra = strategy.relaxation.state_dict()["_extra_state"]
        return strategy, {
            **kit.snapshot(space),
            **{f"alpha {name}": tensor for name, tensor in alphas(strategy).items()},
            **{f"adam {i} {name}": tensor for i, state in moments.items() for name, tensor in state.items()},
            **{f"extra {name}": torch.as_tensor(value) for name, value in extra.items()},
        }

    whole, expected = run()
    (path,) = tmp_path.glob("epoch=1.ckpt")
    torch.manual_seed(99)
    resumed, state = run(path)
    assert kit.equal(state, expected)
    assert resumed.best_sample() == whole.best_sample()
    saved = torch.load(path, weights_only=True)["callbacks"]["hwnas.Watched"]  # no more than plain data
    assert "generator" in saved["relaxation"]["_extra_state"]


@pytest.mark.parametrize("kind", STRATEGIES)
def test_seeds(kit, kind):
    def run(seed: int) -> dict[str, Any]:
        torch.manual_seed(0)
        space = kit.Net()
        strategy = watched(kind, 0.1, seed=seed)
        strategy.run(space, kit.evaluator())
        return {**kit.snapshot(space), **{f"alpha {k}": v for k, v in alphas(strategy).items()}}

    first = run(0)
    torch.rand(3)
    assert kit.equal(first, run(0))
    assert not kit.equal(first, run(1))


@pytest.mark.parametrize("kind", STRATEGIES)
def test_validation_runs_the_most_probable_member(kit, kind):
    space, strategy = kit.Net(), watched(kind, 0.1)
    scored: list[bool] = []

    class Module(kit.Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            best = strategy.present_sample()
            for _ in range(2):
                assert torch.allclose(self.model(batch[0]), space.freeze(best)(batch[0]), atol=1e-5)
            scored.append(strategy.relaxation.training)
            super().validation_step(batch, batch_idx)

    strategy.run(space, kit.evaluator(Module(), max_epochs=2, num_sanity_val_steps=1))
    assert scored == [False] * (1 + 2 * 4)
    assert strategy.relaxation.training


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0


class Toy(nn.ModelSpace):
    """Two layers that have to let the input through."""

    def __init__(self, good: tuple[str, ...]) -> None:
        super().__init__()
        layers = {name: nn.Identity if name in good else Zero for name in ("conv3", "conv1", "skip")}
        self.first = nn.LayerChoice({name: make() for name, make in layers.items()})
        self.second = nn.LayerChoice({name: make() for name, make in layers.items()})
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


def toy_evaluator(epochs: int) -> Lightning:
    def loader(seed: int) -> Any:
        y = torch.arange(32) % 3
        x = torch.eye(3)[y] * 2 + 0.1 * torch.randn(32, 3, generator=torch.Generator().manual_seed(seed))
        return seeded_loader(TensorDataset(x, y), 4, shuffle=True, seed=seed)

    module = ClassificationModule(learning_rate=0.1, optimizer="sgd", schedule=None)
    return Lightning(
        module, train_dataloaders=loader(0), val_dataloaders=loader(1), max_epochs=epochs, accelerator="cpu"
    )


@pytest.mark.parametrize("kind", STRATEGIES)
def test_the_right_candidate_is_found_with_and_without_a_penalty(kit, kind):
    def search(good: tuple[str, ...], epochs: int = 4, **options: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        strategy = watched(kind, 0.2, **options)
        strategy.run(Toy(good), toy_evaluator(epochs))
        return strategy.best_sample()

    assert search(("conv3",)) == {"layer_1": "conv3", "layer_2": "conv3"}
    penalty = {"profiler": kit.profiler(), "baseline": 19.0, "scale": 1.0}
    # Of two that are right the cheaper one, not the cheapest of all, which is wrong.
    assert search(("conv3", "conv1"), penalty=penalty) == {"layer_1": "conv1", "layer_2": "conv1"}
    penalty["scale"] = 1000.0
    assert search(("conv3", "conv1"), epochs=2, penalty=penalty) == {"layer_1": "skip", "layer_2": "skip"}


@pytest.mark.parametrize("kind", STRATEGIES)
def test_what_the_trainer_offers_works(kit, kind):
    strategy = watched(kind, 0.1)
    evaluator = kit.evaluator(max_epochs=2, gradient_clip_val=0.1, accumulate_grad_batches=4, precision="bf16-mixed")
    strategy.run(kit.Net(), evaluator)
    assert strategy.made.steps == 2 * 2


class Sizes(nn.ModelSpace):
    """A width that several modules share, a kernel, a depth, inputs."""

    def __init__(self) -> None:
        super().__init__()
        width, kernel = nn.ValueChoice([2, 4, 6], label="width"), nn.ValueChoice([1, 3, 5], label="kernel")
        self.stem = nn.Conv2d(1, width, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Repeat(lambda i: nn.Conv2d(width, width, 1), (0, 2), label="depth")
        self.join = nn.InputChoice(2, None, "mean", label="join")
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(self.join([x, self.body(x)]).mean((2, 3)))


@pytest.mark.parametrize("kind", STRATEGIES)
def test_sizes_are_searched(kit, kind):
    space, strategy = Sizes(), watched(kind, 0.1)
    strategy.run(space, kit.evaluator(num_sanity_val_steps=1))
    assert strategy.made.steps == 6
    assert space.contains(strategy.best_sample())
    (model,) = strategy.list_models()
    assert model(torch.zeros(1, 1, 5, 5)).shape == (1, 3)


@pytest.mark.parametrize("kind", STRATEGIES)
def test_bad_arguments_name_the_strategy(kit, kind):
    name = STRATEGIES[kind][0].__name__
    base = STRATEGIES[kind][0]
    for options, match in [
        ({"arc_learning_rate": 0}, f"{name}: arc_learning_rate is 0"),
        ({"warmup_epochs": -1}, f"{name}: warmup_epochs is -1"),
        ({"log_prob_every_n_step": 0}, f"{name}: log_prob_every_n_step is 0"),
    ]:
        with pytest.raises(ValueError, match=match):
            base(**options)
    with pytest.raises(TypeError, match=f"{name}: the penalty is a SampleProfilerPenalty"):
        base(penalty=SampleProfilerPenalty(kit.profiler(), 1.0))


# --- temperature -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ((1.0, 0.4), [1.0, 0.8, 0.6, 0.4]),
        ({"init": 1.0, "min": 0.4}, [1.0, 0.8, 0.6, 0.4]),
        (LinearTemperatureScheduler(2.0, 0.5), [2.0, 1.5, 1.0, 0.5]),
        (0.7, [0.7] * 4),
    ],
)
def test_the_temperature_falls_over_the_epochs_and_is_logged(kit, form, expected):
    records = kit.Records("arch/loss")
    strategy = GumbelDARTS(temperature=form, log_prob_every_n_step=6)
    seen = []
    probe = kit.Probe(start=lambda: seen.append(strategy.relaxation.temperature))
    strategy.run(kit.Net(), kit.evaluator(max_epochs=4, logger=records), callbacks=[probe])
    assert seen == pytest.approx([temperature for temperature in expected for _ in range(6)])
    assert [row["arch/temperature"] for row in records.rows] == pytest.approx(expected)


@pytest.mark.parametrize("hard", [False, True])
def test_hard_samples_run_one_candidate_of_each_choice(kit, hard):
    space, strategy = kit.Net(), GumbelDARTS(0.1, hard=hard)
    strategy.mutate_model(space)
    ran: list[str] = []
    for block in (space.first, space.second):
        for name in kit.costs:
            block.candidate(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    strategy.run(space, kit.evaluator(limit_train_batches=1, limit_val_batches=0))
    # The architecture needs the outputs of all, the weights in a hard step those of the drawn ones alone.
    assert len(ran) == 2 * 3 + (2 if hard else 2 * 3)


def test_the_default_temperature(kit):
    assert GumbelDARTS().temperature == LinearTemperatureScheduler(1.0, 0.33)


def test_the_temperature_survives_a_checkpoint(kit, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    GumbelDARTS(temperature=(1.0, 0.4)).run(kit.Net(), kit.evaluator(max_epochs=4), callbacks=[checkpoint])
    (path,) = tmp_path.glob("epoch=2.ckpt")
    saved = torch.load(path, weights_only=True)["callbacks"]["hwnas.GumbelDARTS"]["relaxation"]["_extra_state"]
    assert saved["temperature"] == pytest.approx(0.6)
    seen = []
    strategy = GumbelDARTS(temperature=(1.0, 0.4))
    probe = kit.Probe(start=lambda: seen.append(strategy.relaxation.temperature))
    callbacks = [probe, ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)]
    strategy.run(kit.Net(), kit.evaluator(max_epochs=4), callbacks=callbacks, ckpt_path=path)
    assert seen == pytest.approx([0.4] * 6)


def test_a_falling_temperature_needs_a_number_of_epochs(kit):
    with pytest.raises(ValueError, match="max_epochs"):
        GumbelDARTS().run(kit.Net(), kit.evaluator(max_epochs=-1, max_steps=2))
    GumbelDARTS(temperature=0.5).run(kit.Net(), kit.evaluator(max_epochs=-1, max_steps=2))
