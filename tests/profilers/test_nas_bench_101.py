"""Costs of `NasBench101Cell`: its graph is chosen, and with it how wide every node is."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hwnas.nn as nn
from hwnas.hub import NASBench101Space
from hwnas.profilers import (
    FlopsProfiler,
    Measurement,
    NumParamsProfiler,
    OnnxRuntimeLatencyProfiler,
    SessionResult,
    TracedSpace,
)
from hwnas.profilers.macs import FORMULAS


class Counter(TorchDispatchMode):
    """Adds up the multiply-adds of what runs."""

    macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in FORMULAS:
            self.macs += int(FORMULAS[func.overloadpacket](*args, **(kwargs or {}), output=output))
        return output


def counted(model: torch.nn.Module, x: Tensor) -> tuple[int, int]:
    with torch.no_grad(), Counter() as counter:
        model.eval()(x)
    return counter.macs, sum(parameter.numel() for parameter in model.parameters())


def conv(inputs: int, outputs: int) -> torch.nn.Module:
    return torch.nn.Conv2d(inputs, outputs, 1, bias=False)


class Net(nn.ModelSpace):
    """Two cells of one label and of different widths; both numbers of channels are divided with a rest."""

    def __init__(self, nodes: int = 4, edges: int = 5) -> None:
        super().__init__()
        candidates = {"conv": lambda n: conv(n, n), "pool": lambda n: torch.nn.MaxPool2d(3, 1, 1)}
        self.first = nn.NasBench101Cell(candidates, 3, 7, conv, nodes, edges, label="cell")
        self.second = nn.NasBench101Cell(candidates, 7, 11, conv, nodes, edges, label="cell")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


X = torch.zeros(1, 3, 4, 4)


@pytest.fixture(scope="module")
def every_member() -> tuple[dict[str, list[Any]], list[dict[str, Any]], np.ndarray]:
    """The domain, all combinations of values of a small space, and what the frozen members cost."""
    space = Net()
    domain = FlopsProfiler(space, X).cost_model.domain.values
    samples = [dict(zip(domain, values, strict=True)) for values in itertools.product(*domain.values())]
    # The constraint is about 5 edges at 4 nodes; costs are those of the graph, allowed or not.
    made = {}
    for sample in samples:
        key = repr(space.first.graph(sample))
        if key not in made:
            made[key] = counted(Net(edges=6).freeze(sample), X)
    return dict(domain), samples, np.array([made[repr(space.first.graph(sample))] for sample in samples])


def test_every_member_and_the_expectation(every_member: Any) -> None:
    domain, samples, truth = every_member
    space = Net()
    traced = TracedSpace(space, X)
    generator = torch.Generator().manual_seed(0)
    given = {label: torch.rand(len(v), generator=generator, dtype=torch.float64) for label, v in domain.items()}
    given = {label: (p / p.sum()).requires_grad_() for label, p in given.items()}
    weights = torch.stack(
        [
            torch.stack([given[label][list(domain[label]).index(value)] for label, value in sample.items()]).prod()
            for sample in samples
        ]
    )
    for profiler, costs in zip((FlopsProfiler(space, traced), NumParamsProfiler(space, traced)), truth.T, strict=True):
        model = profiler.cost_model
        assert (model.evaluate(samples) == costs).all()
        expected = (weights * torch.tensor(costs)).sum()
        found = model.expectation(given)
        torch.testing.assert_close(found, expected)
        for mine, theirs in zip(
            torch.autograd.grad(found, list(given.values())),
            torch.autograd.grad(expected, list(given.values()), retain_graph=True),
            strict=True,
        ):
            # Along the sum of the probabilities of a label, which is one, either may be anything.
            torch.testing.assert_close(mine - mine.mean(), theirs - theirs.mean())
        allowed = model.allowed(samples)
        assert 0 < allowed.sum() < len(samples)
        assert (model.minimum().cost, model.maximum().cost) == (costs[allowed].min(), costs[allowed].max())


def test_draws_within_a_range(every_member: Any) -> None:
    _, samples, truth = every_member
    model = NumParamsProfiler(Net(), X).cost_model
    costs = truth[:, 1]
    low, high = np.quantile(costs, [0.3, 0.5])
    members = model.allowed(samples) & (costs >= low) & (costs <= high)
    assert model.count_within(low, high).value == members.sum()
    drawn = model.sample_within(low, high, 200, seed=1)
    costs_of = {repr(sample): cost for sample, cost in zip(samples, costs, strict=True)}
    assert all(low <= costs_of[repr(sample)] <= high for sample in drawn)
    assert model.allowed(drawn).all()


def test_random_members_of_the_benchmark() -> None:
    space = NASBench101Space(channels=10, cells=1)  # 10, 20 and 40 channels, divided among up to five nodes
    x = torch.zeros(1, 3, 8, 8)
    traced = TracedSpace(space, x)
    macs, size = FlopsProfiler(space, traced), NumParamsProfiler(space, traced)
    for seed in range(25):
        sample = space.random(random_state=seed)
        assert (macs.profile(sample), size.profile(sample)) == counted(space.freeze(sample), x), sample
    # All edges decide about every width, which no path of small tables has: the cost rejects.
    model = macs.cost_model
    middle = float(np.median(model.evaluate(model.sampler().draw(500))))
    drawn = model.sample_within(high=middle, n=50, seed=1)
    assert model.allowed(drawn).all()
    assert (model.evaluate(drawn) <= middle).all()


def test_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine on which a parameter costs a microsecond, whole members take what is predicted."""

    def measured(workloads: Any, target: Any, **options: Any) -> SessionResult:
        def found(latency: float) -> Measurement:
            return Measurement(latency, latency / 100, 20, False)

        def weights(model: bytes) -> float:
            tensors = onnx.load_from_string(model).graph.initializer
            return float(sum(np.prod(tensor.dims) for tensor in tensors if len(tensor.dims) > 1))

        return SessionResult(
            measurements={each.key: found(0.01 + 1e-3 * weights(each.model)) for each in workloads},
            overhead=found(0.01),
            canary=found(0.2),
            canary_floor_ms=0.19,
            clock="thread_time",
            split_half_error=0.01,
            threads=1,
            load=0.0,
            started=1.0,
            duration_s=1.0,
        )

    class Cell(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            candidates = {"conv": lambda n: conv(n, n), "pool": lambda n: torch.nn.MaxPool2d(3, 1, 1)}
            self.cell = nn.NasBench101Cell(candidates, 3, 7, conv, 4, 5, label="cell")

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.cell(x)
            return y

    monkeypatch.setattr("hwnas.profilers.latency.measure", measured)
    space = Cell()
    profiler = OnnxRuntimeLatencyProfiler(space, X, calibration=4)
    assert profiler.granularity == "blocks"
    rng, seen = np.random.default_rng(1), set()
    for _ in range(12):
        sample = space.random(random_state=rng)
        parameters = sum(p.numel() for p in Cell().freeze(sample).parameters())
        assert profiler.profile(sample) == pytest.approx(0.01 + 1e-3 * parameters, rel=1e-6)
        seen.add(parameters)
    assert len(seen) > 3
