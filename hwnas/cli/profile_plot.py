"""The figure of a profile as SVG, written by hand: a library for plots would be needed for nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from hwnas.cli.output import compact, milliseconds, percent, setting

BINS = 32
POINTS = 1000
PARTS_SHOWN = 8
WIDTH, HEIGHT, GAP, MARGIN, TOP = 300, 190, 70, 64, 84  # pixels: of a panel, between panels, around them
INK, BAR, MARK, GRID = "#333333", "#0072b2", "#d55e00", "#dddddd"  # told apart by the colour-blind too
TITLES = {"latency_ms": "latency (ms)", "macs": "MACs", "parameters": "parameters"}


def plot(found: Mapping[str, Any], costs: Mapping[str, Sequence[float]]) -> str:
    """Draw a profile.

    Parameters
    ----------
    found : mapping
        What ``hwnas profile --json`` prints.
    costs : mapping of str to sequence of float
        ``latency_ms``, ``macs`` and ``parameters`` of random members, in one order.

    Returns
    -------
    str
        An SVG image: how each cost is distributed between its ends, multiply-adds against latency, the parts of the
        median member, and how well latency is predicted.
    """
    columns = [MARGIN + i * (WIDTH + GAP) for i in range(3)]
    rows = [TOP, TOP + HEIGHT + 100]
    members = "uncountably many" if found["members"] is None else f"{found['members']:.3g}"
    target = found["target"]
    where = setting(found["space"], found["batch_size"], target["intra_op_threads"], target["precision"])
    parts = [
        _text(MARGIN, 28, f"{where}; {members} members", size=16),
        _text(MARGIN, 50, _device(found), colour="#777777"),
    ]
    for column, name in zip(columns, TITLES, strict=True):
        parts += _distribution(Panel(column, rows[0]), TITLES[name], costs[name], found["costs"][name])
    parts += _scatter(Panel(columns[0], rows[1]), costs, found["spearman_macs_latency"])
    parts += _median(Panel(columns[1], rows[1]), found["median_member"])
    parts += _accuracy(Panel(columns[2], rows[1]), found["accuracy"])
    width, height = columns[-1] + WIDTH + MARGIN, rows[-1] + HEIGHT + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class Panel:
    """A place for a drawing: its left and upper edge."""

    left: float
    top: float

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.top + HEIGHT

    def title(self, text: str) -> str:
        """Write a heading above the panel."""
        return _text(self.left, self.top - 12, text, size=13)

    def frame(self) -> str:
        """Draw the two axes."""
        return f'<path d="M{self.left} {self.top}V{self.bottom}H{self.left + WIDTH}" fill="none" stroke="{INK}"/>'


@dataclass(frozen=True)
class Axis:
    """Numbers along a length of pixels."""

    low: float
    high: float
    start: float
    length: float

    def at(self, value: float) -> float:
        """Give the pixel of a number."""
        span = self.high - self.low
        return self.start + self.length * ((value - self.low) / span if span > 0 else 0.5)

    def ticks(self) -> list[float]:
        """Give a few round numbers within."""
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        power = 10.0 ** math.floor(math.log10(span / 3))
        step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 4)
        return [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _distribution(panel: Panel, title: str, costs: Sequence[float], spread: Mapping[str, float]) -> list[str]:
    """Draw a histogram between the least and the largest cost of all members."""
    low, high = _ends(costs, spread)
    across = Axis(low, high, panel.left, WIDTH)
    counts = [0] * BINS
    for cost in costs:
        share = (cost - low) / (high - low) if high > low else 0.5
        counts[min(BINS - 1, max(0, int(BINS * share)))] += 1
    bar, tallest = WIDTH / BINS, max(counts)
    parts = [panel.title(f"{title} of {len(costs):,} random members")]
    for i, count in enumerate(counts):
        if count:
            height = HEIGHT * 0.92 * count / tallest
            parts.append(
                f'<rect x="{panel.left + i * bar:.1f}" y="{panel.bottom - height:.1f}" width="{bar - 1:.1f}" '
                f'height="{height:.1f}" fill="{BAR}"/>'
            )
    middle = across.at(spread["q50"])
    parts.append(_line(middle, panel.top, middle, panel.bottom, MARK))
    parts.append(_text(middle + 4, panel.top + 8, f"median {compact_cost(title, spread['q50'])}", colour=MARK))
    parts += [panel.frame(), *_bottom_ticks(across, panel, title)]
    ends = [spread["min"], spread["max"]]
    if all(map(math.isfinite, ends)):
        told = " to ".join(compact_cost(title, end) for end in ends)
        parts.append(_text(panel.left + WIDTH / 2, panel.bottom + 34, f"all members: {told}", anchor="middle"))
    return parts


def _scatter(panel: Panel, costs: Mapping[str, Sequence[float]], correlation: float) -> list[str]:
    macs, latency = costs["macs"], costs["latency_ms"]
    across = Axis(*_padded(macs), panel.left, WIDTH)
    up = Axis(*_padded(latency), panel.bottom, -HEIGHT)
    rho = f"{correlation:.3f}" if math.isfinite(correlation) else "undefined"
    parts = [panel.title(f"latency (ms) against MACs: rank correlation {rho}")]
    for tick in up.ticks():
        y = up.at(tick)
        parts += [_line(panel.left, y, panel.left + WIDTH, y, GRID), _text(panel.left - 6, y + 4, f"{tick:.4g}", "end")]
    parts += [
        f'<circle cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="2" fill="{BAR}" fill-opacity="0.4"/>'
        for x, y in list(zip(macs, latency, strict=True))[:POINTS]
    ]
    return [*parts, panel.frame(), *_bottom_ticks(across, panel, "MACs")]


def _median(panel: Panel, member: Mapping[str, Any]) -> list[str]:
    """Draw the share of each part in the latency of the median member, the largest first."""
    total = member["latency_ms"]
    rows = [(part["name"], part["latency_ms"] / total) for part in member["parts"]]
    if len(rows) > PARTS_SHOWN:
        rest = rows[PARTS_SHOWN - 1 :]
        rows = [*rows[: PARTS_SHOWN - 1], (f"{len(rest)} others", sum(share for _, share in rest))]
    across = Axis(0.0, max([share for _, share in rows] + [0.01]), 0.0, WIDTH * 0.6)
    parts = [panel.title(f"parts of the median member, {milliseconds(total)} ms")]
    height = HEIGHT / PARTS_SHOWN
    for i, (name, share) in enumerate(rows):
        y = panel.top + i * height
        left = panel.left + WIDTH * 0.4
        width = across.at(max(share, 0.0))
        shown = name if len(name) <= 22 else f"…{name[-21:]}"
        parts += [
            _text(left - 6, y + height / 2 + 4, shown, anchor="end"),
            f'<rect x="{left:.1f}" y="{y + 3:.1f}" width="{width:.1f}" height="{height - 6:.1f}" fill="{BAR}"/>',
            _text(left + width + 4, y + height / 2 + 4, percent(share)),
        ]
    return parts


def _accuracy(panel: Panel, report: Mapping[str, float]) -> list[str]:
    """Draw the mean error of predictions beside the noise of what they are compared with."""
    parts = [panel.title(f"predicted against measured, {report['n']} members")]
    bars = [("mean error", report["mape"], BAR), ("noise of measuring", report["noise"], MARK)]
    shown = [value for _, value, _ in bars if math.isfinite(value)]
    across = Axis(0.0, max([*shown, 0.01]), 0.0, WIDTH * 0.45)
    left = panel.left + WIDTH * 0.4
    for i, (name, value, colour) in enumerate(bars):
        y = panel.top + 26 * i
        width = across.at(value) if math.isfinite(value) else 0.0
        parts += [
            _text(left - 6, y + 14, name, anchor="end"),
            f'<rect x="{left:.1f}" y="{y + 3}" width="{width:.1f}" height="16" fill="{colour}"/>',
            _text(left + width + 4, y + 15, percent(value)),
        ]
    figures = (
        ("rank correlation (Spearman)", _ratio(report["spearman"])),
        ("rank correlation (Kendall)", _ratio(report["kendall"])),
        ("within 5 % of the measurement", percent(report["within_5"], 0)),
        ("within 10 % of the measurement", percent(report["within_10"], 0)),
        ("inside the 90 % interval", percent(report["coverage_90"], 0)),
    )
    for i, (name, figure) in enumerate(figures):
        y = panel.top + 84 + 22 * i
        parts += [_text(panel.left, y, name), _text(panel.left + WIDTH, y, figure, anchor="end")]
    return parts


def compact_cost(title: str, cost: float) -> str:
    """Write a cost of one of the panels."""
    return f"{milliseconds(cost)} ms" if title == TITLES["latency_ms"] else compact(cost)


def _device(found: Mapping[str, Any]) -> str:
    target, device = found["target"], found["device"]
    named = [device.get("cpu"), target.get("provider"), target.get("precision")]
    return ", ".join(str(name) for name in named if name)


def _ends(costs: Sequence[float], spread: Mapping[str, float]) -> tuple[float, float]:
    """Give the exact ends, or those of the random members where they are unknown."""
    low, high = spread["min"], spread["max"]
    return low if math.isfinite(low) else min(costs), high if math.isfinite(high) else max(costs)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def _bottom_ticks(across: Axis, panel: Panel, title: str) -> list[str]:
    parts = []
    for tick in across.ticks():
        x = across.at(tick)
        label = f"{tick:.4g}" if title == TITLES["latency_ms"] else compact(tick)
        parts += [_line(x, panel.bottom, x, panel.bottom + 4, INK), _text(x, panel.bottom + 17, label, "middle")]
    return parts


def _ratio(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "undefined"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", *, size: int = 11, colour: str = INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(text)}</text>'
    )
