"""How well predicted latencies agree with measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class AccuracyReport:
    """Agreement of predictions with measurements of the same members.

    Parameters
    ----------
    n : int
        Number of members.
    spearman, kendall : float
        Rank correlations.
    mape : float
        Mean absolute error relative to the measurement.
    within_5, within_10 : float
        Shares of members with a relative error of at most 5 % and 10 %.
    coverage_90 : float
        Share of measurements inside the predicted 90 % interval; NaN without calibration.
    noise : float
        Median relative standard error of the measurements: no prediction can be shown to be better than that.
    """

    n: int
    spearman: float
    kendall: float
    mape: float
    within_5: float
    within_10: float
    coverage_90: float
    noise: float

    def to_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return asdict(self)


def compare(
    measured: Sequence[float],
    predicted: Sequence[float],
    measured_stderr: Sequence[float],
    predicted_stderr: Sequence[float] | None = None,
) -> AccuracyReport:
    """Compare predictions with measurements.

    Parameters
    ----------
    measured, predicted : sequence of float
        Latencies of the same members, in one unit.
    measured_stderr : sequence of float
        Standard errors of the measurements, in the same unit.
    predicted_stderr : sequence of float, optional
        Standard deviations of measurements around the predictions, in the same unit.

    Returns
    -------
    AccuracyReport
        The figures.

    Raises
    ------
    ValueError
        When there are fewer than two members or the lengths differ.
    """
    if len(measured) != len(predicted) or len(measured) < 2:
        raise ValueError(
            f"got {len(measured)} measurements and {len(predicted)} predictions; expected as many, 2 or more"
        )
    truth, guess = np.asarray(measured, dtype=float), np.asarray(predicted, dtype=float)
    error = np.abs(guess / truth - 1)
    half_width = 1.645 * np.asarray(np.nan if predicted_stderr is None else predicted_stderr, dtype=float)
    known = not np.isnan(half_width).any()
    coverage = float((np.abs(guess - truth) <= half_width).mean()) if known else float("nan")
    return AccuracyReport(
        n=len(truth),
        spearman=float(stats.spearmanr(truth, guess).statistic),
        kendall=float(stats.kendalltau(truth, guess).statistic),
        mape=float(error.mean()),
        within_5=float((error <= 0.05).mean()),
        within_10=float((error <= 0.10).mean()),
        coverage_90=coverage,
        noise=float(np.median(np.asarray(measured_stderr) / truth)),
    )
