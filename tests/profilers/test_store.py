"""LatencyStore: rows survive kills and concurrent writers; damaged and foreign files are refused."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.errors import StoreError
from hwnas.profilers.device import Device
from hwnas.profilers.measurement import Measurement, SessionResult
from hwnas.profilers.session_scale import Scale
from hwnas.profilers.store import LatencyStore
from hwnas.profilers.target import OrtTarget

DEVICE = Device("cpu", "flags", "x86_64", 2, (), "Linux", "1", 1.0)
TARGET = OrtTarget()


def result(**latencies: float) -> SessionResult:
    """Make a session that found these latencies."""
    return SessionResult(
        measurements={key: Measurement(ms, ms / 100, 20, False) for key, ms in latencies.items()},
        overhead=Measurement(0.01, 0.0001, 20, False),
        canary=Measurement(0.2, 0.001, 40, False),
        canary_floor_ms=0.19,
        clock="thread_time",
        split_half_error=float("nan"),
        threads=1,
        load=float("nan"),
        started=time.time(),
        duration_s=1.0,
    )


def test_rows_come_back_as_recorded_from_a_file_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "store.db"
    session = result(a=1.5, b=2.5)
    contended = dataclasses.replace(session.measurements["b"], contended=True)
    session = dataclasses.replace(session, measurements={**session.measurements, "b": contended})
    with LatencyStore(path) as store:
        assert store.record(DEVICE, TARGET, session) == 2
    with LatencyStore(path) as store:
        found = store.lookup(["b", "unknown", "a"], DEVICE.key, TARGET.key)
    assert found == session.measurements
    assert list(found) == ["b", "a"]


def test_memory_store_works_and_closing_twice_is_harmless() -> None:
    store = LatencyStore(None)
    store.record(DEVICE, TARGET, result(a=1.0))
    assert store.lookup(["a"], DEVICE.key, TARGET.key)["a"].latency_ms == 1.0
    store.close()
    store.close()


def test_devices_and_targets_do_not_mix() -> None:
    other_device, other_target = dataclasses.replace(DEVICE, cores=64), OrtTarget(intra_op_threads=2)
    with LatencyStore() as store:
        store.record(DEVICE, TARGET, result(a=1.0))
        store.record(other_device, TARGET, result(a=2.0))
        store.record(DEVICE, other_target, result(a=3.0))
        found = [
            store.lookup(["a"], device.key, target.key)["a"].latency_ms
            for device, target in [(DEVICE, TARGET), (other_device, TARGET), (DEVICE, other_target)]
        ]
        assert found == [1.0, 2.0, 3.0]
        assert store.lookup(["a"], other_device.key, other_target.key) == {}


def test_the_first_row_stays_until_it_is_refreshed() -> None:
    with LatencyStore() as store:
        store.record(DEVICE, TARGET, result(a=1.0))
        assert store.record(DEVICE, TARGET, result(a=2.0, b=3.0)) == 1
        found = store.lookup(["a", "b"], DEVICE.key, TARGET.key)
        assert [m.latency_ms for m in found.values()] == [1.0, 1.5]  # `a` tells that the second session is slower
        assert store.record(DEVICE, TARGET, result(a=4.0), refresh=True) == 1
        assert store.lookup(["a"], DEVICE.key, TARGET.key)["a"].latency_ms == 4.0
        assert len(store.sessions(DEVICE.key, TARGET.key)) == 3


def test_rows_are_scaled_by_the_anchors_of_their_session() -> None:
    with LatencyStore() as store:
        store.record(DEVICE, TARGET, result(a=1.0))
        store.record(DEVICE, TARGET, result(b=1.0), anchor_scale=1.25)
        found = store.lookup(["a", "b"], DEVICE.key, TARGET.key)
        assert found["b"].latency_ms == 1.25 * found["a"].latency_ms
        assert found["b"].stderr_ms == 1.25 * found["a"].stderr_ms
        assert [s.scale.factor for s in store.sessions(DEVICE.key, TARGET.key)] == [1.0, 1.25]


def test_a_session_is_compared_with_the_earlier_ones_by_what_both_measured() -> None:
    with LatencyStore() as store:
        store.record(DEVICE, TARGET, result(a=1.0, b=2.0, c=3.0))
        store.record(DEVICE, TARGET, result(a=2.0, b=4.0, c=3.0, d=10.0))  # twice as slow, but for one outlier
        assert store.lookup(["d"], DEVICE.key, TARGET.key)["d"].latency_ms == 5.0
        store.record(DEVICE, OrtTarget(intra_op_threads=2), result(a=7.0, d=7.0))
        assert store.sessions(DEVICE.key, OrtTarget(intra_op_threads=2).key)[0].scale.factor == 1.0


def test_a_session_may_be_recorded_as_it_goes_on() -> None:
    first, second = result(a=1.0), result(b=3.0)
    with LatencyStore() as store:
        store.record(DEVICE, TARGET, first)
        store.record(DEVICE, TARGET, second)
        # Both have found more, and something out about what they had found.
        further = result(a=2.0, b=4.0, c=8.0)
        further = dataclasses.replace(further, started=second.started, canary_floor_ms=0.15, duration_s=7.0)
        assert store.record(DEVICE, TARGET, further) == 2
        first = dataclasses.replace(result(a=1.1, b=9.0), started=first.started)
        assert store.record(DEVICE, TARGET, first) == 1
        found = store.lookup(["a", "b", "c"], DEVICE.key, TARGET.key)
        # The first session is the standard, whatever the second one found; that one was compared with what was known.
        assert [m.latency_ms for m in found.values()] == [1.1, 2.0, 4.0]
        sessions = store.sessions(DEVICE.key, TARGET.key)
        assert [session.scale.factor for session in sessions] == [1.0, 0.5]
        assert [session.canary_floor_ms for session in sessions] == [0.19, 0.15]
        # The same once more changes nothing.
        store.record(DEVICE, TARGET, first)
        assert store.lookup(["a", "b", "c"], DEVICE.key, TARGET.key) == found
        assert len(store.sessions(DEVICE.key, TARGET.key)) == 2


def test_many_keys_are_looked_up_at_once() -> None:
    latencies = {f"k{i}": float(i + 1) for i in range(2500)}
    with LatencyStore() as store:
        store.record(DEVICE, TARGET, result(**latencies))
        found = store.lookup(list(latencies), DEVICE.key, TARGET.key)
    assert {key: m.latency_ms for key, m in found.items()} == latencies


def test_lowest_floor_of_all_sessions() -> None:
    with LatencyStore() as store:
        assert store.canary_floor_ms(DEVICE.key, TARGET.key) is None
        for floor in (0.3, 0.1, 0.2):
            store.record(DEVICE, TARGET, dataclasses.replace(result(), canary_floor_ms=floor))
        assert store.canary_floor_ms(DEVICE.key, TARGET.key) == 0.1


@pytest.mark.parametrize("refresh", [False, True])
def test_a_failed_session_leaves_nothing(refresh: bool) -> None:
    with LatencyStore() as store:
        with pytest.raises(StoreError, match="NaN"):
            store.record(DEVICE, TARGET, result(a=1.0, b=float("nan")), refresh=refresh)
        assert store.lookup(["a", "b"], DEVICE.key, TARGET.key) == {}
        assert store.sessions(DEVICE.key, TARGET.key) == []


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _truncated(path: Path) -> Path:
    with LatencyStore(path) as store:
        store.record(DEVICE, TARGET, result(**{f"k{i}": 1.0 for i in range(2000)}))
    return _write(path, path.read_bytes()[:20000])


def _scribbled(path: Path) -> Path:
    with LatencyStore(path) as store:
        store.record(DEVICE, TARGET, result(**{f"k{i}": 1.0 for i in range(2000)}))
    content = bytearray(path.read_bytes())
    content[4096 * 8 : 4096 * 12] = b"\xa5" * (4096 * 4)
    return _write(path, bytes(content))


def _foreign(path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE cats (name TEXT)")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    return path


def _other_version(path: Path) -> Path:
    LatencyStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    return path


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: _write(path, b"this is a text file, not a database\n" * 100), "not a database"),
        (_truncated, "malformed|damaged"),
        (_scribbled, "malformed|damaged"),
        (_foreign, "another program"),
        (_other_version, "version is 99"),
    ],
)
def test_unusable_files_are_refused_and_left_alone(tmp_path: Path, make: object, what: str) -> None:
    path = make(tmp_path / "store.db")  # type: ignore[operator]
    before = path.read_bytes()
    with pytest.raises(StoreError, match=what) as caught:
        LatencyStore(path)
    assert str(path) in str(caught.value)
    assert "--store" in str(caught.value)
    assert path.read_bytes() == before


def test_a_folder_or_an_impossible_place_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=re.escape(str(tmp_path))):
        LatencyStore(tmp_path)
    file = _write(tmp_path / "file", b"")
    with pytest.raises(StoreError, match="folder cannot be created"):
        LatencyStore(file / "store.db")


def test_a_file_is_checked_once_for_each_version_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []
    connect = sqlite3.connect

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(statements.append)
        return connection

    def checks() -> int:
        found = sum("quick_check" in statement for statement in statements)
        statements.clear()
        return found

    path = tmp_path / "store.db"
    monkeypatch.setattr(sqlite3, "connect", traced)
    with LatencyStore(path) as store:
        store.record(DEVICE, TARGET, result(a=1.0))
    checks()
    LatencyStore(path).close()
    assert checks() == 1  # it was written
    for _ in range(3):
        LatencyStore(path).close()
    assert checks() == 0
    LatencyStore(_write(tmp_path / "copy.db", path.read_bytes())).close()
    assert checks() == 1  # another file


@pytest.mark.parametrize("damage", [_truncated, _scribbled])
def test_damage_is_found_after_the_file_was_well(tmp_path: Path, damage: Callable[[Path], Path]) -> None:
    path = tmp_path / "store.db"
    for _ in range(2):
        LatencyStore(path).close()
    damage(path)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"malformed|damaged"):
            LatencyStore(path)


_ADDED = {
    2: ("unsteadiness", "anchor_spread", "anchor_error"),
    3: ("anchor_exponent", "anchor_exponent_error", "anchor_pivot_ms", "anchor_low_ms", "anchor_high_ms"),
}


def _earlier_version(path: Path, version: int) -> None:
    """Make a file of an earlier version, with two sessions."""
    with LatencyStore(path) as store:
        store.record(DEVICE, TARGET, result(a=1.0, b=2.0))
        store.record(DEVICE, TARGET, result(b=4.0, c=8.0), anchor_scale=0.5)
    connection = sqlite3.connect(path)
    for column in [column for added, columns in _ADDED.items() if added > version for column in columns]:
        connection.execute(f"ALTER TABLE session DROP COLUMN {column}")
    connection.execute("CREATE TABLE calibration (device TEXT NOT NULL)")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_file_of_an_earlier_version_goes_on_as_one_of_this(tmp_path: Path, version: int) -> None:
    path = tmp_path / "store.db"
    _earlier_version(path, version)
    for _ in range(2):
        with LatencyStore(path) as store:
            found = store.lookup(["a", "b", "c"], DEVICE.key, TARGET.key)
            assert [each.latency_ms for each in found.values()] == [1.0, 2.0, 4.0]
            assert [each.stderr_ms for each in found.values()] == [0.01, 0.02, 0.04]
            sessions = store.sessions(DEVICE.key, TARGET.key)
            assert [s.unsteadiness for s in sessions] == [0, 0]
            assert [s.scale for s in sessions] == [Scale(), Scale(0.5)]
    with LatencyStore(path) as store:
        assert store.record(DEVICE, TARGET, result(a=2.0, d=8.0)) == 1
        assert store.lookup(["d"], DEVICE.key, TARGET.key)["d"].latency_ms == 4.0


def test_a_session_knows_how_well_it_compares_with_earlier_ones() -> None:
    drift = np.random.default_rng(0).normal(0, 0.05, 400)
    with LatencyStore() as store:
        store.record(DEVICE, TARGET, result(**{f"k{i}": 1.0 for i in range(400)}))
        nets = {f"k{i}": 2.0 * float(np.exp(each)) for i, each in enumerate(drift)}
        store.record(DEVICE, TARGET, dataclasses.replace(result(**nets, new=1.0), unsteadiness=0.07))
        first, second = store.sessions(DEVICE.key, TARGET.key)
        assert (first.scale.spread, first.scale.error, first.unsteadiness) == (0, 0, 0)
        assert second.unsteadiness == 0.07
        # Each of both has been measured with an error of 1 %.
        assert second.scale.spread == pytest.approx(math.sqrt(drift.var(ddof=1) - 2e-4), rel=1e-6)
        expected = np.std([np.median(np.random.default_rng(s).normal(0, 0.05, 400)) for s in range(2000)])
        assert second.scale.error == pytest.approx(expected, rel=0.1)
        # What is measured in that session alone is known no better than its scale.
        new = store.lookup(["new"], DEVICE.key, TARGET.key)["new"]
        assert new.stderr_ms / new.latency_ms == pytest.approx(math.hypot(0.01, second.scale.error))


def test_a_session_in_which_large_nets_suffer_more_is_put_on_the_scale_of_before() -> None:
    truth = dict(zip([f"k{i}" for i in range(30)], np.geomspace(0.2, 5.0, 30), strict=True))
    rng = np.random.default_rng(1)
    slow = {key: 1.3 * each**1.2 * float(np.exp(rng.normal(0, 0.01))) for key, each in truth.items()}
    with LatencyStore() as store:
        known = [f"k{i}" for i in range(0, 30, 3)]
        store.record(DEVICE, TARGET, result(**{key: truth[key] for key in known}))
        store.record(DEVICE, TARGET, result(**slow))
        # A third one as the second, which compares itself with both.
        store.record(DEVICE, TARGET, dataclasses.replace(result(**slow, new=1.3 * 2**1.2), started=1.0))
        found = store.lookup([*truth, "new"], DEVICE.key, TARGET.key)
        _, second, third = store.sessions(DEVICE.key, TARGET.key)
    for key, latency in {**truth, "new": 2.0}.items():
        assert found[key].latency_ms == pytest.approx(latency, rel=0.06)
        assert abs(found[key].latency_ms - latency) < 4 * found[key].stderr_ms
    for scale in (second.scale, third.scale):
        assert scale.exponent == pytest.approx(1 / 1.2, abs=0.02)
        assert scale.spread < 0.02
    assert found["new"].stderr_ms / 2.0 > third.scale.error


def test_sessions_with_rows_of_some_keys() -> None:
    with LatencyStore() as store:
        for keys in (("a", "b"), ("b",), ("c",)):
            store.record(DEVICE, TARGET, result(**dict.fromkeys(keys, 1.0)))
        first, _, third = store.sessions(DEVICE.key, TARGET.key)
        assert store.sessions(DEVICE.key, TARGET.key, ["b"]) == [first]
        assert store.sessions(DEVICE.key, TARGET.key, ["c", "a", *map(str, range(1000))]) == [first, third]
        assert store.sessions(DEVICE.key, TARGET.key, []) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody may write")
def test_a_place_that_cannot_be_written_is_a_clear_error() -> None:
    with pytest.raises(StoreError, match=r"/proc/store\.db"):
        LatencyStore("/proc/store.db")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_only_be_read_serves_lookups(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with LatencyStore(path) as store:
        store.record(DEVICE, TARGET, result(a=1.0))
    path.chmod(0o444)
    with LatencyStore(path) as store:
        assert store.lookup(["a"], DEVICE.key, TARGET.key)
        with pytest.raises(StoreError, match="readonly"):
            store.record(DEVICE, TARGET, result(b=1.0))


_WRITER = """
import sys, types
from pathlib import Path
import hwnas
# Without what hwnas.profilers imports for others, PyTorch above all.
package = types.ModuleType("hwnas.profilers")
package.__path__ = [str(Path(hwnas.__file__).parent / "profilers")]
sys.modules["hwnas.profilers"] = package
from tests.profilers.test_store import DEVICE, TARGET, result
from hwnas.profilers.store import LatencyStore

