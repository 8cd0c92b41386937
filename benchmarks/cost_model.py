"""How fast the cost models of the hub's spaces are built and asked.

    python benchmarks/cost_model.py [SPACE ...]

For each space of the hub: seconds for the symbolic run, which profilers share, and beyond it for each profiler;
milliseconds of an expectation with gradients for all probabilities; members evaluated in a second, as arrays of option
indices and as dictionaries; seconds to prepare draws within one range and within two. Times are of the processor,
medians over rounds; the load of the machine stands beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import hwnas.hub
from hwnas.cost import CostModel, JointRanges, Range
from hwnas.errors import UnsupportedError
from hwnas.profilers import (
    ActivationMemoryProfiler,
    FlopsProfiler,
    NumParamsProfiler,
    PeakMemoryProfiler,
    TracedSpace,
)

SPACES = tuple(name for name in hwnas.hub.__all__ if name.endswith("Space"))

PROFILERS: dict[str, Any] = {
    "flops": FlopsProfiler,
    "parameters": NumParamsProfiler,
    "activations": ActivationMemoryProfiler,
    "peak": PeakMemoryProfiler,
}


def seconds(call: Callable[[], Any], rounds: int = 1) -> float:
    """Return the median time of the processor for a call."""
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def expectation_ms(model: CostModel, probabilities: dict[str, torch.Tensor], rounds: int) -> float:
    """Return the milliseconds that an expectation takes with its gradients; the first makes a plan and is left out."""
    model.expectation(probabilities).backward()
    return 1e3 * seconds(lambda: model.expectation(probabilities).backward(), 4 * rounds)


def figures(name: str, members: int, rounds: int) -> dict[str, Any]:
    space = getattr(hwnas.hub, name)()
    example = torch.zeros(1, *space.input_shape)
    traces: list[TracedSpace] = []
    trace_s = seconds(lambda: traces.append(TracedSpace(space, example)))
    models: dict[str, CostModel] = {}
    build_s: dict[str, float | None] = {}
    for key, profiler in PROFILERS.items():
        started = time.process_time()
        try:
            models[key] = profiler(space, traces[0]).cost_model
        except UnsupportedError as error:
            print(f"{name}, {key}: {error}")
        build_s[key] = time.process_time() - started if key in models else None
    model, size = models["flops"], models["parameters"]
    rows = model.sampler().draw(members)
    samples = model.samples(rows)
    probabilities = {
        label: torch.full((len(values),), 1 / len(values), requires_grad=True)
        for label, values in model.domain.values.items()
    }
    # Half of the way from the minimum to the median of random members.
    highs = [(each.minimum().cost + float(statistics.median(each.evaluate(rows[:2000])))) / 2 for each in (model, size)]
    draws = []
    within_one_s = seconds(lambda: model.sampler(None, highs[0]))
    joint = JointRanges([Range(model, high=highs[0]), Range(size, high=highs[1])])
    within_two_s = seconds(lambda: draws.append(joint.sampler()))
    return {
        "labels": len(model.labels),
        "tables": len(model.factors),
        "trace_s": trace_s,
        **{f"{key}_s": taken for key, taken in build_s.items()},
        **{f"expectation_{key}_ms": expectation_ms(each, probabilities, rounds) for key, each in models.items()},
        "arrays_per_s": members / seconds(lambda: model.evaluate(rows), rounds),
        "dictionaries_per_s": members / seconds(lambda: model.evaluate(samples), rounds),
        "one_range_s": within_one_s,
        "two_ranges_s": within_two_s,
        "two_ranges_1000_draws_s": seconds(lambda: draws[0].draw(1000)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="*", default=SPACES)
    parser.add_argument("--members", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cost_model.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    report: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "spaces": {}}
    for name in arguments.spaces:
        found = figures(name, arguments.members, arguments.rounds)
        report["spaces"][name] = {"load": os.getloadavg()[0], **found}
        print(name, ", ".join(f"{k} {v:.4g}" for k, v in found.items() if v is not None), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
