"""Costs from a file of figures, such as latencies of a device that were measured by other means."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hwnas.errors import HwnasError
from hwnas.profilers.profiler import Profiler, build_cost_model, domain_of, masked
from hwnas.profilers.symbols import listed_values
from hwnas.profilers.tables import MAX_TABLE, Table, conjunction, disjunction
from hwnas.space import Mutable, Sample
from hwnas.space.node import Node
from hwnas.space.walk import Partial, Undecided

_SHOWN = 3  # combinations named in a message
_YAML_KEYS = {"cost", "constant", "tables"}
SUFFIXES = (".csv", ".yaml", ".yml")
"""Of the files that are read."""


@dataclass(frozen=True)
class _Row:
    """A cost of some values, and where it stands."""

    values: Mapping[str, Any]
    cost: Any
    where: str


class TableProfiler(Profiler):
    r"""A cost that is a sum of figures in a file.

    The figures of one set of labels are one addend: a cost for every combination of their values. It counts in the
    members in which all these labels are active. A figure without labels counts in every member.

    In a CSV file the last column is the cost and the others are labels; a cell is empty where a figure does not depend
    on the label::

        stem,layer,width,latency_ms
        ,,,0.05
        conv,,,0.31
        skip,,,0.00
        ,conv,8,0.92

    In a YAML file the same is written as::

        cost: latency_ms
        constant: 0.05
        tables:
          - labels: [stem]
            rows: [[conv, 0.31], [skip, 0.0]]
          - labels: [layer, width]
            rows: [[conv, 8, 0.92], ...]

    The name of the cost, such as ``latency_ms`` or ``energy_mj``, ends with its unit.

    Parameters
    ----------
    space : Mutable
        The space whose labels the file names.
    path : path-like
        A ``.csv``, ``.yaml`` or ``.yml`` file.

    Raises
    ------
    HwnasError
        When the file cannot be read, names what the space does not have, or lacks a combination or has it twice.

    Attributes
    ----------
    labels : tuple of str
        Those that the file names, in its order.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import hwnas.nn as nn
    >>> class Net(nn.ModelSpace):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.LayerChoice({"conv": nn.Conv2d(3, 3, 3), "skip": nn.Identity()}, label="layer")
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "phone.csv"
    >>> _ = path.write_text("layer,latency_ms\n,0.1\nconv,2.0\nskip,0.0\n")
    >>> profiler = TableProfiler(Net(), path)
    >>> profiler.name, profiler.profile({"layer": "conv"}), profiler.cost_model.minimum().cost
    ('latency_ms', 2.1, 0.1)
    """

    def __init__(self, space: Mutable, path: str | os.PathLike[str]) -> None:
        file = Path(path)
        name, rows = _read(file)
        domain = domain_of(space)
        groups: dict[tuple[str, ...], list[_Row]] = {}
        for row in rows:
            for label in row.values:
                if label not in domain:
                    raise HwnasError(
                        f"{row.where}: the space has no label {label!r} with listed values; it has {sorted(domain)}"
                    )
            groups.setdefault(tuple(row.values), []).append(row)
        self.labels = tuple(dict.fromkeys(label for labels in groups for label in labels))
        active = activity(space, self.labels)
        constant, parts = 0.0, []
        for labels, group in groups.items():
            table = _tabulated(labels, group, domain)
            if labels:
                parts.append((", ".join(labels), masked(table, [active[label] for label in labels])))
            else:
                constant = float(table.values)
        unit = name.rpartition("_")[2]
        super().__init__(build_cost_model(space, parts, unit=unit, constant=constant), name=name)


def activity(space: Mutable, labels: Iterable[str]) -> dict[str, Table]:
    """Return for each label where it is active, as a boolean table over the labels that decide.

    Parameters
    ----------
    space : Mutable
        With these labels.
    labels : iterable of str
        Which ones.
    """
    structure = space.structure()
    wanted = set(labels)
    found: dict[str, list[Table]] = {label: [] for label in wanted}

    def visit(node: Node, decided: Sample) -> None:
        if structure.labels(node) & wanted and not node.is_constraint:  # a constraint builds nothing
            own = node.own_label()
            if own in found:
                found[own].append(conjunction(equals(label, value) for label, value in decided.items()))
            descend(node, decided)

    def descend(node: Node, decided: Sample) -> None:
        try:
            parts = structure.active(node, Partial(decided))
        except Undecided as need:
            for value in listed_values(structure.dimension(need.label)):
                descend(node, {**decided, need.label: value})
        else:
            for part in parts:
                visit(part, decided)

    def equals(label: str, value: Any) -> Table:
        values = listed_values(structure.dimension(label))
        return Table((label,), np.array([other == value for other in values]))

    visit(structure.root, {})
    return {label: disjunction(places) for label, places in found.items()}


def _tabulated(labels: tuple[str, ...], rows: Sequence[_Row], domain: Mapping[str, Sequence[Any]]) -> Table:
    entries = math.prod(len(domain[label]) for label in labels)
    if entries > MAX_TABLE:
        raise HwnasError(
            f"{rows[0].where}: {', '.join(labels)} have {entries:,} combinations, of which each needs a cost, and "
            f"{MAX_TABLE:,} are read at most. Give costs of fewer labels at once; they are added"
        )
    costs = np.full([len(domain[label]) for label in labels], np.nan)
    seen: dict[tuple[int, ...], str] = {}
    for row in rows:
        index = tuple(_position(row, label, domain[label]) for label in labels)
        if index in seen:
            raise HwnasError(f"{row.where}: {_named(row.values) or 'the constant'} stands already at {seen[index]}")
        seen[index] = row.where
        try:
            costs[index] = math.nan if isinstance(row.cost, bool) else float(row.cost)
        except (TypeError, ValueError):
            raise HwnasError(f"{row.where}: the cost is {row.cost!r}; expected a number") from None
        if not math.isfinite(costs[index]):
            raise HwnasError(f"{row.where}: the cost is {row.cost!r}; expected a finite number")
    missing = np.argwhere(np.isnan(costs))
    if len(missing):
        shown = [
            _named({label: domain[label][place] for label, place in zip(labels, index, strict=True)})
            for index in missing[:_SHOWN]
        ]
        where = rows[0].where.partition(",")[0]
        raise HwnasError(
            f"{where}: of {costs.size} combinations of {', '.join(labels)} {len(missing)} have no cost, such as "
            f"{'; '.join(shown)}. Give each a row, with 0 where it costs nothing"
        )
    return Table(labels, costs)


def _position(row: _Row, label: str, values: Sequence[Any]) -> int:
    given = row.values[label]
    # What was text in the file is compared as text.
    found = [i for i, value in enumerate(values) if value == given and type(value) is type(given)]
    found = found or [i for i, value in enumerate(values) if str(value) == str(given)]
    if len(found) != 1:
        what = "fits several values" if found else "is no value"
        raise HwnasError(f"{row.where}: {given!r} {what} of {label!r}; its values are {list(values)}")
    return found[0]


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{label}={value}" for label, value in values.items())


def _read(file: Path) -> tuple[str, list[_Row]]:
    if file.suffix.lower() not in SUFFIXES:
        raise HwnasError(f"{file}: its suffix is {file.suffix!r}; expected .csv, .yaml or .yml")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise HwnasError(f"{file} cannot be read: {error}") from error
    return (_read_csv if file.suffix.lower() == ".csv" else _read_yaml)(file, text)


def _read_csv(file: Path, text: str) -> tuple[str, list[_Row]]:
    lines = csv.reader(text.splitlines(), strict=True, skipinitialspace=True)
    header: list[str] | None = None
    rows = []
    try:
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{file}, line {lines.line_num}"
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_header(header, where)
                continue
            if len(cells) != len(header):
                raise HwnasError(f"{where}: it has {len(cells)} cells, and the header {len(header)}")
            *values, cost = (cell.strip() for cell in cells)
            named = {label: value for label, value in zip(header[:-1], values, strict=True) if value}
            rows.append(_Row(named, cost, where))
    except csv.Error as error:
        raise HwnasError(f"{file}, line {lines.line_num}: {error}") from error
    if header is None or not rows:
        raise HwnasError(f"{file}: there are no figures; expected a header and a row for each")
    return header[-1], rows


def _check_header(header: Sequence[str], where: str) -> None:
    if len(set(header)) < len(header) or not all(header):
        raise HwnasError(f"{where}: the header is {header}; expected distinct labels and the name of the cost")


def _read_yaml(file: Path, text: str) -> tuple[str, list[_Row]]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise HwnasError(f"{file}: {error}") from error
    form = "a mapping with cost (its name), tables (each with labels and rows) and, if there is one, constant"
    if not isinstance(found, dict) or not isinstance(found.get("cost"), str) or set(found) - _YAML_KEYS:
        raise HwnasError(f"{file}: expected {form}")
    rows = [_Row({}, found["constant"], f"{file}, constant")] if "constant" in found else []
    tables = found.get("tables", [])
    if not isinstance(tables, list):
        raise HwnasError(f"{file}: tables is a {type(tables).__name__}; expected a list")
    for number, table in enumerate(tables):
        where = f"{file}, table {number}"
        if not isinstance(table, dict) or set(table) != {"labels", "rows"}:
            raise HwnasError(f"{where}: expected a mapping with labels and rows")
        labels, lines = table["labels"], table["rows"]
        if not isinstance(labels, list) or not labels or len(set(map(str, labels))) < len(labels):
            raise HwnasError(f"{where}: labels is {labels!r}; expected a list of distinct labels")
        if not isinstance(lines, list):
            raise HwnasError(f"{where}: rows is a {type(lines).__name__}; expected a list")
        for line, cells in enumerate(lines, start=1):
            if not isinstance(cells, list) or len(cells) != len(labels) + 1:
                raise HwnasError(f"{where}, row {line}: {cells!r} is no list of {len(labels)} values and a cost")
            rows.append(_Row(dict(zip(map(str, labels), cells, strict=False)), cells[-1], f"{where}, row {line}"))
    if not rows:
        raise HwnasError(f"{file}: there are no figures; expected {form}")
    return found["cost"], rows
