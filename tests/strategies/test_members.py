"""Members of a super-net: weights of the super-net, statistics of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hwnas.evaluators import FunctionalEvaluator
from hwnas.strategies import RandomOneShot
from hwnas.strategies.batches import load_batches
from hwnas.strategies.members import Members

SAMPLE = {"layer_1": "conv3", "layer_2": "conv1"}


@pytest.fixture
def supernet(kit: Any) -> Any:
    space = kit.Net()
    RandomOneShot().run(space, kit.evaluator())
    return space


def means_before_normalisation(model: torch.nn.Module, batches: list[Any]) -> torch.Tensor:
    """Average over batches of what comes into the first batch normalisation, whose input depends on weights alone."""
    found = []
    with torch.no_grad():
        for inputs, _ in batches:
            found.append(model.first[0](torch.relu(model.stem(inputs))).mean((0, 2, 3)))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize(("limit", "used"), [(2, 2), (None, 6)])
def test_statistics_are_estimated_on_training_batches(kit: Any, supernet: Any, limit: int | None, used: int) -> None:
    before = kit.snapshot(supernet)
    evaluator = kit.evaluator(max_epochs=0)
    model = Members(supernet, evaluator, max_batches=limit).freeze(SAMPLE)
    batches = load_batches(evaluator.train_dataloaders, used)
    assert torch.allclose(model.first[1].running_mean, means_before_normalisation(model, batches), atol=1e-6)
    assert torch.equal(model.first[0].weight, supernet.first.candidate("conv3")[0].weight)
    assert not torch.equal(model.first[1].running_mean, supernet.first.candidate("conv3")[1].running_mean)
    assert kit.equal(kit.snapshot(supernet), before)


def test_a_member_does_not_depend_on_those_before_it(kit: Any, supernet: Any) -> None:
    members = Members(supernet, kit.evaluator(max_epochs=0))
    alone = kit.snapshot(Members(supernet, kit.evaluator(max_epochs=0)).freeze(SAMPLE))
    members.freeze({"layer_1": "conv1", "layer_2": "conv3"})
    assert kit.equal(kit.snapshot(members.freeze(SAMPLE)), alone)


@pytest.mark.parametrize("case", ["function", "training", "switched off"])
def test_statistics_of_the_supernet_otherwise(kit: Any, supernet: Any, case: str) -> None:
    evaluator = {
        "function": FunctionalEvaluator(lambda model: 0.0),
        "training": kit.evaluator(max_epochs=1),
        "switched off": kit.evaluator(max_epochs=0, train_dataloaders=None),
    }[case]
    members = Members(supernet, evaluator, max_batches=0 if case == "switched off" else 20)
    found = kit.snapshot(members.freeze(SAMPLE))
    assert kit.equal(found, kit.snapshot(supernet.freeze(SAMPLE)))


def test_a_plain_space_needs_no_training_data(kit: Any) -> None:
    space = kit.Net()
    model = Members(space, kit.evaluator(max_epochs=0, train_dataloaders=None)).freeze(SAMPLE)
    assert kit.equal(kit.snapshot(model), kit.snapshot(space.freeze(SAMPLE)))


def test_missing_training_data(kit: Any, supernet: Any) -> None:
    with pytest.raises(ValueError, match=r"no train_dataloaders.*max_recalibration_batches=0"):
        Members(supernet, kit.evaluator(max_epochs=0, train_dataloaders=None))
