"""The posterior against closed forms, and its intervals against simulated nets."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hwnas.profilers import posterior
from hwnas.profilers.posterior import Posterior, Prior

Array = NDArray[np.float64]


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One size of everything, so that the posterior is a normal distribution."""
    monkeypatch.setattr(posterior, "SPREADS", (0.1,))
    monkeypatch.setattr(posterior, "MISFITS", (0.05,))


def example(n: int = 12, k: int = 4, seed: int = 0) -> tuple[Prior, Array, Array, Array]:
    rng = np.random.default_rng(seed)
    mean, features = rng.uniform(1, 2, k), rng.integers(0, 4, (n, k)).astype(float)
    measured = features @ (mean * rng.normal(1, 0.1, k)) + rng.normal(0, 0.1, n) + 0.5
    prior = Prior(mean, rng.uniform(0.001, 0.01, k), [mean, np.eye(k)[0]])
    return prior, features, measured, rng.uniform(0.02, 0.1, n)


@pytest.mark.usefixtures("fixed")
def test_one_size_gives_the_closed_form_of_linear_regression() -> None:
    prior, x, y, stderr = example()
    found = Posterior(prior, x, y, stderr)
    # The form with precisions, which shares no step with the one of the code.
    noise = np.diag(1 / (stderr**2 + (0.05 * y) ** 2))
    prior_precision = np.diag(1 / (prior.variance + (0.1 * prior.groups[0]) ** 2 + (0.1 * prior.groups[1]) ** 2))
    covariance = np.linalg.inv(prior_precision + x.T @ noise @ x)
    mean = covariance @ (prior_precision @ prior.mean + x.T @ noise @ y)
    np.testing.assert_allclose(found.mean, mean)
    other = np.array([[1.0, 0, 2, 1], [0, 3, 0, 0]])
    expected = np.diag(other @ covariance @ other.T) + (0.05 * (other @ mean)) ** 2
    np.testing.assert_allclose(found.variance(other), expected)


@pytest.mark.usefixtures("fixed")
def test_what_is_left_out_is_predicted_from_the_others() -> None:
    prior, x, y, stderr = example()
    found = Posterior(prior, x, y, stderr).left_out
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        mean = Posterior(prior, x[others], y[others], stderr[others]).mean
        assert found[i] == pytest.approx(y[i] - x[i] @ mean)


def test_unknown_sizes_are_integrated_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a brute-force integral over a coefficient and both sizes."""
    spreads, misfits = (0.1, 0.5), (0.02, 0.2)
    monkeypatch.setattr(posterior, "SPREADS", spreads)
    monkeypatch.setattr(posterior, "MISFITS", misfits)
    prior = Prior(np.array([1.0]), np.array([0.01]), [np.array([1.0])])
    x, y, stderr = np.array([[1.0], [2.0], [1.0]]), np.array([1.3, 2.5, 1.2]), np.array([0.1, 0.1, 0.05])
    found = Posterior(prior, x, y, stderr)

    w = np.linspace(-3, 5, 40_001)
    total, first, second, error = 0.0, 0.0, 0.0, 0.0
    for s in spreads:
        density = np.exp(-0.5 * (w - 1) ** 2 / (0.01 + s**2)) / np.sqrt(0.01 + s**2)
        for m in misfits:
            sd = np.sqrt(stderr**2 + (m * y) ** 2)
            likelihood = np.prod(np.exp(-0.5 * ((y[:, None] - x * w) / sd[:, None]) ** 2) / sd[:, None], 0)
            joint = density * likelihood
            total, first, second = total + joint.sum(), first + (joint * w).sum(), second + (joint * w**2).sum()
            error += joint.sum() * m**2
    mean = first / total
    assert found.mean[0] == pytest.approx(mean, rel=1e-3)
    expected = second / total - mean**2 + error / total * mean**2
    assert found.variance(np.array([[1.0]]))[0] == pytest.approx(expected, rel=1e-2)


def simulate(rng: np.random.Generator, spread: float, misfit: float) -> tuple[Array, Array]:
    """Give errors of predictions relative to their standard deviations, and relative to the truth."""
    own = rng.uniform(0.02, 0.3, 40)
    coefficients = own * rng.normal(1.2, spread, 40)
    features = rng.multinomial(20, np.full(40, 1 / 40), size=50).astype(float)
    exact = features @ coefficients
    measured = exact * rng.normal(1, misfit, 50) * rng.normal(1, 0.01, 50)
    prior = Prior(np.append(own, 0), np.append((0.01 * own) ** 2, 0.3**2), [np.append(own, 0)])
    x = np.column_stack([features, features @ own])
    found = Posterior(prior, x[:20], measured[:20], 0.01 * measured[:20])
    predicted = x[20:] @ found.mean
    sd = np.sqrt(found.variance(x[20:]) + (0.01 * predicted) ** 2)
    return (measured[20:] - predicted) / sd, predicted / measured[20:] - 1


@pytest.mark.parametrize(("spread", "misfit"), [(0.05, 0.01), (0.3, 0.005), (0.02, 0.04)])
def test_intervals_cover_what_they_say(spread: float, misfit: float) -> None:
    rng = np.random.default_rng(0)
    errors = np.concatenate([simulate(rng, spread, misfit)[0] for _ in range(40)])
    assert 0.86 < (np.abs(errors) <= 1.645).mean() < 0.95


@pytest.mark.usefixtures("fixed")
def test_nets_make_predictions_better() -> None:
    prior, x, y, stderr = example(n=40)
    few, many = (Posterior(prior, x[:n], y[:n], stderr[:n]) for n in (2, 40))
    other = np.array([[1.0, 1, 1, 1]])
    assert many.variance(other)[0] < few.variance(other)[0]


def test_a_coefficient_of_which_no_net_says_anything_stays_what_it_was() -> None:
    prior, x, y, stderr = example()
    prior = Prior(np.append(prior.mean, 7.0), np.append(prior.variance, 0.1), [np.append(prior.groups[0], 0.0)])
    found = Posterior(prior, np.column_stack([x, np.zeros(len(x))]), y, stderr)
    assert found.mean[-1] == pytest.approx(7)
    assert found.variance(np.eye(5)[-1:])[0] >= 0.1
