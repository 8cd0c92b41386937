"""How well the scores of a super-net rank its members."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from hwnas.nn import ModelSpace
from hwnas.space import Sample
from hwnas.strategies.batches import load_batches
from hwnas.strategies.subnet_evaluation import Metric, subnet_scores


@dataclass(frozen=True)
class RankingQuality:
    """How well scores rank what they are meant to rank.

    Parameters
    ----------
    kendall_tau : float or None
        Tau-b: from -1 to 1, corrected for ties. None where all scores, or all true values, are equal.
    spearman_rho : float or None
        From -1 to 1, equal values sharing their mean rank. None as above.
    top_precision : float
        Of the `top` members with the highest scores, the fraction that are truly as good as the best `top`. Equal
        scores share the places that are left, so it is the expectation over random tie-breaking.
    regret : float
        The best true value less that of the member with the highest score (the mean over equal scores), in the unit of
        the true values; at least 0.
    """

    kendall_tau: float | None
    spearman_rho: float | None
    top_precision: float
    regret: float


@dataclass(frozen=True)
class RankingReport:
    """Scores of members in a super-net beside what they reach when trained alone.

    Parameters
    ----------
    truth : tuple of float
        What each member reaches when trained alone.
    scores : tuple of float or None
        With batch normalisation statistics of its own; None where there was nothing to estimate them on.
    uncalibrated_scores : tuple of float
        With the running statistics of the super-net.
    quality : RankingQuality or None
        Of `scores`.
    uncalibrated_quality : RankingQuality
        Of `uncalibrated_scores`.
    top : int
        How many members `RankingQuality.top_precision` is about.
    """

    truth: tuple[float, ...]
    scores: tuple[float, ...] | None
    uncalibrated_scores: tuple[float, ...]
    quality: RankingQuality | None
    uncalibrated_quality: RankingQuality
    top: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything in JSON types."""
        plain = asdict(self)
        lists = {name: list(value) for name, value in plain.items() if isinstance(value, tuple)}
        return {**plain, **lists}

    def __str__(self) -> str:
        """Return a table with a column for each kind of statistics."""
        columns = {"with own statistics": self.quality, "as trained": self.uncalibrated_quality}
        shown = {head: quality for head, quality in columns.items() if quality is not None}
        names = {
            "kendall_tau": "Kendall tau",
            "spearman_rho": "Spearman rho",
            "top_precision": f"precision of the top {self.top}",
            "regret": "regret of the best",
        }
        rows = [
            f"{name:<24}" + "".join(f"{_text(getattr(quality, field)):>22}" for quality in shown.values())
            for field, name in names.items()
        ]
        head = f"{f'{len(self.truth)} members':<24}" + "".join(f"{column:>22}" for column in shown)
        return "\n".join([head, *rows])


def _text(value: float | None) -> str:
    return "all equal" if value is None else f"{value:.3f}"


def ranking_quality(scores: Sequence[float], truth: Sequence[float], *, top: int = 10) -> RankingQuality:
    """Compare a ranking by scores with the true one; greater is better in both.

    Parameters
    ----------
    scores : sequence of float, shape (n,)
        What members are ranked by.
    truth : sequence of float, shape (n,)
        What they are worth.
    top : int
        How many members count as the best; n where there are fewer.

    Raises
    ------
    ValueError
        When there are less than two members, a value is not finite, or an argument does not fit.

    References
    ----------
    Kendall: The Treatment of Ties in Ranking Problems, Biometrika 1945.

    Examples
    --------
    >>> from hwnas.strategies import ranking_quality
    >>> ranking_quality([0.1, 0.3, 0.2], [0.6, 0.7, 0.9], top=1)
    RankingQuality(kendall_tau=0.333..., spearman_rho=0.5, top_precision=0.0, regret=0.2...)
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(f"got scores of shape {x.shape}, true values of shape {y.shape}; expected two or more of each")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"the scores {x.tolist()} or the true values {y.tolist()} are not all finite numbers")
    if top < 1:
        raise ValueError(f"top is {top}; expected at least 1")
    top = min(top, len(x))
    ordered = np.ptp(x) > 0 and np.ptp(y) > 0
    last_score, last_truth = np.sort(x)[-top], np.sort(y)[-top]
    # Each member's chance of a place among the best by score: what is left after the clearly better ones is shared.
    above, level = x > last_score, x == last_score
    chance = above + level * (top - above.sum()) / level.sum()
    return RankingQuality(
        kendall_tau=float(stats.kendalltau(x, y).statistic) if ordered else None,
        spearman_rho=float(stats.spearmanr(x, y).statistic) if ordered else None,
        top_precision=float(chance[y >= last_truth].sum() / top),
        regret=float(y.max() - y[x == x.max()].mean()),
    )


def ranking_report(
    supernet: ModelSpace,
    truth: Iterable[tuple[Sample, float]],
    *,
    val_batches: Iterable[Any],
    train_batches: Iterable[Any] | None = None,
    metric: Metric | None = None,
    recalibrate: bool | int = 20,
    top: int = 10,
    device: torch.device | None = None,
    seed: int = 0,
) -> RankingReport:
    """Score members in a super-net, with and without statistics of their own, and compare with the truth.

    The super-net is afterwards what it was before.

    Parameters
    ----------
    supernet : ModelSpace
        Trained; see `evaluate_subnet`.
    truth : iterable of (dict, float)
        Samples, and what they reach when trained alone; greater is better.
    val_batches, train_batches, metric, recalibrate, device, seed
        See `evaluate_subnet`. With ``recalibrate=False`` members are scored without statistics of their own only.
    top : int
        See `ranking_quality`.

    Returns
    -------
    RankingReport

    Raises
    ------
    ValueError
        When there are less than two members, or a true value is not finite.
    """
    pairs = [(sample, float(value)) for sample, value in truth]
    if len(pairs) < 2:
        raise ValueError(f"got {len(pairs)} members with a known result; a ranking has at least two")
    values = tuple(value for _, value in pairs)
    validation = load_batches(val_batches, seed=seed)

    def scored(recalibrate: bool | int) -> tuple[float, ...]:
        with subnet_scores(
            supernet,
            val_batches=validation,
            train_batches=train_batches,
            metric=metric,
            recalibrate=recalibrate,
            device=device,
            seed=seed,
        ) as score:
            return tuple(score(sample) for sample, _ in pairs)

    scores = None if recalibrate is False else scored(recalibrate)
    uncalibrated = scored(False)
    return RankingReport(
        truth=values,
        scores=scores,
        uncalibrated_scores=uncalibrated,
        quality=None if scores is None else ranking_quality(scores, values, top=top),
        uncalibrated_quality=ranking_quality(uncalibrated, values, top=top),
        top=min(top, len(values)),
    )
