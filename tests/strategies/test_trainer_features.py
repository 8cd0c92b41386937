"""What the trainer can do works with every strategy with shared weights."""

from __future__ import annotations

import itertools
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from hwnas.strategies import DARTS, ENAS, GumbelDARTS, OneShotStrategy, Proxyless, RandomOneShot, SubnetSearch

STRATEGIES = {
    "DARTS": lambda: DARTS(0.05),
    "GumbelDARTS": lambda: GumbelDARTS(0.05, temperature=1.0),
    "Proxyless": lambda: Proxyless(0.05),
    "RandomOneShot": lambda: RandomOneShot(search=SubnetSearch(evaluations=2)),
    "ENAS": lambda: ENAS(batches_per_update=2, hidden=8, candidates=2),
}
every_strategy = pytest.mark.parametrize("name", STRATEGIES)


def searched(kit: Any, name: str, *, module: Any = None, callbacks: Any = (), ckpt_path: Any = None, **trainer: Any):
    torch.manual_seed(0)
    strategy = STRATEGIES[name]()
    strategy.run(
        kit.Net(dropout=0.2),
        kit.evaluator(module or kit.Module(), **trainer),
        callbacks=callbacks,
        ckpt_path=ckpt_path,
    )
    return strategy


class Steps(L.Callback):
    """Notes the weights and the learning rate after each batch."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []
        self.rates: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.note(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.note(trainer, pl_module)

    def note(self, trainer: Any, pl_module: Any) -> None:
        self.weights.append(torch.nn.utils.parameters_to_vector(pl_module.model.parameters()).detach().clone())

    def lengths(self, ord: float = 2) -> list[float]:
        return [float(torch.linalg.vector_norm(b - a, ord)) for a, b in itertools.pairwise(self.weights)]


@every_strategy
def test_half_precision(kit, name):
    seen = []

    class Module(kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(self.model.stem(batch[0]).dtype)
            return super().training_step(batch, batch_idx)

    strategy = searched(kit, name, module=Module(), precision="bf16-mixed", max_epochs=2)
    assert set(seen) == {torch.bfloat16}
    assert all(bool(torch.isfinite(p).all()) and p.dtype == torch.float32 for p in strategy.supernet.parameters())
    assert all(bool(torch.isfinite(p).all()) and p.dtype == torch.float32 for p in strategy.relaxation.parameters())
    assert list(strategy.list_models())


@every_strategy
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped(kit, name, algorithm):
    """Without momentum a step is as long as the learning rate times the gradient."""
    steps, module = Steps(), kit.Module(momentum=0.0, learning_rate=0.5)
    clip = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm}
    searched(kit, name, module=module, callbacks=[steps], **clip)
    lengths = steps.lengths(2 if algorithm == "norm" else math.inf)
    assert max(lengths) == pytest.approx(0.5 * 0.01, rel=1e-3)


@every_strategy
def test_gradients_are_accumulated(kit, name):
    steps = Steps()
    searched(kit, name, callbacks=[steps], accumulate_grad_batches=2)
    assert [length > 0 for length in steps.lengths()] == [False, True] * 3


def per_step(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step"}


SCHEDULES = {
    "epoch": lambda optimizer: StepLR(optimizer, 1, gamma=0.5),
    "every other step": lambda optimizer: {**per_step(StepLR(optimizer, 1, gamma=0.5)), "frequency": 2},
    "cosine": lambda optimizer: per_step(CosineAnnealingLR(optimizer, T_max=12)),
    "one cycle": lambda optimizer: per_step(OneCycleLR(optimizer, max_lr=0.2, total_steps=12)),
    "plateau": lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=1e9),
}


def expected_rates(kind: str) -> list[float]:
    """Return what PyTorch alone does in 2 epochs of 6 steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
    given = SCHEDULES[kind](optimizer)
    every = given.get("frequency", 1) if isinstance(given, dict) else 6
    scheduler, rates = given["scheduler"] if isinstance(given, dict) else given, []
    for step in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step(1.0) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
    return rates


