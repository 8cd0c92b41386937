"""``hwnas doctor``: whether everything that hwnas needs is there and works."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from hwnas import __version__
from hwnas.cli.console import narration
from hwnas.cli.exit_codes import ExitCode, exit_codes
from hwnas.cli.options import Debug, Json, Store, default_store
from hwnas.cli.output import print_json, print_table
from hwnas.errors import StoreError

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Parameters
    ----------
    name : str
        What was looked at.
    state : {"ok", "warn", "fail"}
        ``warn``: hwnas works, but less well; ``fail``: something essential is broken.
    detail : str
        What is there, or what is wrong.
    """

    name: str
    state: str
    detail: str


def doctor(store: Store = None, as_json: Json = False, debug: Debug = False) -> None:
    """Tell what is installed, on which machine, and whether it works.

    Exit code 1: something essential does not work.
    """
    path = store or default_store()
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("versions", _versions),
        ("device", _device),
        ("ONNX Runtime", _providers),
        ("native kernels", _kernels),
        ("latency store", lambda: _store(path)),
        ("threads", _threads),
    ]
    findings: list[Finding] = []
    with exit_codes(debug=debug), narration():
        for name, check in checks:
            try:
                findings.extend(check())
            except Exception as error:  # whatever is broken must not keep the other checks from being made
                findings.append(Finding(name, FAIL, f"{type(error).__name__}: {error}"))
    healthy = all(finding.state != FAIL for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        print_table("hwnas doctor", ["", "what", "found"], [(f.state, f.name, f.detail) for f in findings], texts=3)
    if not healthy:
        raise typer.Exit(ExitCode.FAILURE)


def _versions() -> Iterator[Finding]:
    import importlib

    yield Finding("hwnas", OK, __version__)
    yield Finding("python", OK, platform.python_version())
    # Imported rather than looked up: an installed package that does not load is the usual trouble.
    for name in ("torch", "lightning", "onnx", "onnxscript", "onnxruntime", "safetensors", "sklearn"):
        try:
            module = importlib.import_module(name)
        except Exception as error:
            yield Finding(name, FAIL, f"cannot be imported: {type(error).__name__}: {error}")
        else:
            yield Finding(name, OK, str(getattr(module, "__version__", "unknown version")))


def _device() -> Iterator[Finding]:
    from hwnas.profilers import describe_device

    device = describe_device()
    memory = f", {device.ram_gib:g} GiB" if device.ram_gib else ""
    yield Finding("device", OK, f"{device.cpu_model}, {device.cores} logical cores{memory}, key {device.key}")
    yield Finding("system", OK, f"{device.os_name} {device.os_release}, {device.architecture}")
    yield Finding("accelerators", OK, ", ".join(device.accelerators) or "none")


def _providers() -> Iterator[Finding]:
    import onnxruntime

    from hwnas.profilers import OrtTarget

    installed = onnxruntime.get_available_providers()
    works = OrtTarget().provider in installed
    yield Finding("ONNX Runtime providers", OK if works else FAIL, ", ".join(installed) or "none")


def _kernels() -> Iterator[Finding]:
    from hwnas.kernels import native

    found = native.describe()
    cpu, cuda = found["cpu"], found["cuda"]
    if cpu["usable"]:
        openmp = "with" if cpu["openmp"] else "without"
        isa = f"{cpu['isa']} (of {', '.join(cpu['supported_isas'])})"
        yield Finding(
            "CPU kernels",
            OK,
            f"{isa}, {openmp} OpenMP, {cpu['threads']} threads, {cpu['path']}",
        )
    else:
        yield Finding("CPU kernels", WARN, f"plain PyTorch is used: {cpu['reason']}")
    if cuda["usable"]:
        yield Finding("CUDA kernels", OK, str(cuda["path"]))
    else:
        import torch

        # Without a CUDA device nobody misses them.
        yield Finding("CUDA kernels", WARN if torch.cuda.is_available() else OK, f"not in use: {cuda['reason']}")
    order = "channels last, where the code of a space allows it" if native.ENABLED else "as written"
    yield Finding("memory order of super-nets on the CPU", OK, order)
    for operator, reasons in found["operators"].items():
        in_use = [device for device in ("cpu", "cuda") if reasons[device] is None]
        # A module that can be used, but not for this operator.
        lacking = [reasons[device] for device in ("cpu", "cuda") if found[device]["usable"] and reasons[device]]
        kernels = f"compiled for {' and '.join(in_use)}" if in_use else "plain PyTorch"
        yield Finding(f"operator {operator}", WARN if lacking else OK, "; ".join([kernels, *lacking]))


def _store(path: Path) -> Iterator[Finding]:
    from hwnas.profilers import LatencyStore

    if not path.exists():
        # Opening would create it, and a doctor changes nothing.
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            yield Finding("latency store", OK, f"{path}: not there yet, the first measurement creates it")
        else:
            yield Finding("latency store", FAIL, f"{path}: cannot be created, {folder} may not be written")
        return
    try:
        LatencyStore(path).close()
    except StoreError as error:
        yield Finding("latency store", FAIL, str(error))
        return
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        (rows,) = connection.execute("SELECT count(*) FROM measurement").fetchone()
    finally:
        connection.close()
    if os.access(path, os.W_OK):
        yield Finding("latency store", OK, f"{path}: {rows:,} rows")
    else:
        yield Finding("latency store", WARN, f"{path}: {rows:,} rows, and no more can be kept: read-only")


def _threads() -> Iterator[Finding]:
    import torch

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    used = torch.get_num_threads()
    detail = f"PyTorch uses {used}, this process may run on {allowed} cores"
    yield Finding("threads", WARN if used > allowed else OK, detail)
