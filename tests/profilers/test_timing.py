"""The statistics on synthetic times: no clock takes part."""

from __future__ import annotations

import numpy as np
import pytest

from hwnas.profilers.runner import plan_visit
from hwnas.profilers.timing import (
    bootstrap_stderr,
    canary_floor,
    count_quiet,
    quantile_of,
    split_half,
    summarise,
    time_halves,
    unexplained,
    usable_runs,
)


@pytest.mark.parametrize("shape", [(2, 2), (7, 3), (40, 6)])
@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.5, 1.0])
def test_quantile_agrees_with_numpy(shape: tuple[int, int], quantile: float) -> None:
    times = np.random.default_rng(0).exponential(size=shape)
    assert quantile_of(times, quantile) == pytest.approx(np.quantile(times, quantile))


@pytest.mark.parametrize("quantile", [0.1, 0.5])
def test_bootstrap_error_agrees_with_repeated_sampling(quantile: float) -> None:
    rng = np.random.default_rng(0)
    samples = rng.exponential(size=(1000, 40, 3))
    truth = np.quantile(samples.reshape(1000, -1), quantile, axis=1).std()
    estimates = [bootstrap_stderr(sample, quantile) for sample in samples[:100]]
    assert np.mean(estimates) == pytest.approx(truth, rel=0.2)


def test_bootstrap_resamples_visits_and_not_runs() -> None:
    # Runs of one visit are equal: six windows carry no more information than one.
    one = np.random.default_rng(0).exponential(size=(30, 1))
    assert bootstrap_stderr(np.repeat(one, 6, axis=1), 0.5) == pytest.approx(bootstrap_stderr(one, 0.5), rel=0.15)


def test_bootstrap_is_repeatable_and_infinite_for_one_visit() -> None:
    times = np.random.default_rng(0).exponential(size=(10, 3))
    assert bootstrap_stderr(times) == bootstrap_stderr(times)
    assert bootstrap_stderr(times[:1]) == np.inf


def test_floor_ignores_slow_visits_and_one_lucky_reading() -> None:
    canary = np.full((200, 4), 2.0)
    canary[50:] = 3.0
    canary[7] = 0.5
    assert canary_floor(canary) == pytest.approx(2.0)


def test_quiet_visits_are_within_a_tenth_of_the_floor() -> None:
    assert count_quiet(np.array([1.0, 1.09, 1.11, 5.0]), 1.0) == 2


def test_enough_quiet_visits_give_the_quiet_latency_however_long_the_load_lasts() -> None:
    rng = np.random.default_rng(0)
    times = 10 + 0.01 * rng.standard_normal((60, 3))
    canary = np.ones(60)
    times[6:] *= 1.5
    canary[6:] = 1.4
    found = summarise(times, canary, 1.0)
    assert not found.contended
    assert found.visits == 6
    assert found.latency_ms == pytest.approx(10, rel=0.005)


def test_too_few_quiet_visits_give_the_ratio_to_the_canary_and_a_flag() -> None:
    rng = np.random.default_rng(0)
    slowdown = rng.uniform(1.2, 3.0, size=40)
    slowdown[:5] = 1.0
    times = 10 * slowdown[:, None] * (1 + 0.01 * rng.standard_normal((40, 3)))
    found = summarise(times, 2.0 * slowdown, 2.0)
    assert found.contended
    assert found.visits == 40
    assert found.latency_ms == pytest.approx(10, rel=0.01)
    assert found.stderr_ms < 0.1


def test_a_short_session_is_not_contended_when_all_its_visits_are_quiet() -> None:
    times = np.full((3, 2), 4.0)
    assert not summarise(times, np.ones(3), 1.0).contended
    assert summarise(times, np.array([1.0, 1.0, 2.0]), 1.0).contended


def test_usable_runs_keep_quiet_visits_whole() -> None:
    times = np.arange(20.0).reshape(10, 2)
    canary = np.where(np.arange(10) < 7, 1.0, 2.0)
    runs, contended = usable_runs(times, canary, 1.0)
    assert not contended
    np.testing.assert_array_equal(runs, times[:7])


def test_split_half_compares_even_with_odd_visits() -> None:
    times = np.tile([[1.0, 1.0], [1.2, 1.2]], (10, 1))
    assert split_half(times, np.ones(20), 1.0) == pytest.approx(0.2 / 1.1)
    assert split_half(np.ones((20, 2)), np.ones(20), 1.0) == 0


def test_halves_in_time_differ_where_load_comes_late() -> None:
    rng = np.random.default_rng(0)
    times = 2.0 * rng.lognormal(0, 0.01, (40, 3))
    assert abs(time_halves(times, np.ones(40), 1.0)[0]) < 0.01
    times[20:] *= 1.2
    ratio, stderr = time_halves(times, np.ones(40), 1.0)
    assert ratio == pytest.approx(np.log(1.2), abs=0.01)
    parts = [bootstrap_stderr(half) / quantile_of(half) for half in (times[:20], times[20:])]
    assert stderr == pytest.approx(np.hypot(*parts))
    # Even and odd visits see the same load.
    assert split_half(times, np.ones(40), 1.0) < 0.02


def test_halves_count_with_the_canary_of_their_moments() -> None:
    canary = np.repeat([1.0, 1.5], 20)
    times = np.tile(canary[:, None], (1, 3))
    assert time_halves(times, canary, 1.0)[0] == pytest.approx(0)
    assert time_halves(times, np.repeat([1.5, 1.0], 20), 1.0)[0] == pytest.approx(np.log(1.5**2))


def test_what_errors_explain_is_no_scatter() -> None:
    rng = np.random.default_rng(0)
    ratios = rng.normal(0.3, 0.04, 2000)  # a common factor is none either
    assert unexplained(ratios, np.full(2000, 0.03)) == pytest.approx(np.sqrt(0.04**2 - 0.03**2), rel=0.1)
    assert unexplained(ratios, np.full(2000, 0.05)) == 0
    assert unexplained([0.1, 0.3], [0.0, 0.0]) == pytest.approx(0.2 / np.sqrt(2))
    assert unexplained([0.1], [0.0]) == unexplained([], []) == 0


@pytest.mark.parametrize("run_ns", [1.0, 9e3, 1e5, 1e6, 5e6, 1e9])
def test_visits_have_two_to_six_windows_and_short_runs_are_repeated(run_ns: float) -> None:
    windows, repeats = plan_visit(run_ns)
    assert 2 <= windows <= 6
    assert repeats * run_ns >= 1e5
    assert repeats == 1 or run_ns < 2e5


def test_shorter_runs_get_more_windows() -> None:
    windows = [plan_visit(run_ns)[0] for run_ns in (1e4, 1e6, 1e7)]
    assert windows == sorted(windows, reverse=True)
    assert windows[0] > windows[-1]
