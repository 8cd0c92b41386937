"""Rows of a measurement, laid out for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from hwnas.kernels.bench.measure import Quartiles, Row


def rivals(rows: Sequence[Row]) -> list[str]:
    """Return the names of all contenders but ``native``, in the order in which they appear."""
    return list(dict.fromkeys(name for row in rows for name in row.over))


def table(rows: Sequence[Row]) -> Table:
    """Lay rows out for a terminal.

    Parameters
    ----------
    rows : sequence of Row
        What `measure` returned.

    Returns
    -------
    rich.table.Table
        Time of the kernel, how many times faster it is than each other contender, and its share of the limit:
        medians, with quartiles in brackets.
    """
    result = Table(title="The compiled kernels: time of a call, and how many times faster than others")
    for name in ("operator", "shape", "layout", "dtype", "phase"):
        result.add_column(name)
    others = rivals(rows)
    for name in ("threads", "microseconds", *(f"over {name}" for name in others), "of the limit"):
        result.add_column(name, justify="right")
    for row in rows:
        native = row.times_us["native"]
        result.add_row(
            *(row.operator, row.shape, row.layout, row.dtype, row.phase, str(row.threads)),
            f"{native.median:.1f} ({native.low:.1f}-{native.high:.1f})",
            *(_ratio(row.over.get(name)) for name in others),
            "-" if row.of_limit is None else f"{row.of_limit.median:.0%}",
        )
    return result


def _ratio(ratio: Quartiles | None) -> str:
    return "-" if ratio is None else f"{ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"
