"""Parameters of every member against those of the frozen model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.profilers.parameters import NumParamsProfiler

X = torch.zeros(1, 2, 4, 4)


def all_right(space: nn.ModelSpace, x: Tensor = X) -> NumParamsProfiler:
    profiler = NumParamsProfiler(space, x)
    for sample in space.grid():
        assert profiler.profile(sample) == sum(p.numel() for p in space.freeze(sample).parameters()), sample
    return profiler


def choice(values: list[Any], label: str) -> nn.ValueChoice:
    return nn.ValueChoice(values, label=label)


def test_every_kind_of_choice() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            width = choice([2, 4], "w")
            self.stem = nn.Conv2d(
                2,
                width,
                choice([(1, 3), (3, 3)], "k"),
                padding="same",
                groups=2,
                bias=choice([True, False], "b"),
            )
            self.body = nn.Repeat(
                lambda i: nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)), (0, 2), label="d"
            )
            self.act = nn.LayerChoice(
                [nn.PReLU(), nn.LayerChoice([nn.Identity(), nn.PReLU(3)], label="in")], label="act"
            )
            self.head = nn.Linear(width, 3)
            self.scale = torch.nn.Parameter(torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.stem(x)).mean((2, 3)))  # the activation is held, but not called

    assert all_right(Net()).unit == "parameters"


def test_tied_parameters_count_once() -> None:
    class Tied(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.pick = nn.LayerChoice([self.b, torch.nn.Linear(4, 4)], label="pick")
            self.twice = nn.Linear(4, choice([4, 4 + 4], "w"))

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.pick(self.a(x)))

    all_right(Tied())


def test_a_layer_that_only_training_calls_is_held_all_the_same() -> None:
    class Auxiliary(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.on = choice([True, False], "on")
            self.aux = nn.LayerChoice([nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=1)], label="aux")
            self.extra = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                return self.aux(x)
            return self.extra(x) if self.on() else x

    all_right(Auxiliary())


def test_layers_without_modules_of_their_own() -> None:
    class Attention(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.LayerChoice([nn.MultiheadAttention(4, 2, batch_first=True), Skip()], label="a")

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    all_right(Attention(), torch.zeros(1, 3, 4))


class Skip(nn.Module):
    def forward(self, x: Tensor, *rest: Tensor) -> Any:
        return x, x.new_zeros(1, 3, 3)


def test_operations_that_consist_of_others_count_once() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            width = nn.ValueChoice([4, 8], label="width")
            self.up = nn.Linear(3, width)
            self.attention = nn.MultiheadAttention(width, nn.ValueChoice([1, 2], label="heads"), batch_first=True)
            self.norm = nn.LayerNorm(width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.up(x)
            return self.norm(self.attention(y, y, y, need_weights=False)[0])

    space = Net()
    profiler = NumParamsProfiler(space, torch.zeros(2, 5, 3))
    for sample in space.grid():
        assert profiler.profile(sample) == sum(p.numel() for p in space.freeze(sample).parameters())
