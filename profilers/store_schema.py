"""The tables of a latency store, and how files of earlier versions become ones of this."""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = 4
# Marks the file as a latency store: another program's database may well have the same schema number.
APPLICATION_ID: Final = 0x68776E61

SCHEMA: Final = (
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
        anchor_error REAL NOT NULL DEFAULT 0,
        anchor_exponent REAL NOT NULL DEFAULT 1,
        anchor_exponent_error REAL NOT NULL DEFAULT 0,
        anchor_pivot_ms REAL NOT NULL DEFAULT 1,
        anchor_low_ms REAL NOT NULL DEFAULT 1,
        anchor_high_ms REAL NOT NULL DEFAULT 1)""",
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
)

# How a version becomes the next one.
MIGRATIONS: Final = {
    1: tuple(
        f"ALTER TABLE session ADD COLUMN {name} REAL NOT NULL DEFAULT 0"
        for name in ("unsteadiness", "anchor_spread", "anchor_error")
    ),
    2: tuple(
        f"ALTER TABLE session ADD COLUMN {name} REAL NOT NULL DEFAULT {default}"
        for name, default in (
            ("anchor_exponent", 1),
            ("anchor_exponent_error", 0),
            ("anchor_pivot_ms", 1),
            ("anchor_low_ms", 1),
            ("anchor_high_ms", 1),
        )
    ),
    3: ("DROP TABLE calibration",),  # which nothing read
}
