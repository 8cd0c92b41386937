"""How well predicted latency agrees with measured latency, on members that took no part in the calibration.

    python benchmarks/latency_prediction.py [--spaces mobile cell digits darts] [--seeds 0 1] [--precision fp32]

Spaces, each with new members for every seed: blocks of ProxylessNAS, the cell of NAS-Bench-201 repeated as in the
benchmark, small residual networks in batches of 64, and, when asked for, eight cells of DARTS. Everything is measured
anew. Beside the predictor stand the sum of the parts without any correction, and what a user would reach for otherwise:
multiply-adds with a straight line fitted to the same calibration members. The noise floor is how well a second
measurement of the same members agrees with the first one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwnas.atomic import write_text
from hwnas.hub import DARTSSpace, DigitsSpace, ProxylessNASSpace
from hwnas.hub.nas_bench_201 import NASBench201Space
from hwnas.nn import ModelSpace
from hwnas.profilers import FlopsProfiler, LatencyStore, OnnxRuntimeLatencyProfiler, OrtTarget
from hwnas.profilers.accuracy import AccuracyReport, compare
from hwnas.profilers.latency_parts import Members, held_out_members
from hwnas.profilers.measuring import measure
from hwnas.profilers.traced_space import TracedSpace
from hwnas.space import Sample

SPACES: dict[str, tuple[Callable[[], ModelSpace], tuple[int, ...]]] = {
    "mobile": (lambda: ProxylessNASSpace(classes=100), (1, 3, 96, 96)),
    "cell": (NASBench201Space, (1, 3, 32, 32)),
    "digits": (DigitsSpace, (64, 1, 8, 8)),
    "darts": (lambda: DARTSSpace(width=16, num_cells=8), (1, 3, 32, 32)),
}
FIGURES = ("spearman", "mape", "within_5", "within_10", "coverage_90")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=["mobile", "cell", "digits"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--members", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=45.0, help="for the parts and the calibration members")
    parser.add_argument("--calibration", type=int, default=20)
    parser.add_argument("--precision", choices=["fp32", "int8"], default="fp32")
    parser.add_argument("--out", type=Path, help="of this precision in results unless given; other runs in it stay")
    arguments = parser.parse_args()
    suffix = "" if arguments.precision == "fp32" else f"_{arguments.precision}"
    out = arguments.out or Path(__file__).parent / "results" / f"latency_prediction{suffix}.json"
    torch.set_num_threads(1)
    target = OrtTarget(precision=arguments.precision)
    runs = json.loads(out.read_text())["runs"] if out.exists() else []
    for name in arguments.spaces:
        for seed in arguments.seeds:
            run = judge(name, seed, target, arguments)
            what = ("space", "seed", "device")
            runs = [*(each for each in runs if any(each[key] != run[key] for key in what)), run]
            # After each run, so that a long series leaves what it has.
            record = {
                "target": target.to_dict(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "runs": runs,
            }
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out, json.dumps(record, indent=2) + "\n")


def judge(name: str, seed: int, target: OrtTarget, arguments: argparse.Namespace) -> dict[str, Any]:
    """Build the profiler of a space and compare its predictions with measurements."""
    make, shape = SPACES[name]
    space, images = make(), torch.randn(shape)
    load, started = os.getloadavg()[0], time.perf_counter()
    profiler = OnnxRuntimeLatencyProfiler(
        space,
        images,
        target,
        store=LatencyStore(),
        budget_s=arguments.seconds,
        calibration=arguments.calibration,
        seed=1000 * seed,
    )
    profiling_s = time.perf_counter() - started
    held_out = held_out_members(space, arguments.members, 1_000_000 + seed)
    measured = profiler.measure(held_out)
    truth = [found.latency_ms for found in measured]
    noise = [found.stderr_ms for found in measured]
    predicted = [profiler.predict(sample) for sample in held_out]
    macs = FlopsProfiler(space, images)
    anchors = [found.latency_ms for found in profiler.measure(profiler.anchors)]
    slope, offset = np.polyfit([macs.profile(sample) for sample in profiler.anchors], anchors, 1)
    rows = {
        "hwnas": compare(truth, [p.latency_ms for p in predicted], noise, [p.stderr_ms for p in predicted]),
        "sum of parts": compare(truth, [profiler.unfitted(sample) for sample in held_out], noise),
        "multiply-adds, line": compare(truth, [offset + slope * macs.profile(sample) for sample in held_out], noise),
        "noise floor": compare(truth, again(space, images, held_out, target, truth), noise),
    }
    print(
        f"{name}, seed {seed}, {target.precision}, {profiler.granularity}: "
        f"{len(truth)} members of {min(truth):.2f} to {max(truth):.2f} ms; "
        f"profiling took {profiling_s:.0f} s; load {load:.1f} to {os.getloadavg()[0]:.1f}; "
        f"noise {rows['hwnas'].noise:.1%}"
    )
    print(f"  {'':<20} {'rho':>6} {'MAPE':>7} {'<=5 %':>7} {'<=10 %':>7} {'90 % cover':>10}")
    for title, report in rows.items():
        print("  " + line(title, report), flush=True)
    return {
        "space": name,
        "seed": seed,
        "settings": {key: getattr(arguments, key) for key in ("members", "seconds", "calibration")},
        "device": profiler.device.to_dict(),
        "load": [load, os.getloadavg()[0]],
        "granularity": profiler.granularity,
        "profiling_s": profiling_s,
        "relative_residual": profiler.relative_residual,
        "latency_ms": [min(truth), max(truth)],
        "median_ratio": float(np.median([m / p.latency_ms for m, p in zip(truth, predicted, strict=True)])),
        "rows": {title: clean(report.to_dict()) for title, report in rows.items()},
    }


def again(
    space: ModelSpace, images: torch.Tensor, samples: Sequence[Sample], target: OrtTarget, truth: Sequence[float]
) -> list[float]:
    """Measure members once more in a session of their own, scaled to the first one."""
    members = Members(TracedSpace(space, images))
    keys = [members.member(sample) for sample in samples]
    workloads = members.workloads(list(dict.fromkeys(keys)), target)
    session = measure(workloads, target, budget_s=3 + 1.5 * len(workloads), seed=1)
    second = np.array([session.measurements[key].latency_ms for key in keys])
    return [float(each) for each in second * np.median(np.array(truth) / second)]


def line(title: str, report: AccuracyReport) -> str:
    rho, mape, five, ten, cover = (getattr(report, figure) for figure in FIGURES)
    return f"{title:<20} {rho:6.3f} {mape:7.1%} {five:7.0%} {ten:7.0%} {cover:10.0%}"


def clean(figures: dict[str, float]) -> dict[str, float | None]:
    """Give null for what is not a number, which JSON does not know."""
    return {key: None if np.isnan(value) else value for key, value in figures.items()}


if __name__ == "__main__":
    main()
