"""Quality of a ranking: by counting pairs and by enumerating the ways to break ties."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hwnas.strategies import RandomOneShot, RankingQuality, evaluate_subnet, ranking_quality, ranking_report


def tau_b(x: Any, y: Any) -> float:
    pairs = list(itertools.combinations(range(len(x)), 2))
    concordance = sum(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs)
    return concordance / math.sqrt(sum(x[i] != x[j] for i, j in pairs) * sum(y[i] != y[j] for i, j in pairs))


def rho(x: Any, y: Any) -> float:
    def ranks(values: Any) -> list[float]:
        return [sum(v < w for v in values) + (sum(v == w for v in values) + 1) / 2 for w in values]

    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def over_all_orders(x: Any, y: Any, top: int) -> tuple[float, float]:
    """Mean precision and regret over all orders that agree with the scores."""
    orders = [
        order
        for order in itertools.permutations(range(len(x)))
        if all(x[a] >= x[b] for a, b in itertools.pairwise(order))
    ]
    good = sorted(y)[-top]
    precision = np.mean([sum(y[i] >= good for i in order[:top]) / top for order in orders])
    regret = np.mean([max(y) - y[order[0]] for order in orders])
    return float(precision), float(regret)


@pytest.mark.parametrize("seed", range(12))
def test_quality_with_and_without_ties(seed):
    rng = np.random.default_rng(seed)
    levels = 3 if seed % 2 else 100
    x, y = rng.integers(levels, size=6).tolist(), rng.integers(levels, size=6).tolist()
    for top in (1, 2, 4, 6):
        quality = ranking_quality(x, y, top=top)
        assert quality.kendall_tau == pytest.approx(tau_b(x, y))
        assert quality.spearman_rho == pytest.approx(rho(x, y))
        assert (quality.top_precision, quality.regret) == pytest.approx(over_all_orders(x, y, top))


def test_perfect_reversed_and_uninformative():
    truth = [0.5, 0.7, 0.7, 0.9]
    assert ranking_quality(truth, truth, top=2) == RankingQuality(1.0, pytest.approx(1.0), 1.0, 0.0)
    reversed_ = ranking_quality([-value for value in truth], truth, top=2)
    assert reversed_.kendall_tau == pytest.approx(-1)
    assert reversed_.regret == pytest.approx(0.4)
    # Equal scores say nothing: what a random member gives.
    nothing = ranking_quality([1, 1, 1, 1], truth, top=1)
    assert (nothing.kendall_tau, nothing.spearman_rho) == (None, None)
    assert (nothing.top_precision, nothing.regret) == (pytest.approx(0.25), pytest.approx(0.2))
    assert ranking_quality([1, 2, 3], [5, 5, 5]).kendall_tau is None
    assert ranking_quality([1, 2], [1, 2], top=100).top_precision == 1


@pytest.mark.parametrize(
    ("scores", "truth", "top", "message"),
    [
        ([1], [1], 1, r"scores of shape \(1,\)"),
        ([1, 2], [1, 2, 3], 1, r"true values of shape \(3,\)"),
        ([[1, 2]], [[1, 2]], 1, r"scores of shape \(1, 2\)"),
        ([1, math.nan], [1, 2], 1, "not all finite"),
        ([1, 2], [1, math.inf], 1, "not all finite"),
        ([1, 2], [1, 2], 0, "top is 0"),
    ],
)
def test_bad_arguments(scores, truth, top, message):
    with pytest.raises(ValueError, match=message):
        ranking_quality(scores, truth, top=top)


def trained(kit: Any) -> Any:
    torch.manual_seed(0)
    strategy = RandomOneShot()
    strategy.run(kit.Net(), kit.evaluator(max_epochs=2))
    return strategy


def test_a_report(kit):
    strategy = trained(kit)
    supernet, before = strategy.supernet, kit.snapshot(strategy.supernet)
    batches = {
        "train_batches": strategy.evaluator.train_dataloaders,
        "val_batches": list(strategy.evaluator.val_dataloaders),
        "metric": lambda model, batches: -float(sum(F.cross_entropy(model(x), y) for x, y in batches)),
    }
    members = list(supernet.grid())
    truth = [float(np.sin(i)) for i in range(len(members))]
    report = ranking_report(supernet, zip(members, truth, strict=True), top=3, recalibrate=4, **batches)
    scores = [evaluate_subnet(supernet, sample, recalibrate=4, **batches) for sample in members]
    without = [evaluate_subnet(supernet, sample, recalibrate=False, **batches) for sample in members]
    assert scores != without
    assert (report.truth, report.scores, report.uncalibrated_scores) == (tuple(truth), tuple(scores), tuple(without))
    assert report.quality == ranking_quality(scores, truth, top=3)
    assert report.uncalibrated_quality == ranking_quality(without, truth, top=3)
    assert kit.equal(kit.snapshot(supernet), before)

    text = str(report).splitlines()
    assert text[0].split() == ["9", "members", "with", "own", "statistics", "as", "trained"]
    assert [line[:24].strip() for line in text[1:]] == [
        "Kendall tau",
        "Spearman rho",
        "precision of the top 3",
        "regret of the best",
    ]
    assert [float(value) for value in text[1][24:].split()] == [
        pytest.approx(report.quality.kendall_tau, abs=5e-4),
        pytest.approx(report.uncalibrated_quality.kendall_tau, abs=5e-4),
    ]
    stored = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert stored["scores"] == scores
    assert stored["quality"]["kendall_tau"] == report.quality.kendall_tau
    assert stored["top"] == 3

    plain = ranking_report(
        supernet,
        zip(members, truth, strict=True),
        val_batches=iter(batches["val_batches"]),
        metric=batches["metric"],
        recalibrate=False,
    )
    assert (plain.scores, plain.quality, plain.top) == (None, None, 9)
    assert plain.uncalibrated_scores == tuple(without)
    assert "own statistics" not in str(plain)


def test_equal_scores_are_named(kit):
    strategy = trained(kit)
    members = list(strategy.supernet.grid())[:2]
    report = ranking_report(
        strategy.supernet,
        zip(members, [1, 2], strict=True),
        val_batches=strategy.evaluator.val_dataloaders,
        metric=lambda *_: 1.0,
        recalibrate=False,
    )
    assert str(report).count("all equal") == 2
    assert report.to_dict()["uncalibrated_quality"]["kendall_tau"] is None


def test_a_report_needs_two_members(kit):
    strategy = trained(kit)
    with pytest.raises(ValueError, match="got 1 members"):
        ranking_report(strategy.supernet, [(strategy.supernet.default(), 0.5)], val_batches=[])
