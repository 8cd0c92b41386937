"""Measures the native operators on this machine, prints tables and records results/<operator>.json and .svg.

    python benchmarks/kernels/operators.py [--operator mixed_sum ...] [--threads 1 2] [--seconds 1] [--no-compile]

What was recorded for other numbers of threads stays.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hwnas.atomic import write_text
from hwnas.kernels import describe
from hwnas.kernels.bench import Quartiles, Row, cases, measure, plot, table

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


def machine() -> dict[str, object]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "instruction_set": describe()["cpu"]["isa"],
        "load_average": os.getloadavg(),
    }


def recorded(path: Path, threads: list[int]) -> list[dict[str, Any]]:
    """Return the rows of a file that are of none of these numbers of threads."""
    if not path.exists():
        return []
    return [row for row in json.loads(path.read_text())["rows"] if row["threads"] not in threads]


def as_row(found: dict[str, Any]) -> Row:
    """Return a recorded row."""
    spread = {key: {name: Quartiles(**value) for name, value in found[key].items()} for key in ("times_us", "over")}
    limit = found["of_limit"] and Quartiles(**found["of_limit"])
    return Row(**{**found, **spread, "of_limit": limit})


def write(folder: Path, operator: str, machine: dict[str, object], rows: list[dict[str, Any]]) -> None:
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
        kept = recorded(arguments.out / f"{operator}.json", arguments.threads)
        every = sorted([*kept, *(asdict(row) for row in rows)], key=lambda row: row["threads"])
        write(arguments.out, operator, before, every)
        console.print(table(rows))


if __name__ == "__main__":
    main()
