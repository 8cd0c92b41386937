"""What makes the latencies of one session of measuring comparable with those of another.

Another clock rate slows all nets alike, so a factor undoes it. A neighbour that keeps the memory busy slows large nets
more than small ones, roughly by a power of what they take. So the logarithm of the ratio is a line over that of the
latency, where enough nets of enough sizes were measured in both sessions.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hwnas.profilers.timing import unexplained

Array = NDArray[np.float64]

# Fewer nets, or nets of about one latency, do not tell an exponent.
LEAST_NETS: Final = 8
LEAST_RANGE: Final = 0.2  # standard deviation of the logarithms

REACH: Final = 2.0  # how far beyond the nets that were compared a line is believed, as a factor

# Standard error of a median over that of a mean, for normal errors.
_MEDIAN_TO_MEAN: Final = math.sqrt(math.pi / 2)
# Standard deviations over which the line is averaged: of a net around it, and of the exponent around 1.
_SPREADS: Final = (0.003, 0.01, 0.02, 0.04, 0.08)
_EXPONENTS: Final = (0.001, 0.03, 0.1, 0.3)
_DEGREES: Final = 4.0  # of freedom of Student's distribution: nets may be off
_STEPS: Final = 12


@dataclass(frozen=True)
class Scale:
    """How latencies of a session become those of earlier sessions: ``factor pivot_ms (latency / pivot_ms)^exponent``.

    Parameters
    ----------
    factor : float, default 1
        Of a net that takes `pivot_ms`.
    spread : float, default 0
        Relative standard deviation by which nets take more or less than that, beyond the standard errors.
    error : float, default 0
        Relative standard error of the factor.
    exponent : float, default 1
        Of the latency relative to `pivot_ms`.
    exponent_error : float, default 0
        Standard error of that, independent of that of the factor.
    pivot_ms : float, default 1
        In milliseconds.
    low_ms, high_ms : float, default 1
        Where the line ends, in milliseconds: what takes less or more is multiplied by the same factor as these.
    """

    factor: float = 1.0
    spread: float = 0.0
    error: float = 0.0
    exponent: float = 1.0
    exponent_error: float = 0.0
    pivot_ms: float = 1.0
    low_ms: float = 1.0
    high_ms: float = 1.0

    def at(self, latency_ms: float) -> float:
        """Return the factor of a net that takes so long in the session."""
        return self.factor * math.exp((self.exponent - 1) * self._distance(latency_ms))

    def error_at(self, latency_ms: float) -> float:
        """Return the relative standard error of that factor."""
        return math.hypot(self.error, self.exponent_error * self._distance(latency_ms))

    def _distance(self, latency_ms: float) -> float:
        if self.exponent == 1 and self.exponent_error == 0:
            return 0.0
        return math.log(min(max(latency_ms, self.low_ms), self.high_ms) / self.pivot_ms)


def compare_sessions(before_ms: Sequence[float], now_ms: Sequence[float], stderrs: Sequence[float]) -> Scale:
    """Find the scale of a session from nets that earlier ones have measured too.

    For few nets, and for nets that hardly differ, it is the median ratio. Otherwise the logarithm of the ratio is a
    line over that of the latency, with errors by Student's distribution and an exponent that is 1 unless the nets tell
    otherwise. How far nets scatter and how far exponents deviate from 1 is integrated out over a grid.

    Parameters
    ----------
    before_ms, now_ms : sequence of float
        What the nets took in earlier sessions, on their scale, and in this one, in milliseconds.
    stderrs : sequence of float
        Relative standard errors of the ratios.

    Returns
    -------
    Scale
        Without nets one that changes nothing.

    References
    ----------
    Lange, Little, Taylor: Robust Statistical Modeling Using the t Distribution, Journal of the American Statistical
    Association 84 (1989).
    """
    if not before_ms:
        return Scale()
    ratios = np.log(np.asarray(before_ms) / np.asarray(now_ms))
    latencies, errors = np.log(np.asarray(now_ms)), np.asarray(stderrs)
    if len(ratios) < LEAST_NETS or latencies.std() < LEAST_RANGE:
        spread = unexplained(list(ratios), stderrs)
        variance = spread**2 + statistics.fmean(error**2 for error in stderrs)
        factor = statistics.median(before / now for before, now in zip(before_ms, now_ms, strict=True))
        return Scale(factor, spread, _MEDIAN_TO_MEAN * math.sqrt(variance / len(ratios)))
    pivot = float(latencies.mean())
    (height, slope), covariance = _line(latencies - pivot, ratios, errors)
    # Moved to where the errors of both are independent.
    shift = -covariance[0, 1] / covariance[1, 1]
    spread = unexplained(list(ratios - height - slope * (latencies - pivot)), stderrs)
    return Scale(
        factor=math.exp(height + slope * shift),
        spread=spread,
        error=math.sqrt(max(covariance[0, 0] - covariance[0, 1] ** 2 / covariance[1, 1], 0.0)),
        exponent=1 + slope,
        exponent_error=math.sqrt(covariance[1, 1]),
        pivot_ms=math.exp(pivot + shift),
        low_ms=min(now_ms) / REACH,
        high_ms=max(now_ms) * REACH,
    )


def _line(x: Array, y: Array, errors: Array) -> tuple[tuple[float, float], Array]:
    """Return height and slope of a line with their covariance, shape (2, 2)."""
    design = np.stack([np.ones_like(x), x], 1)
    found = [_mode(design, y, errors**2 + spread**2, sd) for spread, sd in itertools.product(_SPREADS, _EXPONENTS)]
    evidence = np.array([each[0] for each in found])
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    modes, covariances = np.stack([each[1] for each in found]), np.stack([each[2] for each in found])
    mean = weights @ modes
    apart = modes - mean
    covariance = np.tensordot(weights, covariances, 1) + (weights[:, None] * apart).T @ apart
    return (float(mean[0]), float(mean[1])), covariance


def _mode(design: Array, y: Array, variance: Array, slope_sd: float) -> tuple[float, Array, Array]:
    """Return log evidence, mode and covariance of height and slope, given how far nets scatter."""
    prior = np.diag([0.0, slope_sd**-2])
    weights = np.ones_like(y)
    for _ in range(_STEPS):
        precision = design.T @ (design * (weights / variance)[:, None]) + prior
        mode = np.linalg.solve(precision, design.T @ (y * weights / variance))
        squares = (y - design @ mode) ** 2 / variance
        weights = (_DEGREES + 1) / (_DEGREES + squares)
    likelihood = -0.5 * float((np.log(variance) + (_DEGREES + 1) * np.log1p(squares / _DEGREES)).sum())
    log_prior = -0.5 * float(mode @ prior @ mode) - math.log(slope_sd)
    evidence = likelihood + log_prior - 0.5 * float(np.linalg.slogdet(precision)[1])
    return evidence, mode, np.linalg.inv(precision)
