"""Results on stdout: as tables to read, or as one JSON object."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 240  # a file has no edge: rows stay whole


def print_json(data: Any) -> None:
    """Print `data` as one JSON object; numbers that JSON does not have become null."""
    print(json.dumps(_finite(data), indent=2, allow_nan=False))


def print_lines(*lines: str) -> None:
    """Print lines as they are."""
    for line in lines:
        print(line)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> None:
    """Print a table.

    Parameters
    ----------
    title : str
        Stands above.
    columns : sequence of str
        Headings.
    rows : sequence of sequence of str
        As many cells as there are headings.
    texts : int, default 1
        How many columns, from the first on, hold text; the others hold numbers and stand to the right.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, name in enumerate(columns):
        table.add_column(name, justify="left" if position < texts else "right")
    for row in rows:
        table.add_row(*row)
    print_lines(title)
    print_rich(table)
    print_lines("")


def print_rich(table: Table) -> None:
    """Print a table of rich, as wide as the terminal, or as wide as it needs elsewhere."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(width=width, markup=False, highlight=False, emoji=False).print(table)


def setting(space: str, batch_size: int, threads: int, precision: str = "fp32") -> str:
    """Say for which space, batch, threads and precision the figures of a table hold."""
    named = f"{space}: batches of {batch_size}, {threads} thread{'' if threads == 1 else 's'}"
    return named if precision == "fp32" else f"{named}, {precision}"


def compact(number: float) -> str:
    """Give a count with three digits and a suffix: 1.23 M."""
    if not math.isfinite(number):
        return "unknown"
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= 0.9995 * size:  # what would round to 1000 of the smaller suffix
            scaled = number / size
            return f"{scaled:.0f}{suffix}" if abs(scaled) >= 100 else f"{scaled:.3g}{suffix}"
    return f"{number:.0f}"


def milliseconds(value: float, deviation: float | None = None) -> str:
    """Give a latency in milliseconds, with what it may be off by where that is known."""
    # To the microsecond, and finer where that would leave fewer than three digits.
    decimals = max(3, 2 - math.floor(math.log10(value))) if 0 < value < math.inf else 3
    text = f"{value:.{decimals}f}"
    return text if deviation is None or not math.isfinite(deviation) else f"{text} ± {deviation:.{decimals}f}"


def percent(share: float, digits: int = 1) -> str:
    """Give a share as a percentage."""
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "unknown"


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return data
