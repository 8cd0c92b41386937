"""From the timed runs of a workload to one latency with its error. Pure functions, no clock."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hwnas.profilers.measurement import Measurement

Array = NDArray[np.float64]

_PERCENTILE: Final = 0.1
_RESAMPLES: Final = 100
_QUIET_RATIO: Final = 1.1
_QUIET_VISITS: Final = 6


def quantile_of(times: Array, quantile: float = _PERCENTILE) -> float:
    """Give a quantile of all runs, by default the 10th percentile.

    Load only ever adds time, so a low percentile estimates the undisturbed latency; the minimum would do so
    too, but it depends on the number of runs.

    Parameters
    ----------
    times : ndarray, shape (visits, windows)
        Time of one run.
    quantile : float, default 0.1
        In [0, 1]; interpolated linearly.

    Returns
    -------
    float
        In the unit of `times`.
    """
    return float(_quantile(times.reshape(1, -1), quantile)[0])


def bootstrap_stderr(times: Array, quantile: float = _PERCENTILE) -> float:
    """Estimate the standard error of a quantile of all runs by the bootstrap.

    Whole visits are resampled: runs of one visit see the same load and are not independent.

    Parameters
    ----------
    times : ndarray, shape (visits, windows)
        Time of one run.
    quantile : float, default 0.1
        In [0, 1].

    Returns
    -------
    float
        In the unit of `times`; infinite for fewer than two visits.

    References
    ----------
    Efron, B. "Bootstrap methods: another look at the jackknife." Annals of Statistics 7 (1979).
    """
    visits = len(times)
    if visits < 2:
        return float("inf")
    resampled = times[_resamples(visits)].reshape(_RESAMPLES, -1)  # (resamples, visits * windows)
    return float(_quantile(resampled, quantile).std(ddof=1))


def canary_floor(canary: Array) -> float:
    """Give the time of the canary on the quiet machine.

    Parameters
    ----------
    canary : ndarray, shape (canary_visits, windows)
        Time of one run of the canary.

    Returns
    -------
    float
        In the unit of `canary`.
    """
    # The second lowest of fifty: load only adds time, yet one lucky clock reading must not set the standard.
    return float(np.quantile(np.median(canary, axis=1), 0.02))


def count_quiet(canary: Array, floor: float) -> int:
    """Count the visits during which the machine was quiet: the canary took at most 1.1 times its floor.

    Parameters
    ----------
    canary : ndarray, shape (visits,)
        Time of one run of the canary at the moment of each visit.
    floor : float
        Time of one run of the canary on the quiet machine.

    Returns
    -------
    int
        Between 0 and the number of visits.
    """
    return int(np.count_nonzero(canary <= _QUIET_RATIO * floor))


def usable_runs(times: Array, canary: Array, floor: float) -> tuple[Array, bool]:
    """Choose the runs from which a latency is estimated.

    With at least six quiet visits, or all of them where there are fewer than six, these are the runs of the
    quiet visits. The choice looks at the canary alone, so it does not bias the times. Otherwise every run
    counts, as its ratio to the canary of its moment times the floor.

    Parameters
    ----------
    times : ndarray, shape (visits, windows)
        Time of one run of the workload.
    canary : ndarray, shape (visits,)
        Time of one run of the canary at the moment of each visit.
    floor : float
        Time of one run of the canary on the quiet machine.

    Returns
    -------
    runs : ndarray, shape (used_visits, windows)
        In the unit of `times`.
    contended : bool
        Whether the runs are ratios to the canary.
    """
    if count_quiet(canary, floor) >= min(_QUIET_VISITS, len(times)):
        return times[canary <= _QUIET_RATIO * floor], False
    return times / canary[:, None] * floor, True


def summarise(times: Array, canary: Array, floor: float) -> Measurement:
    """Reduce the runs of one workload to a measurement, with regard to the load.

    Parameters
    ----------
    times : ndarray, shape (visits, windows)
        Milliseconds of one run of the workload.
    canary : ndarray, shape (visits,)
        Milliseconds of one run of the canary at the moment of each visit.
    floor : float
        Milliseconds of one run of the canary on the quiet machine.

    Returns
    -------
    Measurement
        The 10th percentile of the quiet runs; when the machine was contended, the median of the ratios.
    """
    runs, contended = usable_runs(times, canary, floor)
    # A ratio errs to both sides, hence the median there and not a low percentile.
    quantile = 0.5 if contended else _PERCENTILE
    return Measurement(quantile_of(runs, quantile), bootstrap_stderr(runs, quantile), len(runs), contended)


def split_half(times: Array, canary: Array, floor: float) -> float:
    """Compare two estimates of the same latency, one from the even and one from the odd usable visits.

    Parameters
    ----------
    times : ndarray, shape (visits, windows)
        Time of one run of the workload; at least two visits.
    canary : ndarray, shape (visits,)
        Time of one run of the canary at the moment of each visit.
    floor : float
        Time of one run of the canary on the quiet machine.

    Returns
    -------
    float
        The difference relative to the mean of the two.
    """
    runs, contended = usable_runs(times, canary, floor)
    quantile = 0.5 if contended else _PERCENTILE
    even, odd = quantile_of(runs[::2], quantile), quantile_of(runs[1::2], quantile)
    return 2 * abs(even - odd) / (even + odd)


def time_halves(times: Array, canary: Array, floor: float) -> tuple[float, float]:
    """Compare what was found in the first half of the visits with what was found in the second half.

    Load that comes or goes shows here, and not in `split_half`.

    Parameters
    ----------
    times : ndarray, shape (visits, windows)
        Time of one run of the workload, in the order of the visits; at least four visits.
    canary : ndarray, shape (visits,)
        Time of one run of the canary at the moment of each visit.
    floor : float
        Time of one run of the canary on the quiet machine.

    Returns
    -------
    ratio : float
        Logarithm of the second latency over the first.
    stderr : float
        Standard error of that.
    """
    half = len(times) // 2
    first = summarise(times[:half], canary[:half], floor)
    second = summarise(times[half:], canary[half:], floor)
    stderr = np.hypot(first.stderr_ms / first.latency_ms, second.stderr_ms / second.latency_ms)
    return float(np.log(second.latency_ms / first.latency_ms)), float(stderr)


def unexplained(ratios: Sequence[float], stderrs: Sequence[float]) -> float:
    """Tell by how much ratios of latencies scatter beyond their standard errors.

    A machine that is slower by a constant factor gives ratios that agree. Load takes more from some models than from
    others, which no factor mends.

    Parameters
    ----------
    ratios, stderrs : sequence of float
        Logarithms of the ratios, and their standard errors.

    Returns
    -------
    float
        Standard deviation; 0 for fewer than two ratios, and where the standard errors explain all.
    """
    if len(ratios) < 2:
        return 0.0
    excess = statistics.variance(ratios) - statistics.fmean(error**2 for error in stderrs)
    return math.sqrt(max(excess, 0.0))


@lru_cache(maxsize=256)
def _resamples(visits: int) -> NDArray[np.int64]:
    # A fixed seed by size: the same runs always get the same error.
    return np.random.default_rng(visits).integers(visits, size=(_RESAMPLES, visits))


def _quantile(rows: Array, quantile: float) -> Array:
    """Give a quantile of every row, shape (n, m) -> (n,); as numpy.quantile, at a fraction of its cost."""
    position = quantile * (rows.shape[1] - 1)
    low = int(position)
    high = min(low + 1, rows.shape[1] - 1)
    ordered = np.partition(rows, (low, high), axis=1)
    result: Array = ordered[:, low] + (position - low) * (ordered[:, high] - ordered[:, low])
    return result
