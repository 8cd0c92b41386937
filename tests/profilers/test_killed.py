"""Measuring is killed again and again beside another process that measures for the same store; nothing is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.profilers import OnnxRuntimeLatencyProfiler, Workload, measure
from hwnas.profilers.device import describe_device
from hwnas.profilers.store import LatencyStore
from hwnas.profilers.target import OrtTarget

KEYS = [f"{channels}-{size}" for channels in (8, 16, 32) for size in (4, 6, 8, 12, 16)]

# As a profiler does, but without its space: importing PyTorch takes longer than all of this.
_PROGRAM = """
import functools, json, sys, types
from pathlib import Path
import numpy as np
import hwnas

package = types.ModuleType("hwnas.profilers")
package.__path__ = [str(Path(hwnas.__file__).parent / "profilers")]
sys.modules["hwnas.profilers"] = package
from onnx import TensorProto, helper, numpy_helper
from hwnas.profilers import measuring
from hwnas.profilers.canary import canary_model, identity_model
from hwnas.profilers.device import describe_device
from hwnas.profilers.measurement import References, Workload
from hwnas.profilers.store import LatencyStore
from hwnas.profilers.target import OrtTarget

def model(key):
    channels, size = map(int, key.split("-"))
    weight = np.random.default_rng(0).standard_normal((channels, channels, 3, 3)).astype(np.float32)
    value = functools.partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "net",
        [value("x", shape=(1, channels, size, size))],
        [value("y", shape=None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

path, seed, budget_s, stop, *keys = sys.argv[1:]
measuring._RECORD_EVERY_S = 0.05
device, target = describe_device(), OrtTarget()

def run(store, keys):
    known = store.lookup(keys, device.key, target.key)
    missing = [key for key in keys if key not in known]
    anchors = list(known)[:6]
    print(len(missing), flush=True)
    if not missing:
        return

    def record(result):
        store.record(device, target, result)
        print(json.dumps(list(result.measurements)), flush=True)  # what is kept from now on

    result = measuring.measure(
        [Workload(key, model(key)) for key in [*missing, *anchors]],
        target,
        budget_s=float(budget_s),
        relative_error=0.03,
        max_visits=40,
        floor_ms=store.canary_floor_ms(device.key, target.key),
        seed=int(seed),
        references=References(identity_model(), canary_model()),
        anchors=anchors,
        record=record,
    )
    record(result)

with LatencyStore(path) as store:
    run(store, keys)
    while stop and not Path(stop).exists():
        keys = [f"{channels}-{int(size) + 1}" for channels, size in (key.split("-") for key in keys)]
        run(store, keys)
"""


def start(
    path: Path,
    seed: int,
    *,
    keys: Iterable[str] = KEYS,
    budget_s: float = 4,
    stop: Path | None = None,
    stdout: int = subprocess.PIPE,
) -> subprocess.Popen[str]:
    """Measure keys; with `stop` others of larger images after them, until there is such a file."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _PROGRAM, str(path), str(seed), str(budget_s), str(stop or ""), *keys]
    return subprocess.Popen(command, stdout=stdout, text=True, env=environment)


def missing_in(process: subprocess.Popen[str]) -> int:
    """Wait until a process measures; give how many models it has to."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def rows_of(path: Path) -> dict[str, tuple[Any, ...]]:
    """Check a store, and give its rows by their keys."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        rows = connection.execute("SELECT workload, * FROM measurement").fetchall()
        sessions = connection.execute("SELECT count(*), count(DISTINCT started) FROM session").fetchone()
        places = [connection.execute(f"SELECT count(*) FROM {name}").fetchone() for name in ("device", "target")]
    by_key = {key: tuple(row) for key, *row in rows}
    assert len(rows) == len(by_key)
    assert places == [(1,), (1,)]  # a row of other places would be a second one of the same workload
    assert sessions[0] == sessions[1]
    with LatencyStore(path) as store:
        found = store.lookup(list(by_key), describe_device().key, OrtTarget().key)
    assert set(found) == set(by_key)
    assert all(each.latency_ms > 0 and each.visits >= 2 for each in found.values())
    return by_key


def sound(path: Path) -> set[str]:
    """Check a store, and give the keys that it knows."""
    return set(rows_of(path))


def acknowledged(process: subprocess.Popen[str], own: set[str]) -> set[str]:
    """Wait until a process has kept one of its own keys, at most for its budget; give those that it has kept."""
    assert process.stdout is not None
    kept = set[str]()
    while not kept & own:
        kept |= set(json.loads(process.stdout.readline()))  # fails where the process ended before
    return kept


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL  # it had not ended by itself


def test_killed_beside_another_process(tmp_path: Path) -> None:
    path, stop, moments = tmp_path / "latency.sqlite", tmp_path / "stop", random.Random(0)
    known = dict[str, tuple[Any, ...]]()
    steady = start(path, 0, stop=stop, stdout=subprocess.DEVNULL)
    try:
        for attempt in range(3):
            # What nobody else measures shows whose row it is; the rest both want to write.
            own = {f"{channels}-{4 + attempt}" for channels in range(40, 60)}
            killed = start(path, attempt + 1, keys=[*own, *KEYS], budget_s=120)
            try:
                assert missing_in(killed) >= len(own)
                kept = acknowledged(killed, own)
                time.sleep(moments.uniform(0, 0.1))  # it writes every 0.05 s: now and then it is killed while it does
                assert steady.poll() is None
            finally:
                kill(killed)
            now = rows_of(path)
            assert kept <= set(now)
            assert known.items() <= now.items()
            (session,) = {now[key][-1] for key in own & set(now)}
            known |= {key: row for key, row in now.items() if row[-1] == session}
    finally:
        stop.touch()
        steady.communicate()
    assert steady.returncode == 0
    last = rows_of(path)
    assert known.items() <= last.items()
    assert set(last) >= set(KEYS)
    again = start(path, 9, keys=last)
    assert missing_in(again) == 0
    again.communicate()
    assert rows_of(path) == last


def test_measuring_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "latency.sqlite"
    first = start(path, 0)
    assert missing_in(first) == len(KEYS)
    deadline = time.monotonic() + 60
    known = set[str]()
    while not known and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
        with LatencyStore(path) as store:
            known = set(store.lookup(KEYS, describe_device().key, OrtTarget().key))
    kill(first)
    known = sound(path)
    assert known
    with LatencyStore(path) as store:
        before = store.lookup(sorted(known), describe_device().key, OrtTarget().key)
    second = start(path, 1)
    assert missing_in(second) == len(KEYS) - len(known)
    second.communicate()
    assert second.returncode == 0
    assert sound(path) == set(KEYS)
    with LatencyStore(path) as store:
        assert store.lookup(sorted(known), describe_device().key, OrtTarget().key) == before
        if len(known) < len(KEYS):
            assert store.sessions(describe_device().key, OrtTarget().key)[1].scale.factor != 1.0


class Net(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, nn.ValueChoice([4, 8, 12, 16], label="width"), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_a_profiler_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []

    def interrupted(workloads: Sequence[Workload], target: OrtTarget, **options: Any) -> Any:
        """Measure half of what was asked for, and end before the session does."""
        asked.append({workload.key for workload in workloads})
        result = measure(workloads[: len(workloads) // 2], target, budget_s=0.3)
        options["record"](result)
        raise KeyboardInterrupt

    def watched(workloads: Sequence[Workload], target: OrtTarget, **options: Any) -> Any:
        asked.append({workload.key for workload in workloads})
        assert set(options["anchors"]) <= asked[-1]
        return measure(workloads, target, **{**options, "budget_s": 0.3})

    example = torch.zeros(1, 3, 8, 8)
    with LatencyStore(tmp_path / "latency.sqlite") as store:
        monkeypatch.setattr("hwnas.profilers.latency.measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            OnnxRuntimeLatencyProfiler(Net(), example, store=store, calibration=2)
        monkeypatch.setattr("hwnas.profilers.latency.measure", watched)
        profiler = OnnxRuntimeLatencyProfiler(Net(), example, store=store, calibration=2)
    whole, rest = asked
    known = len(whole) // 2
    # What is left, and as anchors what is known.
    assert len(rest) == len(whole) - known + min(known, 6)
    assert profiler.profile({"width": 16}) > 0
