"""Faults that no error message gives away, where no test of a single part would notice them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.cost import CostModel, Factor
from hwnas.evaluators import FunctionalEvaluator
from hwnas.profilers import FlopsProfiler
from hwnas.profilers.penalties import ExpectationProfilerPenalty
from hwnas.profilers.profiler import Profiler
from hwnas.space import Sample
from hwnas.strategies import MultiTrialStrategy, Trial
from hwnas.strategies.feasible import FeasibleSampler
from hwnas.supernet import BinaryGates, GumbelSoftmax, OneHot, Relaxation, Softmax, make_supernet


class Net(nn.ModelSpace):
    """A width, a kernel, a depth, a layer: every kind of choice that costs."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([2, 4], label="width")
        kernel = nn.ValueChoice([1, 3], label="kernel")
        self.stem = nn.Conv2d(1, width, kernel, padding=kernel // 2)
        self.body = nn.Repeat(lambda index: nn.Conv2d(width, width, 1), (0, 2), label="depth")
        self.layer = nn.LayerChoice([nn.Conv2d(width, width, 3, padding=1), nn.Identity()], label="layer")
        self.last = nn.LayerChoice([nn.Linear(4, 4), nn.Identity()], label="last")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.body(self.stem(x))))


@pytest.fixture(scope="module")
def flops() -> FlopsProfiler:
    return FlopsProfiler(Net(), torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize("make", [Softmax, GumbelSoftmax, BinaryGates])
def test_a_penalty_on_flops_trains_every_label_of_every_relaxation(
    make: Callable[..., Softmax], flops: FlopsProfiler
) -> None:
    relaxation = make(Net().simplify().values()).double()
    penalty = ExpectationProfilerPenalty(flops, baseline=100.0)

    def loss() -> Tensor:
        probabilities = {label: relaxation.probabilities(label) for label in relaxation.dimensions}
        return penalty(torch.ones((), dtype=torch.float64), probabilities)[0]

    alphas = list(relaxation.parameters())
    for alpha, gradient in zip(alphas, torch.autograd.grad(loss(), alphas), strict=True):
        assert gradient.abs().max() > 0.01
        for i in range(len(alpha)):
            ends = []
            for step in (1e-5, -2e-5):
                alpha.data[i] += step
                ends.append(loss().item())
            alpha.data[i] += 1e-5
            assert gradient[i].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("make", [None, OneHot, Softmax])
def test_training_a_frozen_member_leaves_the_space_alone(make: Callable[..., Relaxation] | None) -> None:
    space = Net()
    if make is not None:
        make_supernet(space, make(space.simplify().values()))
    before = {name: tensor.clone() for name, tensor in space.state_dict().items()}
    model = space.freeze({"width": 4, "kernel": 3, "depth": 2, "layer": 0, "last": 0})
    for parameter in model.parameters():
        parameter.data.fill_(7.0)
    assert len(list(model.parameters())) == 10
    assert all(torch.equal(tensor, before[name]) for name, tensor in space.state_dict().items())


def test_stored_trials_are_not_one_dictionary_that_changes() -> None:
    class Reusing(MultiTrialStrategy):
        """Proposes all members by one dictionary, which it writes anew each time."""

        def proposals(self, sampler: Any) -> Generator[Sample, Trial, None]:
            sample: Sample = {}
            for point in sampler.space.grid():
                sample.update(point)
                yield sample

    space, strategy = Net(), Reusing(evaluations=4)
    strategy.run(space, FunctionalEvaluator(lambda model: float(sum(p.numel() for p in model.parameters()))))
    assert [trial.sample for trial in strategy.trials()] == list(itertools.islice(space.grid(), 4))
    best = strategy.best_sample()
    best.clear()
    assert strategy.best_sample() == strategy.ranking()[0].sample != {}


def test_members_within_a_budget_that_one_in_a_million_meets_are_drawn() -> None:
    class Wide(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.costs = [nn.ValueChoice([0, 1, 2, 3], label=f"cost{i}") for i in range(12)]

    space = Wide()
    domain = {label: [0, 1, 2, 3] for label in space.simplify()}
    profiler = Profiler(CostModel(domain, [Factor((label,), np.arange(4.0)) for label in domain]))
    sampler = FeasibleSampler(space, {"profiler": profiler, "max": 1.0})  # 13 of 16,777,216
    drawn = [sampler.sample(number) for number in range(100)]
    assert all(sum(sample.values()) <= 1 for sample in drawn)
    assert len({tuple(sample.values()) for sample in drawn}) > 6
