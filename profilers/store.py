"""Latencies kept in an SQLite file, shared by runs and by processes."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from hwnas.errors import StoreError
from hwnas.profilers.device import Device
from hwnas.profilers.measurement import Measurement, SessionResult
from hwnas.profilers.target import PROTOCOL_VERSION, OrtTarget
from hwnas.profilers.timing import unexplained

SCHEMA_VERSION: Final = 2
# Marks the file as a latency store: another program's database may well have the same schema number.
_APPLICATION_ID: Final = 0x68776E61
_BUSY_TIMEOUT_S: Final = 30.0
# SQLite limits the variables of a statement, to 999 in old builds.
_CHUNK: Final = 500
# Standard error of a median over that of a mean, for normal errors.
_MEDIAN_TO_MEAN: Final = math.sqrt(math.pi / 2)

# Reading all of a large file to check it takes a tenth of a second, so this process remembers by path which version of
# a file was well: inode, size and time of the last change.
_CHECKED: Final[dict[Path, tuple[int, int, int]]] = {}

_SCHEMA: Final = (
    "CREATE TABLE device (key TEXT PRIMARY KEY, description TEXT NOT NULL)",
    "CREATE TABLE target (key TEXT PRIMARY KEY, description TEXT NOT NULL)",
    """CREATE TABLE session (
        id INTEGER PRIMARY KEY,
        device TEXT NOT NULL REFERENCES device (key),
        target TEXT NOT NULL REFERENCES target (key),
        protocol INTEGER NOT NULL,
        started REAL NOT NULL,
        duration_s REAL NOT NULL,
        clock TEXT NOT NULL,
        load REAL,
        canary_ms REAL NOT NULL,
        canary_floor_ms REAL NOT NULL,
        overhead_ms REAL NOT NULL,
        split_half_error REAL,
        anchor_scale REAL NOT NULL,
        unsteadiness REAL NOT NULL DEFAULT 0,
        anchor_spread REAL NOT NULL DEFAULT 0,
        anchor_error REAL NOT NULL DEFAULT 0)""",
    """CREATE TABLE measurement (
        device TEXT NOT NULL REFERENCES device (key),
        target TEXT NOT NULL REFERENCES target (key),
        workload TEXT NOT NULL,
        latency_ms REAL NOT NULL,
        stderr_ms REAL NOT NULL,
        visits INTEGER NOT NULL,
        contended INTEGER NOT NULL,
        session INTEGER NOT NULL REFERENCES session (id),
        PRIMARY KEY (device, target, workload)) WITHOUT ROWID""",
    """CREATE TABLE calibration (
        device TEXT NOT NULL REFERENCES device (key),
        target TEXT NOT NULL REFERENCES target (key),
        space TEXT NOT NULL,
        scale REAL NOT NULL,
        offset_ms REAL NOT NULL,
        n INTEGER NOT NULL,
        residual REAL NOT NULL,
        PRIMARY KEY (device, target, space)) WITHOUT ROWID""",
)

# What version 1 lacks.
_FROM_1_TO_2: Final = tuple(
    f"ALTER TABLE session ADD COLUMN {name} REAL NOT NULL DEFAULT 0"
    for name in ("unsteadiness", "anchor_spread", "anchor_error")
)


@dataclass(frozen=True)
class Calibration:
    """How predictions made from parts relate to whole networks: ``whole = scale * predicted + offset_ms``.

    Parameters
    ----------
    scale : float
        Factor.
    offset_ms : float
        Milliseconds added.
    n : int
        Number of whole networks behind it.
    residual : float
        Standard deviation of the relative error that remains.
    """

    scale: float
    offset_ms: float
    n: int
    residual: float


@dataclass(frozen=True)
class StoredSession:
    """What the store knows of a measuring session.

    Parameters
    ----------
    id : int
        Number of the session in its store.
    started : float
        Seconds since the epoch.
    canary_ms, canary_floor_ms : float
        Latency and floor of the canary in milliseconds.
    overhead_ms : float
        Latency of the Identity network in milliseconds.
    anchor_scale : float
        Factor that makes the latencies of the session comparable with those of the others.
    unsteadiness : float
        See `SessionResult`.
    anchor_spread : float
        Relative standard deviation by which what earlier sessions have measured too takes more or less than the factor
        says, beyond the standard errors; 0 where there is nothing to compare.
    anchor_error : float
        Relative standard error of the factor.
    """

    id: int
    started: float
    canary_ms: float
    canary_floor_ms: float
    overhead_ms: float
    anchor_scale: float
    unsteadiness: float
    anchor_spread: float
    anchor_error: float


class LatencyStore:
    """A file of measured latencies.

    A row belongs to a device, a target (both by hash, versions included) and a workload. The first row stays,
    so that results can be repeated, until it is refreshed on purpose. Several processes may use one file at a
    time. An object belongs to the thread and to the process that made it.

    Parameters
    ----------
    path : path-like, optional
        The file; it and its folder are created when missing. None keeps everything in memory.

    Raises
    ------
    StoreError
        The file cannot be opened, is damaged, is not a latency store or has another schema version. It is
        left as it is.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._error(f"its folder cannot be created: {error}", "give another --store") from error
        with self._guarded("be opened"):
            self._connection = sqlite3.connect(
                ":memory:" if self.path is None else self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None
            )
        try:
            with self._guarded("be read"):
                self._open()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> LatencyStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Closing twice does no harm."""
        self._connection.close()

    def lookup(self, keys: Sequence[str], device_key: str, target_key: str) -> dict[str, Measurement]:
        """Find measurements.

        Parameters
        ----------
        keys : sequence of str
            Keys of workloads.
        device_key, target_key : str
            ``Device.key`` and ``OrtTarget.key``.

        Returns
        -------
        dict of str to Measurement
            The known keys, in the order of `keys`. Times are multiplied by the anchor scale of their session,
            so that rows of different sessions may be mixed, and its error is part of the standard error.
        """
        found: dict[str, Measurement] = {}
        with self._guarded("be read"):
            for start in range(0, len(keys), _CHUNK):
                chunk = list(keys[start : start + _CHUNK])
                rows = self._connection.execute(
                    "SELECT workload, latency_ms * anchor_scale, stderr_ms * anchor_scale, visits, contended, "
                    "anchor_error "
                    "FROM measurement JOIN session ON session.id = measurement.session "
                    "WHERE measurement.device = ? AND measurement.target = ? "
                    f"AND workload IN ({', '.join('?' * len(chunk))})",
                    (device_key, target_key, *chunk),
                )
                for key, latency_ms, stderr_ms, visits, contended, scale_error in rows:
                    stderr_ms = math.hypot(stderr_ms, scale_error * latency_ms)
                    found[key] = Measurement(latency_ms, stderr_ms, visits, bool(contended))
        return {key: found[key] for key in keys if key in found}

    def record(
        self,
        device: Device,
        target: OrtTarget,
        result: SessionResult,
        *,
        anchor_scale: float | None = None,
        refresh: bool = False,
    ) -> int:
        """Keep a session and its measurements, all or nothing.

        A session that is known already, by device, target and start, goes on: its description and its own rows become
        those that are given. So a session may be recorded while it is measured, as far as it has come.

        Parameters
        ----------
        device : Device
            Where it was measured.
        target : OrtTarget
            On what it was measured.
        result : SessionResult
            The session.
        anchor_scale : float, optional
            Factor that makes its latencies comparable with those of the other sessions. Unless given it is the median
            ratio over the workloads that an earlier session has measured too, and 1 where there are none.
        refresh : bool, default False
            Replace rows of other sessions, with a scale of 1. Otherwise they stay as they are.

        Returns
        -------
        int
            Number of rows written.

        Raises
        ------
        StoreError
            The file cannot be written.
        """
        with self._transaction():
            self._describe("device", device.key, device.to_dict())
            self._describe("target", target.key, target.to_dict())
            session = self._session(device.key, target.key, result)
            spread = scale_error = 0.0
            if anchor_scale is None and refresh:
                anchor_scale = 1.0
            elif anchor_scale is None:
                anchor_scale, spread, scale_error = self._anchor_scale(device.key, target.key, result, session)
            self._connection.execute(
                "UPDATE session SET anchor_scale = ?, anchor_spread = ?, anchor_error = ? WHERE id = ?",
                (anchor_scale, spread, scale_error, session),
            )
            before = self._connection.total_changes
            columns = ("latency_ms", "stderr_ms", "visits", "contended", "session")
            self._connection.executemany(
                # Not "OR IGNORE" or "OR REPLACE", which would also drop rows that break another rule, without a word.
                "INSERT INTO measurement VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                + ", ".join(f"{column} = excluded.{column}" for column in columns)
                + ("" if refresh else " WHERE session = excluded.session"),
                [
                    (device.key, target.key, key, m.latency_ms, m.stderr_ms, m.visits, m.contended, session)
                    for key, m in result.measurements.items()
                ],
            )
            return self._connection.total_changes - before

    def _session(self, device_key: str, target_key: str, result: SessionResult) -> int:
        """Write the description of a session; give its number."""
        known = self._connection.execute(
            "SELECT id FROM session WHERE device = ? AND target = ? AND started = ?",
            (device_key, target_key, result.started),
        ).fetchone()
        values = (
            None if known is None else known[0],
            device_key,
            target_key,
            PROTOCOL_VERSION,
            result.started,
            result.duration_s,
            result.clock,
            result.load,  # SQLite keeps NaN as NULL
            result.canary.latency_ms,
            result.canary_floor_ms,
            result.overhead.latency_ms,
            result.split_half_error,
            1.0,
            result.unsteadiness,
            0.0,
            0.0,
        )
        cursor = self._connection.execute(
            f"INSERT INTO session VALUES ({', '.join('?' * len(values))}) ON CONFLICT DO UPDATE SET "
            "duration_s = excluded.duration_s, load = excluded.load, canary_ms = excluded.canary_ms, "
            "canary_floor_ms = excluded.canary_floor_ms, overhead_ms = excluded.overhead_ms, "
            "split_half_error = excluded.split_half_error, unsteadiness = excluded.unsteadiness",
            values,
        )
        assert cursor.lastrowid is not None
        return int(cursor.lastrowid if known is None else known[0])

    def _anchor_scale(
        self, device_key: str, target_key: str, result: SessionResult, session: int
    ) -> tuple[float, float, float]:
        """Compare a session with earlier ones; give the scale, the spread around it and its relative standard error.

        Later sessions do not count, for they were compared with this one.
        """
        ratios, stderrs = [], []
        keys = list(result.measurements)
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            rows = self._connection.execute(
                "SELECT workload, latency_ms * anchor_scale, stderr_ms / latency_ms FROM measurement "
                "JOIN session ON session.id = measurement.session "
                "WHERE measurement.device = ? AND measurement.target = ? AND measurement.session < ? "
                f"AND workload IN ({', '.join('?' * len(chunk))})",
                (device_key, target_key, session, *chunk),
            )
            for key, latency_ms, stderr in rows:
                now = result.measurements[key]
                ratios.append(latency_ms / now.latency_ms)
                stderrs.append(math.hypot(stderr, now.stderr_ms / now.latency_ms))
        if not ratios:
            return 1.0, 0.0, 0.0
        spread = unexplained([math.log(ratio) for ratio in ratios], stderrs)
        variance = spread**2 + statistics.fmean(error**2 for error in stderrs)
        return statistics.median(ratios), spread, _MEDIAN_TO_MEAN * math.sqrt(variance / len(ratios))

    def sessions(self, device_key: str, target_key: str, keys: Sequence[str] | None = None) -> list[StoredSession]:
        """Give the sessions of a device and a target, the oldest first.

        Parameters
        ----------
        device_key, target_key : str
            ``Device.key`` and ``OrtTarget.key``.
        keys : sequence of str, optional
            Of workloads: only the sessions that have a row of one of them.

        Returns
        -------
        list of StoredSession
            In the order in which they were recorded.
        """
        with self._guarded("be read"):
            rows = self._connection.execute(
                "SELECT id, started, canary_ms, canary_floor_ms, overhead_ms, anchor_scale, "
                "unsteadiness, anchor_spread, anchor_error FROM session "
                "WHERE device = ? AND target = ? ORDER BY id",
                (device_key, target_key),
            )
            found = [StoredSession(*row) for row in rows]
            if keys is None:
                return found
            holders: set[int] = set()
            for start in range(0, len(keys), _CHUNK):
                chunk = keys[start : start + _CHUNK]
                holders.update(
                    session
                    for (session,) in self._connection.execute(
                        "SELECT DISTINCT session FROM measurement WHERE device = ? AND target = ? "
                        f"AND workload IN ({', '.join('?' * len(chunk))})",
                        (device_key, target_key, *chunk),
                    )
                )
        return [session for session in found if session.id in holders]

    def canary_floor_ms(self, device_key: str, target_key: str) -> float | None:
        """Give the lowest floor of the canary that any session found, in milliseconds; None without sessions.

        Parameters
        ----------
        device_key, target_key : str
            ``Device.key`` and ``OrtTarget.key``.

        Returns
        -------
        float or None
            To be given to ``measure(..., floor_ms=...)``.
        """
        return min((s.canary_floor_ms for s in self.sessions(device_key, target_key)), default=None)

    def lookup_calibration(self, device_key: str, target_key: str, space_key: str) -> Calibration | None:
        """Find the calibration of a space; None when it has none.

        Parameters
        ----------
        device_key, target_key : str
            ``Device.key`` and ``OrtTarget.key``.
        space_key : str
            Identifies the model space.

        Returns
        -------
        Calibration or None
            As it was last recorded.
        """
        with self._guarded("be read"):
            row = self._connection.execute(
                "SELECT scale, offset_ms, n, residual FROM calibration WHERE device = ? AND target = ? AND space = ?",
                (device_key, target_key, space_key),
            ).fetchone()
        return None if row is None else Calibration(*row)

    def record_calibration(self, device: Device, target: OrtTarget, space_key: str, calibration: Calibration) -> None:
        """Keep the calibration of a space in place of an earlier one.

        Parameters
        ----------
        device : Device
            Where it was measured.
        target : OrtTarget
            On what it was measured.
        space_key : str
            Identifies the model space.
        calibration : Calibration
            What was found.

        Raises
        ------
        StoreError
            The file cannot be written.
        """
        with self._transaction():
            self._describe("device", device.key, device.to_dict())
            self._describe("target", target.key, target.to_dict())
            self._connection.execute(
                "INSERT OR REPLACE INTO calibration VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    device.key,
                    target.key,
                    space_key,
                    calibration.scale,
                    calibration.offset_ms,
                    calibration.n,
                    calibration.residual,
                ),
            )

    def _open(self) -> None:
        """Check the file, or make it a store when it is empty."""
        self._connection.execute("PRAGMA foreign_keys = ON")
        if self._is_empty():
            # Two processes may create the file at once: only what is seen inside the transaction counts.
            with self._transaction():
                if self._is_empty():
                    for statement in _SCHEMA:
                        self._connection.execute(statement)
                    self._connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        if self._pragma("application_id") != _APPLICATION_ID:
            raise self._error("it is a database of another program", "give another --store")
        if self._pragma("user_version") == 1:
            with self._transaction():
                if self._pragma("user_version") == 1:  # another process may do the same
                    for statement in _FROM_1_TO_2:
                        self._connection.execute(statement)
                    self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        version = self._pragma("user_version")
        if version != SCHEMA_VERSION:
            raise self._error(
                f"its schema version is {version}, and this hwnas reads version {SCHEMA_VERSION}",
                "move it away or give another --store",
            )
        self._check()

    def _check(self) -> None:
        """Read the whole file to see whether it is damaged, once for each version of it."""
        if self.path is None:
            return
        path, state = self.path.resolve(), self.path.stat()
        version = state.st_ino, state.st_size, state.st_mtime_ns
        if _CHECKED.get(path) == version:
            return
        (found,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise self._error(f"it is damaged ({found})", "move it away or give another --store")
        _CHECKED[path] = version

    def _is_empty(self) -> bool:
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return bool(tables == 0 and self._pragma("application_id") == 0 and self._pragma("user_version") == 0)

    def _pragma(self, name: str) -> int:
        (value,) = self._connection.execute(f"PRAGMA {name}").fetchone()
        return int(value)

    def _describe(self, table: str, key: str, description: Mapping[str, Any]) -> None:
        text = json.dumps(description, sort_keys=True)
        self._connection.execute(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", (key, text))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Write all or nothing; other writers wait."""
        with self._guarded("be written"):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _guarded(self, action: str) -> Iterator[None]:
        """Turn SQLite's errors into ones that say which file and what to do."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # the caller's mistake, such as a closed store or another thread; the file is well
        except sqlite3.Error as error:
            text = str(error)
            if isinstance(error, sqlite3.OperationalError) and "locked" in text:
                advice = f"another process held it for over {_BUSY_TIMEOUT_S:.0f} s: wait for it or end it"
            elif isinstance(error, sqlite3.IntegrityError):
                advice = "give numbers other than NaN"
            elif isinstance(error, sqlite3.OperationalError):
                advice = "check that the folder exists and may be written, or give another --store"
            else:
                advice = "move it away or give another --store"
            raise self._error(f"it cannot {action}: {text}", advice) from error

    def _error(self, what: str, advice: str) -> StoreError:
        where = "in memory" if self.path is None else str(self.path)
        return StoreError(f"Latency store {where}: {what}. It was left as it is; {advice}.")
