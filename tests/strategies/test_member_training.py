"""Several members in one step of the weights: against plain PyTorch, with all that a trainer does around it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch.nn import functional as F

from hwnas.errors import UnsupportedError
from hwnas.strategies import FairSampling, MemberSampling, RandomOneShot, SandwichSampling, SubnetSearch
from hwnas.strategies.member_sampling import StepMembers

SAMPLINGS = ("fair", "sandwich")


def sampling(kit: Any, name: str) -> MemberSampling:
    return FairSampling() if name == "fair" else SandwichSampling(profiler=kit.profiler())


class Run(SimpleNamespace):
    """A super-net, what it began with, and the members and batches of each call of training_step."""


def search(kit: Any, how: MemberSampling, *, base: Any = None, **kwargs: Any) -> Run:
    torch.manual_seed(0)
    space = kit.Net()
    strategy = RandomOneShot(sampling=how)
    calls: list[tuple[dict[str, Any], Any]] = []

    class Noting(base or kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            calls.append((dict(strategy.relaxation.sample), batch))
            return super().training_step(batch, batch_idx)

    callbacks = kwargs.pop("callbacks", ())
    strategy.mutate_model(space)
    begin = copy.deepcopy(space)
    strategy.run(space, kit.evaluator(Noting(), **kwargs), callbacks=callbacks)
    return Run(space=space, begin=begin, calls=calls)


def by_hand(run: Run, members: int, *, accumulate: int = 1, clip: float | None = None, autocast: Any = None) -> Any:
    """Average the losses of the members of a batch in one graph, and step as the trainer is meant to."""
    space = run.begin
    relaxation = space.first.relaxation
    optimizer = torch.optim.SGD(space.parameters(), lr=0.05, momentum=0.9)
    space.train()
    batches = [run.calls[i : i + members] for i in range(0, len(run.calls), members)]
    for number, calls in enumerate(batches):
        if number % accumulate == 0:
            optimizer.zero_grad()
        losses = []
        for sample, (x, y) in calls:
            relaxation.resample(sample)
            with autocast or nullcontext():
                losses.append(F.cross_entropy(space(x), y))
        (torch.stack(losses).mean() / accumulate).backward()
        if (number + 1) % accumulate == 0 or number + 1 == len(batches):
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(space.parameters(), clip)
            optimizer.step()
    return space


def assert_close(one: Any, other: Any, **tolerance: float) -> None:
    for (name, tensor), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, expected, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize(
    ("trainer", "kwargs"),
    [
        ({}, {}),
        ({"accumulate_grad_batches": 4, "gradient_clip_val": 0.05}, {"accumulate": 4, "clip": 0.05}),
    ],
)
def test_the_weights_are_those_of_plain_pytorch(kit, name, trainer, kwargs):
    run = search(kit, sampling(kit, name), **trainer)
    count = 3 if name == "fair" else 4
    assert len(run.calls) == 6 * count
    for i in range(0, len(run.calls), count):
        assert all(batch is run.calls[i][1] for _, batch in run.calls[i : i + count])
    assert not kit.equal(kit.snapshot(run.space), kit.snapshot(run.begin))
    assert_close(run.space, by_hand(run, count, **kwargs), rtol=1e-5, atol=1e-7)


def test_members_of_a_batch_are_those_of_the_sampling(kit):
    fair = [sample for sample, _ in search(kit, FairSampling()).calls]
    for start in range(0, 18, 3):
        for label in ("layer_1", "layer_2"):
            assert {sample[label] for sample in fair[start : start + 3]} == {"conv3", "conv1", "skip"}
    sandwich = [tuple(sample.values()) for sample, _ in search(kit, sampling(kit, "sandwich")).calls]
    assert set(sandwich[0::4]) == {("conv3", "conv3")}
    assert set(sandwich[1::4]) == {("skip", "skip")}
    assert len(Counter(sandwich[2::4] + sandwich[3::4])) > 3


def test_bfloat16(kit):
    run = search(kit, FairSampling(), precision="bf16-mixed")
    expected = by_hand(run, 3, autocast=torch.autocast("cpu", torch.bfloat16, cache_enabled=False))
    assert_close(run.space, expected, rtol=1e-4, atol=1e-5)


def test_the_scale_of_half_precision(kit):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    run = search(kit, FairSampling(), plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    expected = by_hand(run, 3, autocast=torch.autocast("cpu", torch.half, cache_enabled=False))
    # Gradients that are half as large or twice would be off by far more.
    assert_close(run.space, expected, rtol=1e-2, atol=2e-3)
    torch.manual_seed(0)
    pairs = zip(run.space.parameters(), kit.Net().parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) > 0.02


@pytest.fixture
def process_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take back what data-parallel training in this process leaves behind."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:Warning. find_unused_parameters")
def test_data_parallel_training(kit):
    """What the wrapper has not run itself it must not notice either, and it waits for several batches."""
    arguments = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}
    run = search(kit, FairSampling(), strategy="ddp", devices=1, **arguments)
    assert len(run.calls) == 18
    assert_close(run.space, by_hand(run, 3, accumulate=2, clip=0.05), rtol=1e-5, atol=1e-7)


def test_one_graph_at_a_time(kit):
    alive, most = 0, 0

    class Graph(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            nonlocal alive
            alive -= 1
            return gradient

    class Module(kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return Graph.apply(super().training_step(batch, batch_idx))

    search(kit, FairSampling(), base=Module)
    assert (most, alive) == (1, 0)


def test_only_the_first_member_is_logged(kit):
    logged, losses = [], []

    class Module(kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            losses.append(loss.item())
            self.log("loss", loss, on_step=True)
            return {"loss": loss}

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            logged.append(float(self.trainer.callback_metrics["loss"]))
            assert outputs["loss"] == logged[-1]

    search(kit, FairSampling(), base=Module)
    assert len(losses) == 18
    assert logged == pytest.approx(losses[0::3], rel=1e-6)


def test_the_step_sees_the_first_member_before_and_after(kit):
    seen: list[Any] = []
    strategy = RandomOneShot(sampling="fair")
    probe = kit.Probe(lambda: seen.append(None), lambda: seen.append(dict(strategy.relaxation.sample)))
    first = []

    class Module(kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if seen[-1] is None:
                seen[-1] = dict(strategy.relaxation.sample)
                first.append(seen[-1])
            return super().training_step(batch, batch_idx)

    strategy.run(kit.Net(), kit.evaluator(Module()), callbacks=[probe])
    assert seen[0::2] == seen[1::2] == first


def test_an_optimiser_may_compute_the_loss_again(kit):
    class Module(kit.Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.model.parameters(), lr=1e-3, max_iter=3)

    run = search(kit, FairSampling(), base=Module, limit_train_batches=1)
    samples = [sample for sample, _ in run.calls]
    assert len(samples) > 3
    assert all(samples[i : i + 3] == samples[:3] for i in range(0, len(samples), 3))


def test_members_that_skip_the_batch_add_nothing(kit):
    class Module(kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.calls = getattr(self, "calls", 0) + 1
            return loss if self.calls % 3 == 1 else None

    run = search(kit, FairSampling(), base=Module, limit_train_batches=1)
    assert len(run.calls) == 3
    space, (sample, (x, y)) = run.begin, run.calls[0]
    space.first.relaxation.resample(sample)
    optimizer = torch.optim.SGD(space.parameters(), lr=0.05)
    (F.cross_entropy(space(x), y) / 3).backward()
    optimizer.step()
    for parameter, expected in zip(run.space.parameters(), space.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_resumed_run_equals_the_whole_run(kit, tmp_path, name):
    def run(ckpt_path: Any = None) -> tuple[Any, list]:
        torch.manual_seed(0)
        strategy = RandomOneShot(sampling=sampling(kit, name), search=SubnetSearch(evaluations=3), seed=3)
        samples: list[Any] = []
        callbacks = [
            ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=4),
            kit.Probe(end=lambda: samples.append(strategy.relaxation.sample)),
        ]
        evaluator = kit.evaluator(max_epochs=2)
        strategy.run(kit.Net(dropout=0.5), evaluator, callbacks=callbacks, ckpt_path=ckpt_path)
        return strategy, samples

    whole, expected = run()
    resumed, samples = run(next(tmp_path.glob("*step=4.ckpt")))  # in the middle of an epoch
    assert samples == expected[4:]
    assert kit.equal(kit.snapshot(resumed.supernet), kit.snapshot(whole.supernet))
    assert resumed.ranking() == whole.ranking()


def test_manual_optimisation_and_sharded_models_are_refused_for_several_members(kit):
    class Manual(kit.Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            pass

    with pytest.raises(UnsupportedError, match="Manual sets automatic_optimization = False"):
        RandomOneShot(sampling="fair").run(kit.Net(), kit.evaluator(Manual()))
    RandomOneShot().run(kit.Net(), kit.evaluator(Manual()))

    strategy = RandomOneShot(sampling="fair")
    strategy.mutate_model(kit.Net())
    trainer = SimpleNamespace(strategy=object.__new__(FSDPStrategy))
    with pytest.raises(UnsupportedError, match="which FSDPStrategy of the trainer does not allow"):
        strategy.callback().setup(trainer, kit.Module(), "fit")


def test_a_way_of_sampling_of_ones_own(kit):
    class Two(MemberSampling):
        def plan(self, sampler: Any, seed: int) -> StepMembers:
            return StepMembers(2, lambda step: [sampler.sample(step), sampler.sample(step)])

    run = search(kit, Two())
    samples = [sample for sample, _ in run.calls]
    assert len(samples) == 12
    assert samples[0::2] == samples[1::2]
    assert_close(run.space, by_hand(run, 2), rtol=1e-5, atol=1e-7)
