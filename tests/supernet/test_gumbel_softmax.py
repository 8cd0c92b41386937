"""Tempered samples: noise, temperature, straight-through."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.supernet import GumbelSoftmax, make_supernet


def choice(values: list[Any], label: str) -> nn.ValueChoice:
    return nn.ValueChoice(values, label=label)


class Net(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        width = choice([2, 4, 6], "width")
        self.stem = nn.Conv2d(2, width, choice([1, 3], "kernel"), padding="same")
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.LayerChoice([nn.ReLU(), nn.Tanh(), nn.LayerChoice([nn.ELU(), nn.SiLU()], label="in")], label="a")
        self.body = nn.Repeat(nn.Sequential(nn.Tanh()), (0, 2), label="depth")
        self.join = nn.InputChoice(3, 2, "mean", label="join")
        self.any = nn.InputChoice(3, None, "mean", label="any")

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = self.join([x, self.body(x), x.square()])
        return self.any([x, x * 2, x.sin()])


def test_gradients_at_fixed_noise_are_finite_differences() -> None:
    torch.manual_seed(0)
    space = Net()
    relaxation = GumbelSoftmax(space.simplify().values(), temperature=0.6, seed=3)
    make_supernet(space, relaxation)
    space.double()
    relaxation.double()
    relaxation.resample({})
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    state = copy.deepcopy(space.state_dict())

    def loss() -> Tensor:
        y = space(x)
        return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum() + y.square().mean()

    gradients = torch.autograd.grad(loss(), list(relaxation.parameters()))
    for alpha, gradient in zip(relaxation.parameters(), gradients, strict=True):
        assert gradient.abs().max() > 1e-5
        for i in range(len(alpha)):
            both = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    alpha[i] += step
                    both.append(loss())
                    alpha[i] -= step
                    space.load_state_dict(state)
            torch.testing.assert_close(gradient[i], (both[0] - both[1]) / 2e-5, rtol=1e-5, atol=1e-7)


def test_straight_through_is_one_hot_with_the_gradient_of_the_soft_sample() -> None:
    a = choice([1, 2, 3, 4], "a")
    hard, soft = GumbelSoftmax([a], hard=True, temperature=0.8), GumbelSoftmax([a], temperature=0.8)
    factors = torch.tensor([1.0, -2.0, 0.5, 3.0])
    for _ in range(20):
        assert hard.resample({}) == soft.resample({})
        w, v = hard.mixture(a).weights, soft.mixture(a).weights
        assert sorted(w.tolist()) == [0, 0, 0, 1]
        assert w.argmax() == v.argmax()
        assert v.sum().item() == pytest.approx(1)
        assert v.max() < 1
        (mine,) = torch.autograd.grad(w @ factors, hard.alpha("a"))
        (theirs,) = torch.autograd.grad(v @ factors, soft.alpha("a"))
        torch.testing.assert_close(mine, theirs)


def test_a_lower_temperature_gives_harder_weights_of_the_same_draw() -> None:
    a = choice([1, 2, 3], "a")
    relaxation = GumbelSoftmax([a])
    for _ in range(10):
        drawn = relaxation.resample({})["a"]
        peaks = []
        for temperature in (100.0, 1.0, 0.3, 1e-3):
            relaxation.temperature = temperature
            weights = relaxation.mixture(a).weights.detach()
            assert a.values[int(weights.argmax())] == drawn
            peaks.append(float(weights.max()))
        assert peaks == sorted(peaks)
        assert peaks[0] == pytest.approx(1 / 3, abs=0.05)
    assert peaks[-1] > 0.99


def test_noise_is_standard_gumbel() -> None:
    labels = [choice(list(range(100)), f"v{i}") for i in range(40)]
    relaxation = GumbelSoftmax(labels)
    noise = torch.cat(list(relaxation._noise.values()))
    n = len(noise)
    assert noise.mean().item() == pytest.approx(0.57722, abs=4 * math.sqrt(math.pi**2 / 6 / n))
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.15)
    assert len(set(noise.tolist())) == n  # none is shared by two labels
    initial = torch.cat([(p - p.mean()).detach() for p in relaxation.parameters()])
    assert abs(torch.corrcoef(torch.stack([noise, initial]))[0, 1]) < 4 / math.sqrt(n)  # nor that of the parameters


def test_the_state_holds_the_temperature_as_plain_data() -> None:
    a = choice([1, 2, 3], "a")
    relaxation = GumbelSoftmax([a], temperature=0.42)
    state = relaxation.state_dict()
    other = GumbelSoftmax([a])
    other.load_state_dict(state)
    assert other.temperature == 0.42
    assert other.resample({}) == relaxation.resample({})


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_bad_temperatures(temperature: float) -> None:
    relaxation = GumbelSoftmax([choice([1, 2], "a")])
    with pytest.raises(ValueError, match="temperature is"):
        relaxation.temperature = temperature
    with pytest.raises(ValueError, match="temperature is"):
        GumbelSoftmax([choice([1, 2], "a")], temperature=temperature)
