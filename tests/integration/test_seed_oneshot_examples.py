"""A super-net that is trained first, then searched, saved, restored and taken apart: three examples from the seed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from hwnas import evaluators, nn
from hwnas.evaluators import evaluate_accuracy, recalibrate_batch_norm, seeded_loader
from hwnas.experiment import NasExperiment
from hwnas.strategies import RandomOneShot, RegularizedEvolution

CLASSES = 4
EPOCHS = 6


class MyModelSpace(nn.ModelSpace):
    """Eight members."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.layer1 = nn.LayerChoice([self.block(3), self.block(1), nn.Identity(), nn.MaxPool2d(2)], label="layer1")
        self.layer2 = nn.LayerChoice([nn.Identity(), self.block(3)], label="layer2")
        self.head = nn.Linear(6, CLASSES)

    @staticmethod
    def block(kernel: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(6, 6, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


def images(n: int, seed: int) -> TensorDataset:
    """Stripes of four directions and widths, in noise."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % CLASSES
    row, column = torch.arange(8)[:, None].expand(8, 8), torch.arange(8)[None, :].expand(8, 8)
    stripes = torch.stack([row % 2, column % 2, (row + column) % 2, row // 2 % 2]).float()
    noise = torch.randn(n, 1, 8, 8, generator=generator)
    return TensorDataset(2 * stripes[targets][:, None] + noise, targets)


TRAIN, VAL = seeded_loader(images(128, 0), 16, shuffle=True), seeded_loader(images(200, 1), 50, shuffle=False)


def Classification(max_epochs: int) -> evaluators.Classification:  # noqa: N802 - stands in for the class
    """The evaluator, on tiny data and with no more epochs than the tests have time for."""
    return evaluators.Classification(
        train_dataloaders=TRAIN,
        val_dataloaders=VAL,
        max_epochs=min(max_epochs, EPOCHS),
        learning_rate=0.02,
        accelerator="cpu",
    )


def everything() -> list[dict[str, int]]:
    return [{"layer1": a, "layer2": b} for a, b in itertools.product(range(4), range(2))]


def accuracy(space: Any, sample: dict[str, int]) -> float:
    """Score a member by hand."""
    model = space.freeze(sample)
    TRAIN.sampler.set_epoch(0)
    recalibrate_batch_norm(model, list(TRAIN))
    return evaluate_accuracy(model, VAL)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def trained() -> MyModelSpace:
    torch.manual_seed(0)
    model_space = MyModelSpace()
    NasExperiment(model_space, Classification(max_epochs=100), RandomOneShot()).run()
    return model_space


def test_train_then_search() -> None:
    model_space = MyModelSpace()

    evaluator = Classification(max_epochs=100)
    strategy = RandomOneShot()
    NasExperiment(model_space, evaluator, strategy).run()

    weights = {name: tensor.clone() for name, tensor in model_space.state_dict().items()}

    evaluator = Classification(max_epochs=0)
    strategy = RegularizedEvolution()
    NasExperiment(model_space, evaluator, strategy).run()

    assert same(dict(model_space.state_dict()), weights)
    ranking = strategy.ranking()
    assert len(ranking) == 8
    by_hand = {tuple(sample.values()): accuracy(model_space, sample) for sample in everything()}
    assert {tuple(t.sample.values()): t.score for t in ranking} == pytest.approx(by_hand)
    assert max(by_hand.values()) > 0.95 > 0.8 > min(by_hand.values())  # the weights tell members apart
    [model] = strategy.list_models(1)
    assert evaluate_accuracy(model, VAL) == pytest.approx(ranking[0].score)


def test_the_weights_make_the_difference() -> None:
    untrained = MyModelSpace()
    RandomOneShot().mutate_model(untrained)
    strategy = RegularizedEvolution()
    NasExperiment(untrained, Classification(max_epochs=0), strategy).run()
    assert strategy.ranking()[0].score < 0.6


def test_save_and_restore(trained: MyModelSpace, tmp_path: Path) -> None:
    torch.save(trained.state_dict(), tmp_path / "somewhere")

    model_space = MyModelSpace()
    pre_strategy = RandomOneShot()
    pre_strategy.mutate_model(model_space)
    model_space.load_state_dict(torch.load(tmp_path / "somewhere"))

    for sample in everything():
        assert same(model_space.freeze(sample).state_dict(), trained.freeze(sample).state_dict())
    found = []
    for space in (trained, model_space):
        strategy = RegularizedEvolution()
        NasExperiment(space, Classification(max_epochs=0), strategy).run()
        found.append(strategy.ranking())
    assert found[0] == found[1]


def test_freezing_keeps_the_weights(trained: MyModelSpace) -> None:
    model_space = trained
    subnet = model_space.freeze({"layer1": 0, "layer2": 1})

    assert torch.equal(subnet.stem[0].weight, trained.stem[0].weight)
    assert torch.equal(subnet.layer1[0].weight, trained.layer1.candidate(0)[0].weight)
    assert torch.equal(subnet.layer2[0].weight, trained.layer2.candidate(1)[0].weight)
    assert not any(type(module).__module__.startswith("hwnas") for module in subnet.modules())
    with torch.no_grad():
        subnet.stem[0].weight.zero_()
    assert trained.stem[0].weight.abs().sum() > 0
