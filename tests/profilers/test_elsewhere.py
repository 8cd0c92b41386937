"""Measuring on a device without hwnas, PyTorch and onnx: here another process that cannot import them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import HwnasError
from hwnas.profilers import LatencyStore, OnnxRuntimeLatencyProfiler, OrtTarget, prepare_folder
from hwnas.profilers.elsewhere import read_results
from hwnas.strategies import Budget

X = torch.zeros(1, 3, 16, 16)
OPTIONS: dict[str, Any] = {"calibration": 2, "seed": 2}


class Net(nn.ModelSpace):
    def __init__(self, widths: tuple[int, ...] = (4, 8, 16)) -> None:
        super().__init__()
        width = nn.ValueChoice(list(widths), label="width")
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layer = nn.LayerChoice([nn.Conv2d(width, width, 3, padding=1), nn.Identity()], label="layer")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.stem(x).relu())


def program(folder: Path) -> tuple[list[str], dict[str, str]]:
    """How the script is run where only ONNX Runtime and NumPy can be imported."""
    absent = folder.parent / "absent"
    for name in ("torch", "onnx", "lightning", "scipy"):
        (absent / name).mkdir(parents=True, exist_ok=True)
        (absent / name / "__init__.py").write_text("raise ImportError('this device does not have it')\n")
    return [sys.executable, str(folder / "measure.py")], {**os.environ, "PYTHONPATH": str(absent)}


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command, environment = program(folder)
    return subprocess.run(command, env=environment, cwd=folder.parent, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that was moved to the device, run there, and moved back."""
    root = tmp_path_factory.mktemp("elsewhere")
    prepare_folder(root / "here", Net(), X, budget_s=2, held_out=3, **OPTIONS)
    (root / "device").mkdir()
    shutil.move(root / "here", root / "device" / "models of Net")
    finished = run(root / "device" / "models of Net")
    assert finished.returncode == 0, finished.stderr
    assert "results.json" in finished.stdout
    return root / "device" / "models of Net"


@pytest.fixture
def nothing_is_measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("measured here")

    monkeypatch.setattr("hwnas.profilers.latency.measure", refused)


@pytest.mark.usefixtures("nothing_is_measured_here")
def test_latencies_come_from_the_results(measured: Path, tmp_path: Path) -> None:
    with LatencyStore(tmp_path / "latency.sqlite") as store:
        profiler = OnnxRuntimeLatencyProfiler(Net(), X, store=store, results=measured, **OPTIONS)
        found = json.loads((measured / "results.json").read_text())
        assert profiler.device.to_dict() == found["device"]
        assert profiler.target.to_dict() == found["target"]
        times = {key: value["latency_ms"] for key, value in found["session"]["measurements"].items()}
        for row in profiler.table().values():
            assert row["latency_ms"] + profiler.overhead_ms in [pytest.approx(value) for value in times.values()]
        wide, narrow = ({"width": width, "layer": 0} for width in (16, 4))
        assert profiler.profile(wide) > profiler.profile(narrow) > profiler.overhead_ms
        assert profiler.report(3).n == 3
        # The same results once more: no row is doubled, and the store alone says the same.
        again = OnnxRuntimeLatencyProfiler(Net(), X, store=store, results=measured / "results.json", **OPTIONS)
        assert again.profile(wide) == profiler.profile(wide)
        rows = store.lookup(list(times), profiler.device.key, profiler.target.key)
        assert {key: row.latency_ms for key, row in rows.items()} == pytest.approx(times)


@pytest.mark.usefixtures("nothing_is_measured_here")
def test_a_budget_of_another_device_is_not_measured_here(measured: Path) -> None:
    profiler = OnnxRuntimeLatencyProfiler(Net(), X, results=measured, **OPTIONS)
    members = list(Net().grid())
    limit = max(map(profiler.profile, members)) * 2
    assert list(Budget({"latency_ms": limit}, profiler).measured(members)) == members


@pytest.mark.usefixtures("nothing_is_measured_here")
def test_what_was_not_measured_there_is_named(measured: Path) -> None:
    with pytest.raises(HwnasError, match=r"parts and members were not measured.*stem.*prepare and run it again"):
        OnnxRuntimeLatencyProfiler(Net((4, 32)), X, results=measured, **OPTIONS)
    profiler = OnnxRuntimeLatencyProfiler(Net(), X, results=measured, **OPTIONS)
    with pytest.raises(HwnasError, match="not measured"):
        profiler.report(30, seed=77)


def test_a_target_is_not_given_beside_results(measured: Path) -> None:
    with pytest.raises(ValueError, match="both target and results"):
        OnnxRuntimeLatencyProfiler(Net(), X, OrtTarget(), results=measured)


def test_the_device_has_other_programs_than_this_machine(measured: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(measured, folder)
    plan = json.loads((folder / "plan.json").read_text())
    plan["target"]["provider"] = "NoSuchProvider"
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "results.json").unlink()
    finished = run(folder)
    assert finished.returncode == 1
    assert "NoSuchProvider" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (folder / "results.json").exists()


