"""Latencies of another device from a table, for a search within a budget of that device."""

from __future__ import annotations

from pathlib import Path

from hwnas.errors import HwnasError
from hwnas.profilers import TableProfiler
from hwnas.profilers.cost_table import SUFFIXES
from hwnas.space import Mutable, sample_to_json

NAME = "latency_ms"


def is_table(path: Path) -> bool:
    """Tell whether a path is to be read as a table, and not as what a folder of measuring has brought back."""
    if path.is_dir():
        return False
    suffix = path.suffix.lower()
    return suffix in SUFFIXES or (suffix != ".json" and path.is_file())


def latency_table(space: Mutable, path: Path) -> TableProfiler:
    """Read a table of latencies.

    Parameters
    ----------
    space : Mutable
        The space whose labels the file names.
    path : Path
        See `hwnas.profilers.TableProfiler`.

    Raises
    ------
    HwnasError
        When the file is no such table, its cost is not `latency_ms`, or a member would take less than no time.
    """
    profiler = TableProfiler(space, path)
    if profiler.name != NAME:
        raise HwnasError(
            f"{path}: its cost is {profiler.name!r}, and the budget is one of {NAME!r}. Give milliseconds, and name "
            f"them {NAME}: the heading of the last column in CSV, `cost` in YAML"
        )
    fastest = profiler.cost_model.minimum()
    if fastest.cost < 0:
        raise HwnasError(
            f"{path}: the figures of the member {sample_to_json(fastest.sample)} add up to {fastest.cost:g} ms; "
            "expected 0 or more. Correct the rows with negative figures, or add a constant: a row without labels"
        )
    return profiler
