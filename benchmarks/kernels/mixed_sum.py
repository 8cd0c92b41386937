"""Measures mixed_sum on this machine, prints a table and records it in results/mixed_sum.json.

python benchmarks/kernels/mixed_sum.py [--threads 1 2] [--seconds 1] [--no-compile]
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from hwnas.atomic import write_text
from hwnas.kernels import describe
from hwnas.kernels.bench import bench, table

RESULT = Path(__file__).parent / "results" / "mixed_sum.json"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure mixed_sum and record the result.")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each phase at each size")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    console = Console(width=150)
    rows = []
    for threads in arguments.threads:
        with console.status("") as status:
            rows += bench(threads, arguments.seconds, compiled=not arguments.no_compile, progress=status.update)
    cpu = describe()["cpu"]
    machine = {
        "processor": processor(),
        "torch": torch.__version__,
        "instruction_set": cpu["isa"],
        "load_average": Path("/proc/loadavg").read_text().split()[:3] if Path("/proc/loadavg").exists() else [],
    }
    write_text(RESULT, json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    console.print(machine)
    console.print(table(rows))


if __name__ == "__main__":
    main()
