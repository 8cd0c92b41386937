"""One trace serves several profilers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.profilers import FlopsProfiler, NumParamsProfiler, TracedSpace, traced_space
from hwnas.profilers.latency_parts import LatencyParts, Members

X = torch.zeros(1, 3, 6, 6)


class Net(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([2, 4], label="w")
        self.stem = nn.Conv2d(3, width, 1)
        self.body = nn.LayerChoice([nn.Conv2d(width, 4, 3, padding=1), nn.Conv2d(width, 4, 1)], label="body")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(self.stem(x))
        return y


def test_profilers_share_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    space = Net()
    alone = [FlopsProfiler(space, X), NumParamsProfiler(space, X)]
    other = TracedSpace(space, X)
    parts = LatencyParts(space, other.traces, Members(other))
    traced = TracedSpace(space, X)
    monkeypatch.setattr(traced_space, "trace_everywhere", None)  # nothing is traced any more
    for profiler, shared in zip(alone, [FlopsProfiler(space, traced), NumParamsProfiler(space, traced)], strict=True):
        for sample in space.grid():
            assert profiler.profile(sample) == shared.profile(sample)
    assert LatencyParts(space, traced.traces, Members(traced)).keys == parts.keys


def test_traces_of_another_space_are_refused() -> None:
    with pytest.raises(ValueError, match="those of another Net"):
        FlopsProfiler(Net(), TracedSpace(Net(), X))
