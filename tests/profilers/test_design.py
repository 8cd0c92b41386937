"""Nets that tell the most, against all sets of nets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hwnas.profilers.design import most_telling, rough_costs
from hwnas.profilers.posterior import Posterior, Prior

PRIOR = Prior(mean=np.array([1.0, 2.0, 0.5]), variance=np.zeros(3), groups=[np.array([1.0, 2.0, 0.5])])


def mean_variance(features: np.ndarray, chosen: tuple[int, ...]) -> float:
    """What is left, by the textbook formula on the precision of the coefficients."""
    expected = features @ PRIOR.mean
    relative = features / expected[:, None]
    precision = np.diag(1 / (0.1 * PRIOR.groups[0]) ** 2) + relative[list(chosen)].T @ relative[list(chosen)] / 0.02**2
    return float(np.einsum("ij,jk,ik->i", relative, np.linalg.inv(precision), relative).mean())


@pytest.mark.parametrize("seed", range(4))
def test_each_choice_is_the_best_next_one(seed: int) -> None:
    features = np.random.default_rng(seed).integers(0, 5, (12, 3)).astype(float) + np.eye(12, 3)
    chosen = most_telling(features, PRIOR, 3)
    assert len(set(chosen)) == 3
    for step in range(3):
        before = tuple(chosen[:step])
        others = [i for i in range(12) if i not in before]
        best = min(mean_variance(features, (*before, i)) for i in others)
        assert mean_variance(features, tuple(chosen[: step + 1])) == pytest.approx(best)
    sets = [mean_variance(features, pair) for pair in itertools.combinations(range(12), 3)]
    assert mean_variance(features, tuple(chosen)) <= np.quantile(sets, 0.1)


def test_what_differs_between_nets_is_told_apart() -> None:
    features = np.array([[2.0, 0.0, 1.0]] * 5 + [[0.0, 2.0, 1.0]])
    assert set(most_telling(features, PRIOR, 2)) > {5}


def test_a_net_that_takes_no_time_is_not_asked() -> None:
    features = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 2.0]])
    assert set(most_telling(features, PRIOR, 2)) == {1, 2}
    assert len(most_telling(features, PRIOR, 9)) == 3


def test_chosen_nets_teach_more_than_random_ones() -> None:
    rng = np.random.default_rng(1)
    n = 30
    prior = Prior(np.ones(n), np.zeros(n), [np.ones(n)])
    features = rng.poisson(rng.uniform(0.05, 0.5, n), (300, n)) + 0.0
    features[:, 0] += 1

    def error(chosen: list[int], truth: np.ndarray) -> float:
        latency = features @ truth
        posterior = Posterior(prior, features[chosen], latency[chosen], 0.01 * latency[chosen])
        return float(np.abs(features @ posterior.mean / latency - 1).mean())

    chosen = most_telling(features, prior, 15)
    truths = [rng.normal(1, 0.3, n).clip(0.2) for _ in range(10)]
    drawn = [error(list(rng.permutation(300)[:15]), truth) for truth in truths]
    assert np.mean([error(chosen, truth) for truth in truths]) < np.mean(drawn)


def test_rough_costs_never_vanish() -> None:
    costs = rough_costs(np.array([0.0, 1e6]), np.array([0.0, 1e3]))
    assert 0 < costs[0] < costs[1]
