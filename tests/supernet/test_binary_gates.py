"""Gate gradients against exact ones within confidence intervals; pairs; what an update leaves unchanged."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

import hwnas.nn as nn
from hwnas.supernet import BinaryGates, make_supernet

FACTORS = ([1.0, 2.0, 0.5, 3.0], [0.2, 1.5, 1.0], [2.0, 0.7])
LOGITS = ([0.0, 1.0, -0.5, 0.3], [0.4, -0.2, 0.1], [0.3, -0.3])


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Chain(nn.ModelSpace):
    """The output is a product of factors, one of each layer: to first order everything is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.LayerChoice([Scale(f) for f in factors], label=f"l{i}") for i, factors in enumerate(FACTORS))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def chain(paths: int | None) -> tuple[nn.ModelSpace, BinaryGates]:
    space = Chain()
    relaxation = BinaryGates(space.simplify().values(), paths=paths, seed=1)
    make_supernet(space, relaxation)
    relaxation.double()
    with torch.no_grad():
        for alpha, logits in zip(relaxation.parameters(), LOGITS, strict=True):
            alpha.copy_(torch.tensor(logits))
    return space, relaxation


def mean_gradients(paths: int | None, draws: int) -> list[tuple[Tensor, Tensor]]:
    """Means with their standard errors."""
    space, relaxation = chain(paths)
    x = torch.ones(1, dtype=torch.float64)
    samples: list[list[Tensor]] = [[], [], []]
    for _ in range(draws):
        relaxation.resample({})
        for kept, gradient in zip(
            samples, torch.autograd.grad(space(x).sum(), list(relaxation.parameters())), strict=True
        ):
            kept.append(gradient)
    stacked = [torch.stack(kept) for kept in samples]
    return [(s.mean(0), s.std(0) / math.sqrt(draws)) for s in stacked]


def test_the_mean_gate_gradient_is_the_gradient_of_the_expected_loss() -> None:
    alphas = [torch.tensor(logits, dtype=torch.float64, requires_grad=True) for logits in LOGITS]
    p = [alpha.softmax(0) for alpha in alphas]
    expected: Any = 0
    for i, j, k in itertools.product(*(range(len(f)) for f in FACTORS)):
        expected = expected + p[0][i] * p[1][j] * p[2][k] * FACTORS[0][i] * FACTORS[1][j] * FACTORS[2][k]
    exact = torch.autograd.grad(expected, alphas)
    for (mean, error), gradient in zip(mean_gradients(None, 800), exact, strict=True):
        assert ((mean - gradient).abs() < 4 * error + 1e-12).all()
        assert (gradient.abs() > 5 * error).any()  # the interval tells something


def test_the_mean_gradient_of_two_paths_is_that_over_all_pairs() -> None:
    p = [torch.tensor(logits, dtype=torch.float64).softmax(0).tolist() for logits in LOGITS]

    def pairs(layer: int) -> dict[tuple[int, int], float]:
        share = p[layer]
        both = {}
        for a, b in itertools.combinations(range(len(share)), 2):
            both[a, b] = share[a] * share[b] / (1 - share[a]) + share[a] * share[b] / (1 - share[b])
        return both

    def opened(layer: int) -> list[float]:
        """How often each gate is open."""
        q = [0.0] * len(p[layer])
        for (a, b), share in pairs(layer).items():
            for one in (a, b):
                q[one] += share * p[layer][one] / (p[layer][a] + p[layer][b])
        return q

    levels = [sum(q * f for q, f in zip(opened(layer), FACTORS[layer], strict=True)) for layer in range(3)]
    for layer, (mean, error) in enumerate(mean_gradients(2, 800)):
        rest = math.prod(level for other, level in enumerate(levels) if other != layer)
        expected = [0.0] * len(p[layer])
        for (a, b), share in pairs(layer).items():
            first = p[layer][a] / (p[layer][a] + p[layer][b])
            push = share * first * (1 - first) * (FACTORS[layer][a] - FACTORS[layer][b]) * rest
            expected[a] += push
            expected[b] -= push
        assert ((mean - torch.tensor(expected, dtype=torch.float64)).abs() < 4 * error + 1e-12).all()