@pytest.mark.parametrize("name", ["DARTS", "ENAS"])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_learning_rates(kit, name, kind):
    steps = Steps()
    searched(kit, name, module=kit.Module(schedule=SCHEDULES[kind]), callbacks=[steps], max_epochs=2)
    assert steps.rates == pytest.approx(expected_rates(kind))


@every_strategy
def test_lists_of_optimisers_and_schedules(kit, name):
    class Module(kit.Module):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
            return [optimizer], [per_step(StepLR(optimizer, 1, gamma=0.5))]

    steps = Steps()
    searched(kit, name, module=Module(), callbacks=[steps])
    assert steps.rates == pytest.approx([0.05 * 0.5**i for i in range(6)])


@every_strategy
def test_several_loggers(kit, name):
    loggers = [kit.Records(), kit.Records()]
    searched(kit, name, logger=loggers)
    names, others = (set().union(*logger.rows) for logger in loggers)
    assert names == others > {"train_loss", "val_acc"}
    if name != "RandomOneShot":
        assert any(record.startswith(("arch/", "controller/")) for record in names)


@every_strategy
@pytest.mark.parametrize(
    ("limits", "batches"),
    [
        ({"limit_train_batches": 4, "limit_val_batches": 1}, 8),
        ({"max_steps": 8, "max_epochs": -1}, 8),
        ({"fast_dev_run": 3}, 3),
        ({"val_check_interval": 2}, 12),
        ({"max_time": timedelta(0)}, 0),
    ],
)
def test_limits(kit, name, limits, batches):
    steps, module = Steps(), kit.Module()
    strategy = searched(kit, name, module=module, callbacks=[steps], **{"max_epochs": 2, **limits})
    assert len(steps.rates) == batches
    if "val_check_interval" in limits and name != "ENAS":
        assert len(module.seen["validation"]) == 6 * len(kit.val)
    assert len(strategy.best_sample()) == 2


@every_strategy
def test_early_stopping(kit, name):
    stopping = EarlyStopping("val_loss", patience=1, min_delta=1e9)
    evaluator = kit.evaluator(callbacks=[stopping], max_epochs=9)
    for _ in range(2):  # one object, two searches
        steps = Steps()
        STRATEGIES[name]().run(kit.Net(), evaluator, callbacks=[steps])
        assert len(steps.rates) == 2 * 6


RESUMED: dict[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {
    "accumulated gradients": ({"accumulate_grad_batches": 2}, {"every_n_train_steps": 2}, [2, 4]),
    "double precision": ({"precision": "64-true"}, {"every_n_epochs": 1}, [6]),
    "the last batch": ({}, {"every_n_train_steps": 6}, [6]),
    "part of the data": ({"limit_train_batches": 4}, {"every_n_train_steps": 2}, [4, 6]),
    "a validation": ({"val_check_interval": 4}, {"every_n_epochs": 1}, [4]),
    "steps instead of epochs": ({"max_epochs": -1, "max_steps": 11}, {"every_n_train_steps": 3}, [9]),
}


def state(strategy: OneShotStrategy) -> dict[str, torch.Tensor]:
    parts = {"weights": strategy.supernet, "relaxation": strategy.relaxation}
    if isinstance(strategy, ENAS):
        parts["controller"] = strategy.controller
    tensors = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    return {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}


@every_strategy
@pytest.mark.parametrize("case", RESUMED)
def test_a_run_resumed_anywhere_equals_the_whole_run(kit, tmp_path, name, case):
    trainer, when, steps = RESUMED[case]
    trainer = {"max_epochs": 2, **trainer}

    def keep(folder: Path) -> ModelCheckpoint:
        return ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **when)

    whole = searched(kit, name, callbacks=[keep(tmp_path)], **trainer)
    for step in steps:
        path = tmp_path / f"step={step}.ckpt"
        resumed = searched(kit, name, callbacks=[keep(tmp_path)], ckpt_path=path, **trainer)
        assert kit.equal(state(whole), state(resumed)), step
