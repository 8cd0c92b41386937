"""The recorded table of digits-NB, and what is computed from it."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from space import OPERATORS, SLOTS, WIDTHS, members, name_of

from hwnas.cost import CostModel, Factor
from hwnas.evaluators.digits import N_TEST, N_VAL
from hwnas.profilers import Profiler
from hwnas.space import Sample

TABLE = Path(__file__).parents[1] / "results" / "digits_nb_table.json"
QUANTILES = (0.25, 0.5, 0.75)

Array = np.ndarray[Any, np.dtype[np.float64]]


def tau(a: Any, b: Any) -> float:
    """Return Kendall's tau-b of two rankings."""
    return float(kendalltau(a, b).statistic)


@dataclass
class GroundTruth:
    """Accuracy and latency of all members, in the order of `space.members`.

    Attributes
    ----------
    val, test : ndarray, shape (768, seeds)
        Accuracy on the validation and the test part; one column for each training seed.
    seconds : ndarray, shape (768,)
        Processor time of one training with its validation. All seeds of a member were trained side by side; this is
        the time of that, times what a single training takes of it.
    latency_ms : ndarray, shape (768, repeats)
        Medians of the repeats.
    record : dict
        The file.
    """

    val: Array
    test: Array
    seconds: Array
    latency_ms: Array
    record: dict[str, Any] = field(repr=False)

    @classmethod
    def load(cls, path: Path = TABLE) -> GroundTruth:
        """Read the file that ``table.py`` writes.

        Raises
        ------
        ValueError
            If it is not a table of this space.
        """
        record = json.loads(path.read_text())
        rows = record["members"]
        names = [name_of(sample) for sample in members()]
        if list(rows) != names:
            raise ValueError(f"{path} has {len(rows)} members that are not the {len(names)} of the space, in order")

        def column(name: str) -> Array:
            where = record["columns"].index(name)
            return np.array([rows[name][where] for name in names], dtype=np.float64)

        return cls(
            val=column("val_correct") / N_VAL,
            test=column("test_correct") / N_TEST,
            seconds=column("train_ms") / 1e3 * record["single_training"],
            latency_ms=column("latency_us") / 1e3,
            record=record,
        )

    def row(self, sample: Sample) -> int:
        """Return the row of a member."""
        row = 0
        for slot in SLOTS:
            row = row * len(OPERATORS) + OPERATORS.index(sample[slot])
        return row * len(WIDTHS) + WIDTHS.index(sample["width"])

    @property
    def latency(self) -> Array:
        """The latency of a member in milliseconds, shape (768,): the median of its repeats."""
        return np.median(self.latency_ms, axis=1)

    def budgets(self) -> dict[str, float]:
        """Return the budgets of the searches: quantiles of the measured latency, in milliseconds."""
        return {f"{quantile:.0%}": float(np.quantile(self.latency, quantile)) for quantile in QUANTILES}

    def profiler(self) -> Profiler:
        """Return the measured latency as a profiler: one factor over all five labels."""
        domain = {**{slot: list(OPERATORS) for slot in SLOTS}, "width": list(WIDTHS)}
        table = self.latency.reshape([len(values) for values in domain.values()])
        return Profiler(CostModel(domain, [Factor(tuple(domain), table, name="measured")], unit="ms"))

    def summary(self) -> dict[str, Any]:
        """Return what the table says as a whole: ranges, agreement between seeds and repeats, trade-off."""
        latency, mean_val, mean_test = self.latency, self.val.mean(1), self.test.mean(1)
        halves = [np.median(self.latency_ms[:, first::2], axis=1) for first in (0, 1)]
        # A whole repeat may be slow. That changes no ranking, so it is taken out before the scatter is told.
        relative = self.latency_ms / np.median(self.latency_ms / latency[:, None], axis=0) / latency[:, None]
        scatter = relative.std(axis=1, ddof=1)

        def between_columns(columns: Array) -> list[float]:
            pairs = itertools.combinations(range(columns.shape[1]), 2)
            return [round(tau(columns[:, i], columns[:, j]), 4) for i, j in pairs]

        repeats = between_columns(self.latency_ms)
        return {
            "members": len(latency),
            "val_accuracy_range": [round(float(self.val.min()), 4), round(float(self.val.max()), 4)],
            "mean_test_accuracy_range": [round(float(mean_test.min()), 4), round(float(mean_test.max()), 4)],
            "latency_ms_range": [round(float(latency.min()), 4), round(float(latency.max()), 4)],
            "tau_val_between_seeds": between_columns(self.val),
            "tau_test_between_seeds": between_columns(self.test),
            "tau_mean_val_mean_test": round(tau(mean_val, mean_test), 4),
            "tau_mean_val_latency": round(tau(mean_val, latency), 4),
            "tau_mean_test_latency": round(tau(mean_test, latency), 4),
            "tau_latency_between_repeats": [round(float(f(repeats)), 4) for f in (np.min, np.median, np.max)],
            "tau_latency_between_halves": round(tau(halves[0], halves[1]), 4),
            "latency_scatter": [round(float(np.quantile(scatter, q)), 4) for q in (0.5, 0.9)],
            "train_s_median": round(float(np.median(self.seconds)), 3),
            "train_s_range": [round(float(self.seconds.min()), 3), round(float(self.seconds.max()), 3)],
        }
