"""A plot of the ratios as SVG, written by hand: a library for plots would be needed for nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from hwnas.kernels.bench.measure import Row
from hwnas.kernels.bench.table import rivals

LINE, LABELS, AXIS, MARGIN = 16, 420, 480, 24  # pixels: height of a row; widths of the labels, the axis, the edge
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by the colour-blind too


def plot(rows: Sequence[Row], title: str) -> str:
    """Draw how many times faster the kernel is than each contender, on a logarithmic axis.

    Parameters
    ----------
    rows : sequence of Row
        What `measure` returned, at least one.
    title : str
        Stands above.

    Returns
    -------
    str
        An SVG image: a line for each row, a dot for the median and a bar from the first to the third quartile
        for each contender.
    """
    others = rivals(rows)
    ends = [value for row in rows for ratio in row.over.values() for value in (ratio.low, ratio.high)]
    ticks = _ticks(min(ends), max(ends))
    top, width, bottom = 56, LABELS + AXIS + 2 * MARGIN, 56 + LINE * len(rows)

    def across(ratio: float) -> float:
        share = math.log(ratio / ticks[0]) / math.log(ticks[-1] / ticks[0])
        return LABELS + MARGIN + AXIS * share

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 32}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(MARGIN, 20, title, size=13),
    ]
    for number, name in enumerate(others):
        at = MARGIN + 150 * number
        parts += [_dot(at, 38, _colour(number)), _text(at + 8, 42, f"over {name}")]
    for tick in ticks:
        x, colour = across(tick), "#555555" if tick == 1 else "#dddddd"
        parts.append(f'<path d="M{x:.1f} {top}V{bottom}" stroke="{colour}"/>')
        parts.append(_text(x, bottom + 16, f"{tick:g}x", anchor="middle"))
    for number, row in enumerate(rows):
        y = top + LINE * (number + 0.5)
        label = f"{row.shape}, {row.layout}, {row.dtype}, {row.phase}, {row.threads} thr."
        parts.append(_text(LABELS + MARGIN - 8, y + 4, label, anchor="end"))
        for name, ratio in row.over.items():
            colour = _colour(others.index(name))
            low, high = across(ratio.low), across(ratio.high)
            parts.append(f'<path d="M{low:.1f} {y}H{high:.1f}" stroke="{colour}" stroke-width="2"/>')
            parts.append(_dot(across(ratio.median), y, colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    """Return the ticks that enclose a range, 1 among them."""
    first = max((tick for tick in TICKS if tick <= min(low, 1)), default=TICKS[0])
    last = min((tick for tick in TICKS if tick >= max(high, 2)), default=TICKS[-1])
    return [tick for tick in TICKS if first <= tick <= last]


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
