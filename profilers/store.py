"""Latencies kept in an SQLite file, shared by runs and by processes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from hwnas.profilers.device import Device
from hwnas.profilers.measurement import Measurement, SessionResult
from hwnas.profilers.session_scale import Scale, compare_sessions
from hwnas.profilers.store_file import StoreFile
from hwnas.profilers.target import PROTOCOL_VERSION, OrtTarget

# SQLite limits the variables of a statement, to 999 in old builds.
_CHUNK: Final = 500
# What a `Scale` consists of, in its order.
_SCALE: Final = (
    "anchor_scale",
    "anchor_spread",
    "anchor_error",
    "anchor_exponent",
    "anchor_exponent_error",
    "anchor_pivot_ms",
    "anchor_low_ms",
    "anchor_high_ms",
)


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
    unsteadiness : float
        See `SessionResult`.
    scale : Scale
        What makes the latencies of the session comparable with those of earlier ones.
    """

    id: int
    started: float
    canary_ms: float
    canary_floor_ms: float
    overhead_ms: float
    unsteadiness: float
    scale: Scale


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
        self._file = StoreFile(None if path is None else Path(path))

    @property
    def path(self) -> Path | None:
        """The file; None in memory."""
        return self._file.path

    def __enter__(self) -> LatencyStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Closing twice does no harm."""
        self._file.close()

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
            The known keys, in the order of `keys`. Times are put on the scale of the first session, so that rows of
            different sessions may be mixed, and what that is uncertain by is part of the standard error.
        """
        found: dict[str, Measurement] = {}
        with self._file.guarded("be read"):
            for key, measured, scale in self._rows(keys, device_key, target_key):
                factor, error = scale.at(measured.latency_ms), scale.error_at(measured.latency_ms)
                latency_ms = factor * measured.latency_ms
                stderr_ms = math.hypot(factor * measured.stderr_ms, error * latency_ms)
                found[key] = replace(measured, latency_ms=latency_ms, stderr_ms=stderr_ms)
        return {key: found[key] for key in keys if key in found}

    def _rows(
        self, keys: Sequence[str], device_key: str, target_key: str, before: int | None = None
    ) -> Iterator[tuple[str, Measurement, Scale]]:
        """Yield what is known of keys as it was measured, with the scale of its session, `before` a session or all."""
        for start in range(0, len(keys), _CHUNK):
            chunk = list(keys[start : start + _CHUNK])
            rows = self._file.connection.execute(
                f"SELECT workload, latency_ms, stderr_ms, visits, contended, {', '.join(_SCALE)} "
                "FROM measurement JOIN session ON session.id = measurement.session "
                "WHERE measurement.device = ? AND measurement.target = ? AND (? IS NULL OR measurement.session < ?) "
                f"AND workload IN ({', '.join('?' * len(chunk))})",
                (device_key, target_key, before, before, *chunk),
            )
            for key, latency_ms, stderr_ms, visits, contended, *scale in rows:
                yield key, Measurement(latency_ms, stderr_ms, visits, bool(contended)), Scale(*scale)

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
            Factor that makes its latencies comparable with those of the other sessions. Unless given, the workloads
            tell that an earlier session has measured too; see `compare_sessions`.
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
        with self._file.transaction():
            self._describe("device", device.key, device.to_dict())
            self._describe("target", target.key, target.to_dict())
            session = self._session(device.key, target.key, result)
            if anchor_scale is not None or refresh:
                scale = Scale(1.0 if anchor_scale is None else anchor_scale)
            else:
                scale = self._scale_of(device.key, target.key, result, session)
            self._file.connection.execute(
                f"UPDATE session SET {', '.join(f'{column} = ?' for column in _SCALE)} WHERE id = ?",
                (*astuple(scale), session),
            )
            before = self._file.connection.total_changes
            columns = ("latency_ms", "stderr_ms", "visits", "contended", "session")
            self._file.connection.executemany(
                # Not "OR IGNORE" or "OR REPLACE", which would also drop rows that break another rule, without a word.
                "INSERT INTO measurement VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                + ", ".join(f"{column} = excluded.{column}" for column in columns)
                + ("" if refresh else " WHERE session = excluded.session"),
                [
                    (device.key, target.key, key, m.latency_ms, m.stderr_ms, m.visits, m.contended, session)
                    for key, m in result.measurements.items()
                ],
            )
            return self._file.connection.total_changes - before

    def _session(self, device_key: str, target_key: str, result: SessionResult) -> int:
        """Write the description of a session; give its number."""
        known = self._file.connection.execute(
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
            *astuple(Scale())[1:],
        )
        cursor = self._file.connection.execute(
            f"INSERT INTO session VALUES ({', '.join('?' * len(values))}) ON CONFLICT DO UPDATE SET "
            "duration_s = excluded.duration_s, load = excluded.load, canary_ms = excluded.canary_ms, "
            "canary_floor_ms = excluded.canary_floor_ms, overhead_ms = excluded.overhead_ms, "
            "split_half_error = excluded.split_half_error, unsteadiness = excluded.unsteadiness",
            values,
        )
        assert cursor.lastrowid is not None
        return int(cursor.lastrowid if known is None else known[0])

    def _scale_of(self, device_key: str, target_key: str, result: SessionResult, session: int) -> Scale:
        """Compare a session with earlier ones. Later sessions do not count, for they were compared with this one."""
        before, now, stderrs = [], [], []
        for key, known, scale in self._rows(list(result.measurements), device_key, target_key, session):
            again = result.measurements[key]
            before.append(scale.at(known.latency_ms) * known.latency_ms)
            now.append(again.latency_ms)
            stderrs.append(math.hypot(known.stderr_ms / known.latency_ms, again.stderr_ms / again.latency_ms))
        return compare_sessions(before, now, stderrs)

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
        with self._file.guarded("be read"):
            rows = self._file.connection.execute(
                "SELECT id, started, canary_ms, canary_floor_ms, overhead_ms, unsteadiness, "
                f"{', '.join(_SCALE)} FROM session WHERE device = ? AND target = ? ORDER BY id",
                (device_key, target_key),
            )
            found = [
                StoredSession(number, started, canary_ms, floor_ms, overhead_ms, unsteadiness, Scale(*scale))
                for number, started, canary_ms, floor_ms, overhead_ms, unsteadiness, *scale in rows
            ]
            if keys is None:
                return found
            holders: set[int] = set()
            for start in range(0, len(keys), _CHUNK):
                chunk = keys[start : start + _CHUNK]
                holders.update(
                    session
                    for (session,) in self._file.connection.execute(
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

    def _describe(self, table: str, key: str, description: Mapping[str, Any]) -> None:
        text = json.dumps(description, sort_keys=True)
        self._file.connection.execute(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", (key, text))
