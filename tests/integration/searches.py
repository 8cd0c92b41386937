"""Small searches, one for each strategy, that tests run in processes of their own.

As a script: `searches.py two-processes FOLDER`, `searches.py interrupted FOLDER`.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.utils.data import TensorDataset

import hwnas.nn as nn
from hwnas.errors import TrainingError
from hwnas.evaluators import Classification, seeded_loader
from hwnas.strategies import DARTS, ENAS, GumbelDARTS, OneShotStrategy, Proxyless, RandomOneShot, SubnetSearch

STRATEGIES = {
    "DARTS": lambda: DARTS(0.05),
    "GumbelDARTS": lambda: GumbelDARTS(0.05),
    "Proxyless": lambda: Proxyless(0.05),
    "RandomOneShot": lambda: RandomOneShot(search=SubnetSearch(evaluations=3)),
    "RandomOneShot, fair": lambda: RandomOneShot(search=SubnetSearch(evaluations=3), sampling="fair"),
    "ENAS": lambda: ENAS(batches_per_update=2, hidden=8, candidates=3),
}


class Net(nn.ModelSpace):
    """Two choices; batch normalisation, of which each process has its own statistics, and dropout on demand."""

    def __init__(self, *, random: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8) if random else nn.Identity()
        self.first = nn.LayerChoice([nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Identity()])
        self.second = nn.LayerChoice([nn.Linear(8, 8, bias=False), nn.Identity()])
        self.dropout = nn.Dropout(0.3 if random else 0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(self.dropout(self.second(self.first(x))))


def data(n: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return TensorDataset(x, (x[:, :3] + x[:, 3:]).argmax(1))


def search(
    name: str, batch_size: int, *, random: bool = False, callbacks: Any = (), ckpt_path: Any = None, **trainer: Any
) -> OneShotStrategy:
    torch.manual_seed(0)
    strategy = STRATEGIES[name]()
    evaluator = Classification(
        train_dataloaders=seeded_loader(data(32, 0), batch_size, shuffle=True, seed=2),
        val_dataloaders=seeded_loader(data(16, 1), batch_size, shuffle=True, seed=3),
        optimizer="sgd",
        learning_rate=0.1,
        accelerator="cpu",
        **trainer,
    )
    strategy.run(Net(random=random), evaluator, callbacks=callbacks, ckpt_path=ckpt_path)
    return strategy


def outcome(strategy: OneShotStrategy) -> dict[str, Any]:
    """Return all that a search leaves behind, as what `torch.load` takes with `weights_only=True`."""
    assert strategy._trainer is not None
    relaxation = strategy.relaxation
    return {
        "relaxation": {str(label): relaxation.probabilities(label) for label in relaxation.dimensions},
        "state": dict(relaxation.state_dict()),
        "weights": dict(strategy.supernet.state_dict()),
        "controller": dict(strategy.controller.state_dict()) if isinstance(strategy, ENAS) else {},
        "best": {str(label): value for label, value in strategy.best_sample().items()},
        "metrics": {key: float(value) for key, value in strategy._trainer.callback_metrics.items()},
    }


def two_processes(folder: Path) -> None:
    for name in STRATEGIES:
        strategy = search(name, 4, max_epochs=2, precision="64-true", strategy="ddp", devices=2)
        assert strategy._trainer is not None
        torch.save(outcome(strategy), folder / f"{name}-{strategy._trainer.global_rank}.pt")
    rank = int(os.environ["LOCAL_RANK"])
    STRATEGIES["disagree"] = lambda: RandomOneShot(seed=rank)
    try:
        search("disagree", 4, max_epochs=1, strategy="ddp", devices=2)
    except TrainingError as error:
        (folder / f"disagree-{rank}.txt").write_text(str(error))


class KillAt(Callback):
    """Ends the process in the middle of a step, without a word."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


CHECKPOINTS = {"epoch": {"every_n_epochs": 1}, "steps": {"every_n_train_steps": 5}}


def checkpoints(name: str, every: str, folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder / f"{name}-{every}", save_last=True, **CHECKPOINTS[every])


def interrupted(folder: Path) -> None:
    """Kill one search after the other; a fork has imported everything already."""
    for name in STRATEGIES:
        for every in CHECKPOINTS:
            child = os.fork()
            if child == 0:
                try:
                    search(name, 4, random=True, max_epochs=3, callbacks=[checkpoints(name, every, folder), KillAt(13)])
                except BaseException:
                    traceback.print_exc()
                    sys.stderr.flush()
                os._exit(1)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status)
            assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"two-processes": two_processes, "interrupted": interrupted}[sys.argv[1]](Path(sys.argv[2]))
