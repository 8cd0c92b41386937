"""Samples as JSON, with a schema version."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from hwnas import atomic
from hwnas.errors import SampleError
from hwnas.space.mutable import Mutable
from hwnas.space.node import Sample

SCHEMA_VERSION = 1


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """Write a sample in JSON types; tuples become lists.

    Parameters
    ----------
    sample : dict
        Label to value.

    Returns
    -------
    dict
        ``schema_version`` and ``sample``.

    Raises
    ------
    SampleError
        If a value is not finite, or of a type that JSON does not have.
    """
    values = {str(label): _to_json(value, label) for label, value in sample.items()}
    return {"schema_version": SCHEMA_VERSION, "sample": values}


def sample_from_json(data: Any, mutable: Mutable) -> Sample:
    """Read a sample of a space from what `sample_to_json` wrote.

    Parameters
    ----------
    data : dict
        The JSON object.
    mutable : Mutable
        The space that the sample belongs to. Its values say which lists were tuples.

    Returns
    -------
    dict
        The labels of the space that `data` holds; other labels are left out.

    Raises
    ------
    SampleError
        If `data` is no such object, its schema version is unknown, or the sample is not a point of the space.
    """
    if not isinstance(data, dict) or not isinstance(data.get("sample"), dict):
        raise SampleError(f"expected an object with 'schema_version' and 'sample', got {str(data)[:80]!r}")
    version = data.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise SampleError(
            f"the sample has schema version {version!r}, this version of hwnas reads {SCHEMA_VERSION}; "
            "write the sample again, or read it with the version of hwnas that wrote it"
        )
    given = data["sample"]
    dimensions = mutable.simplify()
    sample = {str(label): d.restore(given[label]) for label, d in dimensions.items() if label in given}
    mutable.validate(sample)
    return {label: dimensions[label].canonical(value) for label, value in sample.items()}


def dump_sample(sample: Sample, path: str | os.PathLike[str]) -> None:
    """Write a sample to a JSON file, whole or not at all.

    Parameters
    ----------
    sample : dict
        Label to value.
    path : path-like
        The file; an existing one is replaced.

    Raises
    ------
    SampleError
        If a value is not finite, or of a type that JSON does not have.
    """
    atomic.write_text(path, json.dumps(sample_to_json(sample), indent=2, allow_nan=False) + "\n")


def load_sample(path: str | os.PathLike[str], mutable: Mutable) -> Sample:
    """Read a sample of a space from a JSON file.

    Parameters
    ----------
    path : path-like
        A file that `dump_sample` wrote.
    mutable : Mutable
        The space that the sample belongs to.

    Returns
    -------
    dict
        The labels of the space that the file holds.

    Raises
    ------
    SampleError
        If the file is not JSON, its schema version is unknown, or the sample is not a point of the space.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as problem:
        raise SampleError(f"{os.fspath(path)} does not hold a sample in JSON: {problem}") from problem
    return sample_from_json(data, mutable)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _to_json(value: Any, label: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [_to_json(item, label) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise SampleError(f"{value!r} is not finite, so it cannot be stored", (label,))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise SampleError(f"{value!r} of type {type(value).__name__} cannot be stored as JSON", (label,))