def test_pairs_are_drawn_without_replacement_and_opened_by_renormalised_probabilities() -> None:
    _, relaxation = chain(2)
    p = torch.tensor(LOGITS[0]).softmax(0).tolist()
    expected = {
        (a, b, is_open): p[a] * p[b] * (1 / (1 - p[a]) + 1 / (1 - p[b])) * p[is_open] / (p[a] + p[b])
        for a, b in itertools.combinations(range(4), 2)
        for is_open in (a, b)
    }
    counts = dict.fromkeys(expected, 0)
    draws = 2000
    layer = relaxation.dimension("l0")
    for _ in range(draws):
        relaxation.resample({})
        mixture = relaxation.mixture(layer)
        counts[(*mixture.values, mixture.values[int(mixture.weights.argmax())])] += 1
    statistic = sum((counts[k] - draws * q) ** 2 / (draws * q) for k, q in expected.items())
    assert statistic < chi2.ppf(0.999, len(expected) - 1)


def test_only_the_two_run() -> None:
    space, relaxation = chain(2)
    ran: list[int] = []
    for i, candidate in enumerate(space.layers[0]):
        candidate.register_forward_hook(lambda *_, i=i: ran.append(i))
    x = torch.ones(1, dtype=torch.float64)
    seen = set()
    for _ in range(20):
        relaxation.resample({})
        ran.clear()
        (gradient, *_) = torch.autograd.grad(space(x).sum(), list(relaxation.parameters()))
        assert len(ran) == 2
        assert gradient.nonzero().flatten().tolist() == ran
        seen.add(tuple(ran))
    assert len(seen) > 2
    relaxation.requires_grad_(False)
    ran.clear()
    space(x)
    assert len(ran) == 1


def test_an_update_leaves_the_others_as_probable_as_they_were() -> None:
    space, relaxation = chain(2)
    x = torch.ones(1, dtype=torch.float64)
    # With momentum and weight decay, which alone would move all of them.
    adam = torch.optim.Adam(relaxation.parameters(), lr=0.1, betas=(0.5, 0.999), weight_decay=0.1)
    for _ in range(15):
        relaxation.resample({})
        mixtures = [relaxation.mixture(m) for m in relaxation.dimensions.values()]
        before = [relaxation.probabilities(label).detach() for label in relaxation.dimensions]
        adam.zero_grad()
        space(x).sum().backward()
        with relaxation.others_unchanged():
            adam.step()
        for label, old, mixture in zip(relaxation.dimensions, before, mixtures, strict=True):
            new = relaxation.probabilities(label).detach()
            changed = (new - old).abs() > 1e-9
            assert set(changed.nonzero().flatten().tolist()) == set(mixture.values)
            one, two = (new - old)[changed].tolist()
            assert one == pytest.approx(-two)


def test_two_paths_of_a_size_keep_all_values_in_the_mixture() -> None:
    width = nn.ValueChoice([2, 4, 6, 8], label="w")
    relaxation = BinaryGates([width])
    for _ in range(10):
        relaxation.resample({})
        two, all_values = relaxation.mixture(width), relaxation.value(width)
        assert all_values.values == (2, 4, 6, 8)
        by_value = dict(zip(all_values.values, all_values.weights.tolist(), strict=True))
        assert [by_value[v] for v in two.values] == two.weights.tolist()
        assert sum(by_value.values()) == 1


@pytest.mark.parametrize("paths", [0, 1, 3, "2"])
def test_bad_paths(paths: Any) -> None:
    with pytest.raises(ValueError, match="paths is"):
        BinaryGates([nn.ValueChoice([1, 2], label="a")], paths=paths)