path, name = sys.argv[1:]
with LatencyStore(path) as store:
    for i in range(10**9 if name == "killed" else 15):
        store.record(DEVICE, TARGET, result(**{f"{name}-{i}-{j}": 1.0 for j in range(200)}, shared=1.0))
        print(i, flush=True)
"""


def test_a_writer_killed_amid_others_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    # Both begin with no file, so that its creation is contested as well.
    killed, steady = (
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), name],
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env=environment,
        )
        for name in ("killed", "steady")
    )
    assert killed.stdout is not None
    assert steady.stdout is not None
    with killed, steady:
        lines = [killed.stdout.readline() for _ in range(5)]
        killed.send_signal(signal.SIGKILL)
        lines += killed.stdout.readlines()
        steady.communicate()
    assert steady.returncode == 0

    committed = [int(line) for line in lines if line.endswith("\n")]
    with LatencyStore(path) as store:
        sessions = len(store.sessions(DEVICE.key, TARGET.key))
        keys = [f"killed-{i}-{j}" for i in range(len(committed) + 2) for j in range(200)]
        survived = len(store.lookup(keys, DEVICE.key, TARGET.key))
        steady_keys = [f"steady-{i}-{j}" for i in range(15) for j in range(200)]
        assert len(store.lookup(steady_keys, DEVICE.key, TARGET.key)) == len(steady_keys)
        assert len(store.lookup(["shared"], DEVICE.key, TARGET.key)) == 1
    # The last session may have been committed without having been told of; no session is there in part.
    assert survived % 200 == 0
    assert len(committed) <= survived // 200 <= len(committed) + 1
    assert sessions == 15 + survived // 200
    connection = sqlite3.connect(path)
    (rows,) = connection.execute("SELECT count(*) FROM measurement").fetchone()
    connection.close()
    assert rows == survived + len(steady_keys) + 1
