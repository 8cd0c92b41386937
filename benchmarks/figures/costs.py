"""What cost_model.py recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "results" / "cost_model.json"
HEAD = (
    "| space | labels | traced | FLOPs | parameters | activations | peak memory | expectation with gradients | "
    "members a second, indices | dictionaries | draws within one range, two ranges prepared |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)
COSTS = ("flops", "parameters", "activations", "peak")


def line(space: str, found: dict[str, Any]) -> str:
    """Return the row of a space; of expectations it has the least and the largest."""
    built = ["-" if found[f"{cost}_s"] is None else f"{found[f'{cost}_s']:.1f} s" for cost in COSTS]
    spent = [found[key] for cost in COSTS if (key := f"expectation_{cost}_ms") in found]
    cells = [
        space,
        str(found["labels"]),
        f"{found['trace_s']:.1f} s",
        *built,
        f"{min(spent):.1f} to {max(spent):.1f} ms",
        f"{found['arrays_per_s'] / 1e6:.1f} million",
        f"{found['dictionaries_per_s'] / 1e6:.2f} million",
        f"{found['one_range_s']:.2f} s, {found['two_ranges_s']:.2f} s",
    ]
    return f"| {' | '.join(cells)} |"


def figures() -> str:
    """Return one row for each space of the hub."""
    spaces = json.loads(RECORD.read_text())["spaces"]
    loads = [found["load"] for found in spaces.values()]
    note = f"Seconds of the processor on one thread, at a load of {min(loads):.1f} to {max(loads):.1f}."
    return "\n".join([*HEAD, *(line(space, found) for space, found in spaces.items()), "", note])
