"""The values of labels and the tables of factors as plain JSON data, exactly and with a schema version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hwnas.cost.factor import Factor
from hwnas.cost.intermediate import Intermediate

SCHEMA_VERSION = 1
# JSON has no tuples; they are written as an object with this one key.
_TUPLE = "tuple"


def encode_value(value: Any, label: str) -> Any:
    """Give a JSON-able form of a value of `label`.

    Raises
    ------
    TypeError
        If the value is not made of None, bool, int, float, str, tuples and lists.
    """
    if isinstance(value, tuple):
        return {_TUPLE: [encode_value(item, label) for item in value]}
    if isinstance(value, list):
        return [encode_value(item, label) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"the value {value!r} of the label {label!r} cannot be saved; "
        "use None, bool, int, float, str, and tuples or lists of those"
    )


def decode_value(data: Any) -> Any:
    """Undo `encode_value`."""
    if isinstance(data, Mapping):
        return tuple(decode_value(item) for item in data[_TUPLE])
    if isinstance(data, list):
        return [decode_value(item) for item in data]
    return data


def encode_factor(factor: Factor) -> dict[str, Any]:
    """Give a JSON-able form of a factor."""
    return {"labels": list(factor.labels), "table": factor.table.tolist(), "name": factor.name}


def decode_factor(
    data: Mapping[str, Any], intermediates: Mapping[str, Intermediate], *, constraint: bool = False
) -> Factor:
    """Undo `encode_factor`; `intermediates` are those of the cost model, by name."""
    table = np.array(data["table"], dtype=np.bool_ if constraint else np.float64)
    return Factor([intermediates.get(label, label) for label in data["labels"]], table, data["name"])


def encode_intermediate(intermediate: Intermediate) -> dict[str, Any]:
    """Give a JSON-able form of an intermediate."""
    return {"name": str(intermediate), "labels": list(intermediate.labels), "table": intermediate.table.tolist()}


def decode_intermediates(data: Sequence[Mapping[str, Any]]) -> dict[str, Intermediate]:
    """Undo `encode_intermediate` for several, each of which stands behind what it is computed from."""
    known: dict[str, Intermediate] = {}
    for each in data:
        labels = [known.get(label, label) for label in each["labels"]]
        known[each["name"]] = Intermediate(each["name"], labels, np.array(each["table"]))
    return known


def check_schema(data: Mapping[str, Any]) -> None:
    """Raise ValueError unless the data has the schema version that this code reads."""
    if (version := data.get("schema_version")) != SCHEMA_VERSION:
        raise ValueError(
            f"the cost model has the schema version {version!r}, expected {SCHEMA_VERSION}; "
            "build it again with this version of hwnas"
        )
