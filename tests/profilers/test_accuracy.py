"""Figures of agreement against SciPy and against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hwnas.profilers.accuracy import compare


def test_figures_worked_out_by_hand() -> None:
    report = compare(
        measured=[1.0, 2.0, 4.0, 5.0],
        predicted=[1.03, 2.18, 3.0, 5.0],  # off by 3 %, 9 %, 25 % and nothing
        measured_stderr=[0.01, 0.04, 0.04, 0.2],  # 1 %, 2 %, 1 % and 4 %
        predicted_stderr=[0.1 / 1.645 * each for each in (1.03, 2.18, 3.0, 5.0)],  # intervals of 10 %
    )
    assert report.n == 4
    assert report.mape == pytest.approx((0.03 + 0.09 + 0.25) / 4)
    assert report.within_5 == 0.5
    assert report.within_10 == 0.75
    assert report.coverage_90 == 0.75
    assert report.noise == pytest.approx(0.015)
    assert report.spearman == pytest.approx(1.0)
    assert report.kendall == pytest.approx(1.0)


def test_ranks_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    measured = rng.uniform(1, 2, 40)
    predicted = measured * rng.normal(1, 0.2, 40)
    report = compare(measured.tolist(), predicted.tolist(), [0.01] * 40)
    assert report.spearman == pytest.approx(stats.spearmanr(measured, predicted).statistic)
    assert report.kendall == pytest.approx(stats.kendalltau(measured, predicted).statistic)
    # By definition, too: pairs in the same order less pairs in the opposite one.
    signs = [np.sign((measured[i] - measured[j]) * (predicted[i] - predicted[j])) for i in range(40) for j in range(i)]
    assert report.kendall == pytest.approx(np.mean(signs))


def test_the_interval_covers_what_it_promises() -> None:
    rng = np.random.default_rng(1)
    predicted = rng.uniform(1, 2, 20_000)
    measured = predicted * rng.normal(1, 0.02, 20_000)
    report = compare(measured.tolist(), predicted.tolist(), [0.0] * 20_000, (0.02 * predicted).tolist())
    assert report.coverage_90 == pytest.approx(0.9, abs=0.01)


def test_without_calibration_there_is_no_coverage() -> None:
    report = compare([1.0, 2.0], [1.0, 2.0], [0.1, 0.1])
    assert math.isnan(report.coverage_90)
    assert report.to_dict()["within_5"] == 1.0


@pytest.mark.parametrize(("measured", "predicted"), [([1.0], [1.0]), ([], []), ([1.0, 2.0], [1.0, 2.0, 3.0])])
def test_too_few_or_unpaired_figures_are_refused(measured: list[float], predicted: list[float]) -> None:
    with pytest.raises(ValueError, match=f"{len(measured)} measurements and {len(predicted)} predictions"):
        compare(measured, predicted, [0.1] * len(measured))
