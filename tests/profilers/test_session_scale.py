"""The scale between two sessions, on simulated ones whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from hwnas.profilers import session_scale
from hwnas.profilers.session_scale import LEAST_NETS, REACH, Scale, compare_sessions

Array = NDArray[np.float64]


def sessions(n: int, exponent: float, seed: int, noise: float = 0.02) -> tuple[Array, Array]:
    """Return what nets took before and now; truly, one takes 1.2 times that of before to some power."""
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.uniform(math.log(0.3), math.log(5.0), n))
    now = 1.2 * truth**exponent * np.exp(rng.normal(0, noise, n))
    return truth * np.exp(rng.normal(0, noise, n)), now


def compare(before: Array, now: Array, noise: float = 0.02) -> Scale:
    return compare_sessions(list(before), list(now), [math.hypot(noise, noise)] * len(now))


def errors(exponent: float, seed: int, n: int = 12) -> tuple[Array, Array, Array]:
    """Return how far line and median are off for other nets, and the error that the scale tells."""
    before, now = sessions(n, exponent, seed)
    found = compare(before, now)
    ratios = np.log(before / now)
    truth, later = sessions(50, exponent, seed + 1000, noise=0.0)
    wanted = np.log(truth / later)
    line = np.log([found.at(each) for each in later]) - wanted
    return line, np.median(ratios) - wanted, np.array([found.error_at(each) for each in later])


@pytest.mark.parametrize(("exponent", "gain"), [(1.0, 0.7), (1.2, 4.0), (0.85, 3.0)])
def test_a_power_is_undone_and_a_mere_factor_hardly_suffers(exponent: float, gain: float) -> None:
    found = [errors(exponent, seed) for seed in range(40)]
    line, median, said = (np.stack(each) for each in zip(*found, strict=True))
    assert np.sqrt((median**2).mean()) > gain * np.sqrt((line**2).mean())
    assert 0.8 < np.mean(np.abs(line) < 1.645 * said) < 0.99  # 90 % of a normal distribution


def test_some_nets_that_are_off_change_little() -> None:
    before, now = sessions(16, 1.2, 0)
    clean = compare(before, now)
    now[np.argsort(now)[[-1, -2]]] *= 1.6
    found = compare(before, now)
    assert found.exponent == pytest.approx(clean.exponent, abs=0.04)
    assert found.at(1.0) == pytest.approx(clean.at(1.0), rel=0.03)
    assert found.spread > 0.1  # and it shows
    assert clean.spread < 0.03


def test_few_nets_tell_a_factor() -> None:
    before, now = sessions(LEAST_NETS, 1.3, 0)
    assert compare(before, now).exponent < 0.9
    few = compare(before[:-1], now[:-1])
    assert (few.exponent, few.exponent_error) == (1, 0)
    assert few.at(0.1) == few.at(10.0) == pytest.approx(float(np.median(before[:-1] / now[:-1])))
    assert few.error_at(10.0) == few.error > 0.1
    assert compare_sessions([], [], []) == Scale()


def test_nets_of_one_latency_tell_a_factor() -> None:
    rng = np.random.default_rng(0)
    found = compare(np.exp(rng.normal(0, 0.1, 50)), np.exp(rng.normal(0, 0.1, 50)))
    assert found.exponent == 1
    assert found.spread == pytest.approx(0.14, abs=0.04)


def test_far_beyond_the_nets_that_were_compared_the_factor_stays() -> None:
    before, now = sessions(20, 1.2, 3)
    found = compare(before, now)
    assert (found.low_ms, found.high_ms) == (now.min() / REACH, now.max() * REACH)
    assert found.at(1e-3) == found.at(found.low_ms)
    assert found.at(1e3) == found.at(found.high_ms) < found.at(found.low_ms)
    assert found.at(found.pivot_ms) == found.factor
    assert found.error_at(found.pivot_ms) == found.error < found.error_at(found.low_ms)
    assert found.error_at(1e3) == pytest.approx(
        math.hypot(found.error, found.exponent_error * math.log(found.high_ms / found.pivot_ms))
    )


def test_a_scale_that_changes_nothing() -> None:
    assert Scale().at(0.5) == 1.0
    assert Scale().error_at(0.5) == 0.0
    assert Scale(0.8, error=0.1).error_at(7.0) == 0.1


def test_the_line_agrees_with_least_squares_where_nets_are_many_and_errors_normal() -> None:
    before, now = sessions(4000, 1.1, 7)
    found = compare(before, now)
    slope, height = np.polyfit(np.log(now), np.log(before / now), 1)
    assert found.exponent == pytest.approx(1 + slope, abs=2e-3)
    assert math.log(found.at(1.0)) == pytest.approx(height, abs=2e-3)
    assert found.exponent_error == pytest.approx(math.hypot(0.02, 0.02) / math.sqrt(4000) / np.log(now).std(), rel=0.3)


def test_the_line_of_normal_errors_is_that_of_generalised_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    spreads, exponents = (0.01, 0.05), (0.01, 0.2)
    monkeypatch.setattr(session_scale, "_SPREADS", spreads)
    monkeypatch.setattr(session_scale, "_EXPONENTS", exponents)
    monkeypatch.setattr(session_scale, "_DEGREES", 1e9)
    rng = np.random.default_rng(1)
    x, errors = rng.normal(0.3, 0.5, 9), rng.uniform(0.02, 0.06, 9)
    y = 0.1 + 0.08 * x + rng.normal(0, errors)
    design = np.stack([np.ones(9), x], 1)
    weights, means, covariances = [], [], []
    for spread in spreads:
        for exponent in exponents:
            prior = np.diag([100.0, exponent**2])  # any height
            marginal = design @ prior @ design.T + np.diag(errors**2 + spread**2)
            gain = prior @ design.T @ np.linalg.inv(marginal)
            weights.append(math.exp(-0.5 * (y @ np.linalg.solve(marginal, y) + np.linalg.slogdet(marginal)[1])))
            means.append(gain @ y)
            covariances.append(prior - gain @ design @ prior)
    # Moments of the mixture, the second ones about zero.
    p = np.array(weights) / sum(weights)
    mean = sum(w * m for w, m in zip(p, means, strict=True))
    second = sum(w * (c + np.outer(m, m)) for w, m, c in zip(p, means, covariances, strict=True))
    truth = second - np.outer(mean, mean)
    found, covariance = session_scale._line(x, y, errors)
    np.testing.assert_allclose(found, mean, rtol=1e-4)
    np.testing.assert_allclose(covariance, truth, rtol=1e-3)
    within = sum(w * c for w, c in zip(p, covariances, strict=True))
    assert truth[1, 1] > 1.3 * within[1, 1]  # components disagree about the slope


def test_the_pivot_is_where_nets_are_known_well() -> None:
    before, now = sessions(20, 1.1, 5)
    stderrs = np.where(now > np.median(now), 0.003, 0.2)
    found = compare_sessions(list(before), list(now), list(stderrs))
    assert found.pivot_ms > 1.2 * math.exp(float(np.log(now).mean()))


def test_an_exponent_that_nets_hardly_tell_is_near_one() -> None:
    found = [sessions(8, 1.0, seed, noise=0.05) for seed in range(20)]
    told = [abs(compare(*each, noise=0.05).exponent - 1) for each in found]
    fitted = [abs(np.polyfit(np.log(now), np.log(before / now), 1)[0]) for before, now in found]
    assert np.mean(told) < 0.6 * np.mean(fitted)
