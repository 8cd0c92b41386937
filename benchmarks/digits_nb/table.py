"""The table of digits-NB: accuracy and latency of all 768 members.

    python benchmarks/digits_nb/table.py [--journal build/digits_nb] [--stage train|latency|all]

Training takes about 25 minutes of one core, and the latencies two, for which the machine should be quiet. It may be
killed and started again: what is done is kept in the folder of the journals.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ground_truth import TABLE, GroundTruth
from journal import Journal
from latency import BATCH_SIZE, RUNS, compose, export_parts, measure_all
from space import DigitsBench, members, name_of
from training import Recipe, train_member

from hwnas.atomic import write_text
from hwnas.evaluators import digits
from hwnas.profilers import OrtTarget, describe_device
from hwnas.profilers.runner import choose_clock

SEEDS = (0, 1, 2)
REPEATS = 12
TIMED = 24  # members that are trained under a single seed as well, to tell what that costs
ROOT = Path(__file__).parents[2]


def trained_members(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what all processes have trained so far, by name."""
    journals = (Journal(path, settings) for path in sorted(folder.glob("training-*.jsonl")))
    return {line["name"]: line for journal in journals for line in journal}


def train_share(journal: Journal, done: Container[str], recipe: Recipe, share: tuple[int, int]) -> None:
    """Train a share of the members under every seed; one line of the journal is one member."""
    space, data = DigitsBench(), digits()
    train_member(space, members()[0], SEEDS, data, recipe)  # the first one would pay for what torch sets up
    started = time.perf_counter()
    number, of = share
    missing = [sample for sample in members()[number::of] if name_of(sample) not in done]
    for position, sample in enumerate(missing, start=1):
        found = train_member(space, sample, SEEDS, data, recipe)
        journal.add(
            {
                "name": name_of(sample),
                "val_correct": found.val_correct,
                "test_correct": found.test_correct,
                "seconds": round(found.seconds, 4),
            }
        )
        if position % 16 == 0:
            each = (time.perf_counter() - started) / position
            left = each * (len(missing) - position)
            print(f"{position} of {len(missing)} members, {each:.2f} s each, {left:.0f} s left", flush=True)


def measure_times(journal: Journal, recipe: Recipe) -> None:
    """Measure every member; the journal holds the whole measurement or nothing, as its parts belong together."""
    if len(journal):
        return
    parts = export_parts(members())
    latency_ms, seconds = measure_all([compose(parts, sample) for sample in members()], REPEATS)
    journal.add(
        {
            "latency_us": np.round(latency_ms * 1e3, 1).tolist(),
            "seconds_of_repeats": [round(each, 1) for each in seconds],
            "single_training": round(single_cost(recipe), 3),
            "clock": choose_clock(OrtTarget())[0],
            "target": OrtTarget().to_dict(),
            "device": describe_device().to_dict(),
        }
    )


def single_cost(recipe: Recipe) -> float:
    """Return the time of training a member once over that of all seeds side by side, the median of some members."""
    space, data = DigitsBench(), digits()
    samples = members()[:: len(members()) // TIMED]
    train_member(space, samples[0], SEEDS, data, recipe)  # the first one would pay for what torch sets up
    ratios = []
    for sample in samples:
        single, together = (train_member(space, sample, seeds, data, recipe).seconds for seeds in (SEEDS[:1], SEEDS))
        ratios.append(single / together)
    return float(np.median(ratios))


def write_table(path: Path, trained: dict[str, Any], latency: Journal, recipe: Recipe) -> None:
    """Join the journals to one file, all or nothing."""
    measured = dict(next(iter(latency)))
    rows = {
        name: [
            trained[name]["val_correct"],
            trained[name]["test_correct"],
            round(trained[name]["seconds"] * 1e3),
            microseconds,
        ]
        for name, microseconds in zip(map(name_of, members()), measured.pop("latency_us"), strict=True)
    }
    head = {
        "schema_version": 1,
        "recipe": recipe.to_dict(),
        "seeds": list(SEEDS),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "single_training": measured.pop("single_training"),
        "latency": {"batch_size": BATCH_SIZE, "runs": RUNS, "repeats": REPEATS, **measured},
        "columns": ["val_correct", "test_correct", "train_ms", "latency_us"],
    }
    # One line for each member keeps the file readable and small.
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row, separators=(',', ':'))}" for name, row in rows.items())
    write_text(path, f'{json.dumps(head, indent=1)[:-2]},\n "members": {{\n{lines}\n}}}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "digits_nb", help="folder of what is done")
    parser.add_argument("--stage", choices=("train", "latency", "all"), default="all")
    parser.add_argument("--share", default="0/1", help="1/2 is the second half; several may be trained at once")
    parser.add_argument("--out", type=Path, default=TABLE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe()
    number, of = (int(part) for part in arguments.share.split("/"))
    settings = {**recipe.to_dict(), "seeds": list(SEEDS)}
    latency = Journal(arguments.journal / "latency.jsonl", {"batch_size": BATCH_SIZE, "runs": RUNS, "repeats": REPEATS})
    if arguments.stage in ("train", "all"):
        done = trained_members(arguments.journal, settings)
        journal = Journal(arguments.journal / f"training-{number}-of-{of}.jsonl", settings)
        train_share(journal, done, recipe, (number, of))
    if arguments.stage in ("latency", "all"):
        measure_times(latency, recipe)
    trained = trained_members(arguments.journal, settings)
    if len(trained) == len(members()) and len(latency):
        write_table(arguments.out, trained, latency, recipe)
        for name, value in GroundTruth.load(arguments.out).summary().items():
            print(f"{name:<32} {value}")


if __name__ == "__main__":
    main()
