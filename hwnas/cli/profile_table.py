"""The tables that a profile is shown in."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, Final

from hwnas.cli.output import compact, milliseconds, percent, print_lines, print_table, setting

PARTS_SHOWN = 10
COLUMNS: Final[Mapping[str, tuple[str, Callable[[float], str]]]] = {
    "latency_ms": ("latency (ms)", milliseconds),
    "macs": ("MACs", compact),
    "parameters": ("parameters", compact),
    "activation_bytes": ("activations (bytes)", compact),
    "peak_bytes": ("peak memory (bytes)", compact),
}
LABELS_SHOWN = 16  # a member with more is in the output of --json only
LINE = 79
_GLUE = "\u00a0"  # lines are not broken there


def print_profile(found: dict[str, Any]) -> None:
    """Print a profile, for people.

    Parameters
    ----------
    found : dict
        What ``hwnas profile --json`` prints.
    """
    _print_costs(found)
    _print_members(found)
    _print_parts(found["median_member"])
    report = found["accuracy"]
    print_lines(
        f"predicted against measured latency of {report['n']} members outside the calibration:",
        f"  rank correlation: Spearman {_number(report['spearman'])}, Kendall {_number(report['kendall'])}",
        f"  mean error {percent(report['mape'])}; within 5 %: {percent(report['within_5'], 0)}, "
        f"within 10 %: {percent(report['within_10'], 0)} of members",
        f"  inside the predicted 90 % interval: {percent(report['coverage_90'], 0)}; "
        f"noise of the measurements: {percent(report['noise'])}",
    )
    if "fvcore" in found:
        check = found["fvcore"]
        print_lines(
            f"largest relative difference of MACs on {check['members']} members:",
            f"  from fvcore {check['largest_difference']:.1e}; of products and convolutions from PyTorch's counter "
            f"{check['largest_torch_difference']:.1e}",
        )


def _print_costs(found: dict[str, Any]) -> None:
    target = found["target"]
    where = setting(found["space"], found["batch_size"], target["intra_op_threads"], target["precision"])
    size = "uncountably many" if found["members"] is None else f"{found['members']:,}"
    costs = found["costs"]
    shown = {
        title: [format(cost) for cost in costs[name].values()]
        for name, (title, format) in COLUMNS.items()
        if name in costs
    }
    headings = [f"{int(name[1:])} %" if name.startswith("q") else name for name in costs["latency_ms"]]
    rows = [(name, *cells) for name, cells in shown.items()]
    print_table(f"{where}; {size} members", ["cost", *headings], rows)
    print_lines(
        f"quantiles of {found['random_members']:,} random members, of which the rank correlation (Spearman)",
        f"of MACs and latency is {_number(found['spearman_macs_latency'])}",
        "",
    )


def _print_members(found: dict[str, Any]) -> None:
    members = {name: found[f"{name}_member"] for name in ("fastest", "median", "slowest")}
    told = {name: column for name, column in COLUMNS.items() if name in found["costs"]}
    rows = [
        (which, *(format(member[name]) for name, (_, format) in told.items()))
        for which, member in members.items()
        if member is not None
    ]
    print_table("members", ["", *(title for title, _ in told.values())], rows)
    for name, member in members.items():
        if member is not None and len(member["sample"]) <= LABELS_SHOWN:
            choices = [f"{label} = {value}".replace(" ", _GLUE) for label, value in member["sample"].items()]
            print_lines(*_wrapped(f"{name}: {', '.join(choices)}"))
    print_lines("")


def _print_parts(member: dict[str, Any]) -> None:
    total = member["latency_ms"]
    parts = [(part["name"], part["latency_ms"]) for part in member["parts"]]
    rest = parts[PARTS_SHOWN:]
    if rest:
        parts = [*parts[:PARTS_SHOWN], (f"{len(rest)} others", sum(cost for _, cost in rest))]
    rows = [(name, milliseconds(cost), percent(cost / total)) for name, cost in parts]
    print_table(f"parts of the median member, {milliseconds(total)} ms", ["part", "ms", "share"], rows)


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "undefined"


def _wrapped(text: str) -> list[str]:
    lines = textwrap.wrap(text, LINE, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [line.replace(_GLUE, " ") for line in lines]
