"""What kernels/*.py recorded."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from hwnas.kernels.bench import cases

RESULTS = Path(__file__).parents[1] / "kernels" / "results"

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


def place(report: dict[str, Any]) -> str:
    """What it was measured on."""
    machine = report["machine"]
    parts = machine["processor"], f"{machine['cores']} cores", machine["instruction_set"], f"PyTorch {machine['torch']}"
    return ", ".join(parts)


def section(operator: str) -> list[str]:
    path = RESULTS / f"{operator}.json"
    if not path.exists():
        return [f"### {operator}", "", "Not recorded yet.", ""]
    report = json.loads(path.read_text())
    plot = f"![{operator}: ratios by shape](../benchmarks/kernels/results/{operator}.svg)"
    return [f"### {operator}", "", f"{place(report)}.", "", *table(report["rows"]), "", plot, ""]


def darts_step(file: str, title: str) -> list[str]:
    """A table of the ways to take a step of DARTS."""
    path = RESULTS / file
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    counts = {len(way["milliseconds"]) for run in report["runs"] for way in run["ways"].values()}
    rounds = " or ".join(map(str, sorted(counts)))
    lines = [
        f"### {title}",
        "",
        f"{report['cells']} cell(s), {report['channels']} channels, batches of {report['batch']}, "
        f"{'bfloat16 by autocast' if report['autocast'] else 'float32'}, {rounds} rounds; the gradients of "
        f"the architecture and those of the weights. {place(report)}.",
        "",
        "| threads | way | s | times faster than plain NCHW | than plain of this layout | peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for run in report["runs"]:
        for name, way in run["ways"].items():
            peak = f"{report['peak_bytes'][name] / 2**20:.0f}" if name in report["peak_bytes"] else ""
            lines.append(
                f"| {run['threads']} | {name} | {way['median_ms'] / 1e3:.2f} | {way['speedup_over_plain_nchw']:.2f} | "
                f"{way['speedup_over_plain_of_this_layout']:.2f} | {peak} |"
            )
    return [*lines, ""]


def sampled_step(file: str, title: str) -> list[str]:
    """A table of the ways to take a step of a sampled super-net."""
    path = RESULTS / file
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    lines = [
        f"### {title}",
        "",
        f"A member of a MobileNet-like space, batches of {report['batch']} images of {report['size']} pixels; median "
        f"of the ratios within a round, with quartiles. {place(report)}.",
        "",
        "| | " + " | ".join(f"{run['threads']} thread(s)" for run in report["runs"]) + " |",
        "|---" * (1 + len(report["runs"])) + "|",
    ]
    for name in report["runs"][0]["ratios"]:
        found = [run["ratios"][name] for run in report["runs"]]
        cells = [f"{each['median']:.2f} ({each['quartile1']:.2f}-{each['quartile3']:.2f})" for each in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    peaks = ", ".join(f"{name} {size / 2**20:.0f} MB" for name, size in report["peak_bytes"].items())
    return [*lines, "", f"Peak memory: {peaks}.", ""]


def layouts() -> list[str]:
    """A table of super-nets in both orders of memory."""
    path = RESULTS / "layouts.json"
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    lines = [
        "### The order of memory",
        "",
        "Forward and backward pass of super-nets on one thread: how many times faster with channels last than in NCHW, "
        f"median, least and largest over the rounds. {place(report)}.",
        "",
        "| space | step | batch | pixels | NCHW, ms | times faster |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        ratio = row["ratio"]
        lines.append(
            f"| {row['space']} | {row['step']} | {row['batch']} | {row['size']} | {row['nchw_ms']:.0f} | "
            f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['largest']:.2f}) |"
        )
    return [*lines, ""]


def figures() -> str:
    """Return steps first, then operators."""
    steps = [
        *darts_step("darts_step.json", "A whole step of DARTS"),
        *darts_step("darts_step_amd.json", "The same on an AMD processor"),
        *darts_step("darts_step_bfloat16.json", "The same in bfloat16"),
        *darts_step("darts_step_compiled.json", "One cell, beside torch.compile"),
        *sampled_step("sampled_step.json", "A whole step of a sampled super-net"),
        *sampled_step("sampled_step_amd.json", "The same on an AMD processor"),
        *layouts(),
    ]
    operators = dict.fromkeys(case.operator for case in cases())
    return "\n".join([*steps, *(line for operator in operators for line in section(operator))])
