"""Writes the figures of docs/kernels.md from results/<operator>.json; --check only tells whether they are there.

python benchmarks/kernels/report.py [--check]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from hwnas.atomic import write_text
from hwnas.kernels import native

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
BEGIN, END = "<!-- figures: written by benchmarks/kernels/report.py -->\n", "<!-- end of figures -->\n"

Row = dict[str, Any]


def span(values: list[float], form: str) -> str:
    """The least, the middle and the largest."""
    if not values:
        return "-"
    return " / ".join(format(value, form) for value in (min(values), statistics.median(values), max(values)))


def table(rows: list[Row]) -> list[str]:
    rivals = list(dict.fromkeys(name for row in rows for name in row["over"]))
    heads = ["layout", "type", "phase", "threads", "shapes", *(f"times faster than {name}" for name in rivals)]
    lines = ["| " + " | ".join([*heads, "share of the limit"]) + " |", "|---" * (len(heads) + 1) + "|"]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["layout"], row["dtype"], row["phase"], str(row["threads"])), []).append(row)
    for group, members in groups.items():
        cells = [*group, str(len(members))]
        cells += [
            span([row["over"][name]["median"] for row in members if name in row["over"]], ".2f") for name in rivals
        ]
        cells.append(span([row["of_limit"]["median"] for row in members if row["of_limit"]], ".0%"))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def section(operator: str) -> list[str]:
    path = RESULTS / f"{operator}.json"
    if not path.exists():
        return [f"### {operator}", "", "Not recorded yet.", ""]
    report = json.loads(path.read_text())
    machine = report["machine"]
    where = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['instruction_set']}, PyTorch {machine['torch']}"
    )
    plot = f"![{operator}: ratios by shape](../benchmarks/kernels/results/{operator}.svg)"
    return [f"### {operator}", "", f"{where}.", "", *table(report["rows"]), "", plot, ""]


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the figures of docs/kernels.md.")
    parser.add_argument("--check", action="store_true", help="change nothing, fail when they are not up to date")
    arguments = parser.parse_args()
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    figures = "\n".join(line for operator in native.OPERATORS for line in section(operator))
    new = f"{head}{BEGIN}\n{figures}\n{END}{tail}"
    if arguments.check:
        return int(new != page)
    write_text(PAGE, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
