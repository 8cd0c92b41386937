"""A small space, data whose images carry their number, and a module that notes which it saw."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import TensorDataset

import hwnas.nn as nn
from hwnas.cost import CostModel, Factor
from hwnas.evaluators import ClassificationModule, Lightning, seeded_loader
from hwnas.profilers.profiler import Profiler

CLASSES = 3


def block() -> nn.Module:
    return nn.LayerChoice(
        {
            "conv3": nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            "conv1": nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()),
            "skip": nn.Identity(),
        }
    )


class Net(nn.ModelSpace):
    """Two choices of layers, 9 members."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.first = block()
        self.second = block()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(torch.relu(self.stem(x))))
        return self.head(self.dropout(x.mean((2, 3))))


class Module(ClassificationModule):
    """Notes what each step saw, and whether weights or the architecture were trained on it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"learning_rate": 0.05, "optimizer": "sgd", "schedule": None, **kwargs})
        self.seen: dict[str, list[int]] = {name: [] for name in ("weights", "architecture", "statistics", "validation")}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        trains = any(parameter.requires_grad for parameter in self.model.parameters())
        what = "statistics" if not torch.is_grad_enabled() else "weights" if trains else "architecture"
        self.seen[what] += batch[0][:, 0, 0, 0].long().tolist()
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["validation"] += batch[0][:, 0, 0, 0].long().tolist()
        super().validation_step(batch, batch_idx)


def images(numbers: range) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(numbers), 1, 5, 5, generator=generator)
    y = torch.arange(len(numbers)) % CLASSES
    x[:, 0, 2] += y[:, None]
    x[:, 0, 0, 0] = torch.tensor(numbers)
    x[:, 0, 0, 1:] -= x[:, 0, 0, :1] / 4  # so that the number does not dominate
    return TensorDataset(x, y)


TRAIN, VAL = range(24), range(24, 40)


def evaluator(module: Any = None, **kwargs: Any) -> Lightning:
    """6 batches of 4 to train, 4 to validate."""
    arguments: dict[str, Any] = {
        "train_dataloaders": seeded_loader(images(TRAIN), 4, shuffle=True),
        "val_dataloaders": seeded_loader(images(VAL), 4, shuffle=True, seed=1),
        "max_epochs": 1,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
    }
    return Lightning(module or Module(), **{**arguments, **kwargs})


COSTS = {"conv3": 9.0, "conv1": 2.0, "skip": 0.0}


def profiler(labels: tuple[str, ...] = ("layer_1", "layer_2"), constraints: tuple[Factor, ...] = ()) -> Profiler:
    """Costs of conv3, conv1 and skip: 9, 2 and 0 in each block, plus 1."""
    table = np.array(list(COSTS.values()))
    domain = {label: list(COSTS) for label in ("layer_1", "layer_2")} | {label: list(COSTS) for label in labels}
    factors = [Factor((label,), table) for label in labels]
    return Profiler(CostModel(domain, factors, constant=1.0, unit="MACs", constraints=constraints))


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Probe(L.Callback):
    """Calls functions at the start and the end of each training batch."""

    def __init__(self, start: Any = None, end: Any = None) -> None:
        self.start, self.end = start, end

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.start:
            self.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.end:
            self.end()


class Records(Logger):
    """Keeps the rows in which the name of a metric begins with `prefix`, and the steps at which they came."""

    name, version = "records", 0

    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self.prefix = prefix
        self.rows: list[dict[str, float]] = []
        self.steps: list[int | None] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any(name.startswith(self.prefix) for name in metrics):
            self.rows.append(metrics)
            self.steps.append(step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def kit() -> SimpleNamespace:
    return SimpleNamespace(
        Net=Net,
        Module=Module,
        Probe=Probe,
        Records=Records,
        evaluator=evaluator,
        profiler=profiler,
        images=images,
        snapshot=snapshot,
        equal=equal,
        train=TRAIN,
        val=VAL,
        costs=COSTS,
    )
