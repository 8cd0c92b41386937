"""Measuring on a device that has neither hwnas nor PyTorch: a folder goes there, is run, and comes back.

The folder holds the models, the files of hwnas that measure, which need only ONNX Runtime and NumPy, and a script. So
the protocol is the same there as here, and there is one implementation of it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from hwnas.errors import HwnasError
from hwnas.profilers.device import Device
from hwnas.profilers.measurement import Measurement, SessionResult, Workload
from hwnas.profilers.precision import references_for
from hwnas.profilers.target import OrtTarget

SCHEMA_VERSION: Final = 1
RESULTS: Final = "results.json"

_MEASURING_FILES: Final = (
    "measuring",
    "measurement",
    "runner",
    "session_scale",
    "store",
    "store_file",
    "store_schema",
    "timing",
    "target",
    "device",
)


@dataclass(frozen=True)
class Results:
    """What came back from another device.

    Parameters
    ----------
    device : Device
        The device.
    target : OrtTarget
        What it measured on, with the version of its ONNX Runtime.
    session : SessionResult
        What it found.
    """

    device: Device
    target: OrtTarget
    session: SessionResult


def write_folder(
    folder: str | os.PathLike[str],
    workloads: Sequence[Workload],
    target: OrtTarget,
    *,
    budget_s: float = 60.0,
    relative_error: float = 0.01,
    min_visits: int = 6,
    seed: int = 0,
) -> None:
    """Write a folder that measures models on another device; whole, or not at all.

    Parameters
    ----------
    folder : path-like
        To be made; it must not exist.
    workloads : sequence of Workload
        The models, in the precision of the target; their keys differ.
    target : OrtTarget
        What they are to run on. The version of ONNX Runtime is that of the device.
    budget_s, relative_error, min_visits, seed
        See `hwnas.profilers.measure`.

    Raises
    ------
    HwnasError
        When the folder exists already.
    """
    path = Path(folder)
    if path.exists():
        raise HwnasError(f"{path} exists already. Give another folder, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    plan = {
        "schema_version": SCHEMA_VERSION,
        "target": target.to_dict(),
        "budget_s": budget_s,
        "relative_error": relative_error,
        "min_visits": min_visits,
        "seed": seed,
        "workloads": [{"key": workload.key, "name": workload.title} for workload in workloads],
    }
    references = references_for(target)
    unfinished = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        contents = {
            "plan.json": json.dumps(plan, indent=1).encode(),
            "identity.onnx": references.identity,
            "canary.onnx": references.canary,
            **{f"models/{workload.key}.onnx": workload.model for workload in workloads},
            **_program(),
        }
        for name, content in contents.items():
            file = unfinished / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        unfinished.chmod(0o755)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _program() -> dict[str, bytes]:
    """Return the files that measure, by their path in the folder."""
    package = files("hwnas")
    source = {f"hwnas/profilers/{name}.py": package / "profilers" / f"{name}.py" for name in _MEASURING_FILES}
    source |= {"hwnas/errors.py": package / "errors.py", "measure.py": package / "profilers" / "run_elsewhere.py"}
    empty = {"hwnas/__init__.py": b"", "hwnas/profilers/__init__.py": b""}
    return {**empty, **{name: file.read_bytes() for name, file in source.items()}}


def read_results(folder: str | os.PathLike[str]) -> Results:
    """Read what a folder of `write_folder` has brought back.

    Parameters
    ----------
    folder : path-like
        The folder, or its file ``results.json``.

    Raises
    ------
    HwnasError
        When there are no results, or they are damaged or of another version.
    """
    path = Path(folder)
    if path.is_dir():
        path = path / RESULTS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HwnasError(
            f"{path} cannot be read ({error.strerror}). Run `python measure.py` in the folder on the device, and bring "
            "the folder back"
        ) from error
    except ValueError as error:
        raise HwnasError(f"{path} is no JSON file ({error}). Run `python measure.py` on the device again") from error
    try:
        version = found["schema_version"]
        if version != SCHEMA_VERSION:
            raise HwnasError(
                f"{path}: its schema version is {version}, and this hwnas reads version {SCHEMA_VERSION}. Prepare and "
                "run the folder again"
            )
        device = {**found["device"], "accelerators": tuple(found["device"]["accelerators"])}
        return Results(
            Device(**device), OrtTarget.from_dict(found["target"], elsewhere=True), _session(found["session"])
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HwnasError(
            f"{path} is damaged ({type(error).__name__}: {error}). Run `python measure.py` on the device again"
        ) from error


def _session(found: dict[str, Any]) -> SessionResult:
    measurements = {key: _measurement(value) for key, value in found["measurements"].items()}
    pair = {name: _measurement(found[name]) for name in ("overhead", "canary")}
    return SessionResult(**{**found, **pair, "measurements": measurements})


def _measurement(found: dict[str, Any]) -> Measurement:
    measurement = Measurement(**found)
    if not (math.isfinite(measurement.latency_ms) and measurement.latency_ms > 0):
        raise ValueError(f"a latency is {measurement.latency_ms} ms")
    return measurement