def test_a_target_of_a_provider_that_is_only_there(tmp_path: Path) -> None:
    target = OrtTarget(provider="TensorrtExecutionProvider", elsewhere=True)
    prepare_folder(tmp_path / "folder", Net(), X, target, held_out=0, **OPTIONS)
    plan = json.loads((tmp_path / "folder" / "plan.json").read_text())
    assert plan["target"]["provider"] == "TensorrtExecutionProvider"


def killed_once(measured: Path, folder: Path) -> dict[str, Any]:
    """Kill a run on the device as soon as it has kept something; give the plan."""
    shutil.copytree(measured, folder)
    (folder / "results.json").unlink()
    plan: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**plan, "budget_s": 60, "relative_error": 0.05, "min_visits": 60}))
    # Models are told apart by when they are done, so that a part of them is when the process is killed.
    measuring = folder / "hwnas" / "profilers" / "measuring.py"
    code = measuring.read_text().replace("_RECORD_EVERY_S: Final = 2.0", "_RECORD_EVERY_S: Final = 0.0")
    measuring.write_text(code.replace("_GROUP_SIZE: Final = 400", "_GROUP_SIZE: Final = 3"))
    command, environment = program(folder)
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, text=True) as process:
        deadline = time.monotonic() + 60
        while not kept(folder) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    return plan


def kept(folder: Path) -> dict[str, tuple[float, int]]:
    """What a run has kept so far: latency and number of its run by key."""
    if not (folder / "unfinished.sqlite").exists():
        return {}
    with closing(sqlite3.connect(folder / "unfinished.sqlite")) as connection:
        try:
            rows = connection.execute("SELECT workload, latency_ms, session FROM measurement").fetchall()
        except sqlite3.OperationalError:  # no table yet, or locked
            return {}
    return {key: (latency, session) for key, latency, session in rows}


def test_a_run_that_is_killed_goes_on(measured: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    plan = killed_once(measured, folder)
    before = kept(folder)
    assert before
    (folder / "plan.json").write_text(json.dumps({**plan, "budget_s": 2}))
    assert not list(folder.glob("results.json*"))
    with pytest.raises(HwnasError, match=r"results\.json cannot be read.*python measure\.py"):
        read_results(folder)
    finished = run(folder)
    assert finished.returncode == 0, finished.stderr
    assert f"going on: {len(before)} of {len(plan['workloads'])} models" in finished.stderr
    assert not (folder / "unfinished.sqlite").exists()
    found = read_results(folder).session.measurements
    assert list(found) == [each["key"] for each in plan["workloads"]]
    # What was kept stays as it was; the rest is put on its scale.
    assert {key: found[key].latency_ms for key in before} == {key: latency for key, (latency, _) in before.items()}


def test_what_was_measured_before_a_kill_is_not_measured_again(measured: Path, tmp_path: Path) -> None:
    """But for those that tell how far the device drifted: here the store claims that it was 1000 times as slow."""
    folder = tmp_path / "killed"
    plan = killed_once(measured, folder)
    with closing(sqlite3.connect(folder / "unfinished.sqlite")) as connection, connection:
        connection.execute("UPDATE measurement SET latency_ms = latency_ms * 1000")
    before = kept(folder)
    (folder / "plan.json").write_text(json.dumps({**plan, "budget_s": 2}))
    assert run(folder).returncode == 0
    session = read_results(folder).session
    assert {key: session.measurements[key].latency_ms for key in before} == {
        key: latency for key, (latency, _) in before.items()
    }
    usual = read_results(measured).session
    for key, value in session.measurements.items():
        assert 100 < value.latency_ms / usual.measurements[key].latency_ms < 10_000
    assert 100 < session.overhead.latency_ms / usual.overhead.latency_ms < 10_000
    assert 100 < session.canary_floor_ms / usual.canary_floor_ms < 10_000


def damaged(measured: Path, folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(text)
    return folder


def test_damaged_results(measured: Path, tmp_path: Path) -> None:
    whole = (measured / "results.json").read_text()
    found = json.loads(whole)
    with pytest.raises(HwnasError, match="no JSON file"):
        read_results(damaged(measured, tmp_path / "half", whole[: len(whole) // 2]))
    with pytest.raises(HwnasError, match="schema version is 99"):
        read_results(damaged(measured, tmp_path / "new", json.dumps({**found, "schema_version": 99})))
    without = {name: value for name, value in found.items() if name != "session"}
    with pytest.raises(HwnasError, match=r"damaged.*session"):
        read_results(damaged(measured, tmp_path / "part", json.dumps(without)))
    next(iter(found["session"]["measurements"].values()))["latency_ms"] = float("nan")
    with pytest.raises(HwnasError, match=r"damaged.*nan"):
        read_results(damaged(measured, tmp_path / "nan", json.dumps(found)))
    found["target"]["protocol"] = 99
    with pytest.raises(HwnasError, match="protocol is version 99"):
        read_results(damaged(measured, tmp_path / "protocol", json.dumps(found)))


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(HwnasError, match="exists already"):
        prepare_folder(tmp_path / "folder", Net(), X, held_out=0, **OPTIONS)
    assert not list((tmp_path / "folder").iterdir())
