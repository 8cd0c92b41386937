"""What latency_prediction.py recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
FILES = ("latency_prediction.json", "latency_prediction_int8.json")

SPACES = {
    "mobile": "ProxylessNAS blocks, 96x96, batch 1",
    "cell": "NAS-Bench-201, 32x32, batch 1",
    "digits": "digits, 8x8, batches of 64",
    "darts": "DARTS, 8 cells of 16 channels, 32x32, batch 1, 20 members",
}
ROWS = {
    "hwnas": "hwnas",
    "sum of parts": "parts without correction",
    "multiply-adds, line": "multiply-adds, straight line",
    "noise floor": "measured again",
}
HEAD = (
    "| space | precision | predictor | Spearman | mean error | within 5 % | within 10 % | in the 90 % interval |",
    "|---|---|---|---|---|---|---|---|",
)


def lines(record: dict[str, Any]) -> Iterator[str]:
    """Yield the rows of one recording; figures of its seeds stand beside each other."""
    precision = record["target"]["precision"]
    for space, title in SPACES.items():
        runs = [run for run in record["runs"] if run["space"] == space]
        for row, predictor in ROWS.items() if runs else ():
            found = [run["rows"][row] for run in runs]
            first = (title, f"{precision}, {runs[0]['granularity']}") if row == "hwnas" else ("", "")
            covered = [figures["coverage_90"] for figures in found]
            cells = (
                *first,
                predictor,
                ", ".join(f"{figures['spearman']:.3f}" for figures in found),
                *(
                    ", ".join(f"{figures[name]:.{digits}%}" for figures in found)
                    for name, digits in (("mape", 1), ("within_5", 0), ("within_10", 0))
                ),
                "" if None in covered else ", ".join(f"{each:.0%}" for each in covered),
            )
            yield "| " + " | ".join(cells) + " |"
        if runs:
            spent, loads = [run["profiling_s"] for run in runs], [load for run in runs for load in run["load"]]
            yield (
                f"| | | profiling took {min(spent):.0f} to {max(spent):.0f} s, at a load of {min(loads):.1f} to "
                f"{max(loads):.1f} | | | | | |"
            )


def figures() -> str:
    """Return one table for all recordings."""
    records = [json.loads((RESULTS / file).read_text()) for file in FILES if (RESULTS / file).exists()]
    return "\n".join([*HEAD, *(row for record in records for row in lines(record))])
