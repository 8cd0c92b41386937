"""How well predicted latency agrees with measured latency, on members that took no part in the calibration.

    python benchmarks/latency_prediction.py [--members 30] [--seconds 45] [--batch-size 64]

Everything is measured anew. Beside the predictor stand what a user would reach for otherwise: multiply-adds with a
straight line fitted to the same calibration members, and the sum of the parts without any fit.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from hwnas.hub import DigitsSpace
from hwnas.profilers import FlopsProfiler, OnnxRuntimeLatencyProfiler
from hwnas.profilers.accuracy import compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "latency_prediction.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    space, images = DigitsSpace(), torch.randn(arguments.batch_size, 1, 8, 8)
    started = time.perf_counter()
    profiler = OnnxRuntimeLatencyProfiler(space, images, budget_s=arguments.seconds, seed=arguments.seed)
    profiling_s = time.perf_counter() - started
    macs = FlopsProfiler(space, images)

    rng = np.random.default_rng(1_000_000 + arguments.seed)
    held_out = [space.random(random_state=rng) for _ in range(arguments.members)]
    measured = profiler.measure(held_out)
    truth = [found.latency_ms for found in measured]
    noise = [found.stderr_ms for found in measured]

    anchor_truth = [found.latency_ms for found in profiler.measure(profiler.anchors)]
    slope, offset = np.polyfit([macs.profile(sample) for sample in profiler.anchors], anchor_truth, 1)
    guesses = {
        "hwnas": [profiler.profile(sample) for sample in held_out],
        "sum of parts, no fit": [profiler.unfitted(sample) for sample in held_out],
        "multiply-adds, straight line": [offset + slope * macs.profile(sample) for sample in held_out],
    }
    rows = {}
    print(f"{'predictor':<30} {'rho':>6} {'tau':>6} {'MAPE':>7} {'<=5 %':>7} {'<=10 %':>7}")
    for name, guess in guesses.items():
        residual = profiler.relative_residual if name == "hwnas" else float("nan")
        report = compare(truth, guess, noise, residual)
        rows[name] = {key: None if np.isnan(value) else value for key, value in report.to_dict().items()}
        print(
            f"{name:<30} {report.spearman:6.3f} {report.kendall:6.3f} {report.mape:7.1%} "
            f"{report.within_5:7.0%} {report.within_10:7.0%}"
        )
    hwnas = rows["hwnas"]
    print(
        f"{arguments.members} held-out members from {min(truth):.3f} to {max(truth):.3f} ms; profiling took "
        f"{profiling_s:.0f} s; median standard error of a measurement {hwnas['noise']:.1%}; "
        f"90 % intervals cover {hwnas['coverage_90']:.0%}"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "device": profiler.device.to_dict(),
        "target": profiler.target.to_dict(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "settings": {key: value for key, value in vars(arguments).items() if key != "out"},
        "profiling_s": profiling_s,
        "scale": profiler.scale,
        "traffic_ms": profiler.traffic_ms,
        "predictors": rows,
    }
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
