"""Measures the native operators on this machine, prints tables and records results/<operator>.json and .svg.

    python benchmarks/kernels/operators.py [--operator mixed_sum ...] [--threads 1 2] [--seconds 1] [--no-compile]

What was recorded for other numbers of threads stays, if it was on the same processor.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from hwnas.atomic import write_text
from hwnas.kernels.bench import Quartiles, Row, cases, machine, measure, plot, table

RESULTS = Path(__file__).parent / "results"


def recorded(path: Path, processor: str, threads: list[int]) -> list[dict[str, Any]]:
    """Return the rows of a file that are of the same processor and of none of these numbers of threads."""
    found = json.loads(path.read_text()) if path.exists() else {"machine": {}}
    if found["machine"].get("processor") != processor:
        return []
    return [row for row in found["rows"] if row["threads"] not in threads]


def as_row(found: dict[str, Any]) -> Row:
    """Return a recorded row."""
    spread = {key: {name: Quartiles(**value) for name, value in found[key].items()} for key in ("times_us", "over")}
    limit = found["of_limit"] and Quartiles(**found["of_limit"])
    return Row(**{**found, **spread, "of_limit": limit})


def write(folder: Path, operator: str, machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write rows and their picture."""
    write_text(folder / f"{operator}.json", json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    picture = plot([as_row(row) for row in rows], f"{operator} on {machine['processor']}")
    write_text(folder / f"{operator}.svg", picture)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the native operators and record the results.")
    parser.add_argument("--operator", nargs="+", default=[], help="which; else all")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each phase at each shape")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    arguments = parser.parse_args()
    console = Console(width=180)
    chosen = cases(arguments.operator)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for operator in dict.fromkeys(case.operator for case in chosen):
        of_one = [case for case in chosen if case.operator == operator]
        before, rows = machine(), []
        for threads in arguments.threads:
            with console.status("") as status:
                rows += measure(
                    of_one, threads, arguments.seconds, compiled=not arguments.no_compile, progress=status.update
                )
        kept = recorded(arguments.out / f"{operator}.json", before["processor"], arguments.threads)
        every = sorted([*kept, *(asdict(row) for row in rows)], key=lambda row: row["threads"])
        write(arguments.out, operator, before, every)
        console.print(table(rows))


if __name__ == "__main__":
    main()
