"""The SQLite file behind a latency store: opened, checked, brought up to date, with errors that say what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hwnas.errors import StoreError
from hwnas.profilers.store_schema import APPLICATION_ID, MIGRATIONS, SCHEMA, SCHEMA_VERSION

_BUSY_TIMEOUT_S: Final = 30.0

# Reading all of a large file to check it takes a tenth of a second, so this process remembers by path which version of
# a file was well: inode, size and time of the last change.
_CHECKED: Final[dict[Path, tuple[int, int, int]]] = {}


class StoreFile:
    """An open file that has the tables of this version.

    Parameters
    ----------
    path : Path or None
        The file; it and its folder are created when missing. None keeps everything in memory.

    Raises
    ------
    StoreError
        The file cannot be opened, is damaged, is not a latency store or has another schema version. It is
        left as it is.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._error(f"its folder cannot be created: {error}", "give another --store") from error
        with self.guarded("be opened"):
            self.connection = sqlite3.connect(
                ":memory:" if path is None else path, timeout=_BUSY_TIMEOUT_S, isolation_level=None
            )
        try:
            with self.guarded("be read"):
                self._open()
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        """Close the file. Closing twice does no harm."""
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all or nothing; other writers wait."""
        with self.guarded("be written"):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def guarded(self, action: str) -> Iterator[None]:
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

    def _open(self) -> None:
        """Check the file, or make it a store when it is empty."""
        self.connection.execute("PRAGMA foreign_keys = ON")
        if self._is_empty():
            # Two processes may create the file at once: only what is seen inside the transaction counts.
            with self.transaction():
                if self._is_empty():
                    for statement in SCHEMA:
                        self.connection.execute(statement)
                    self.connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    self.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        if self._pragma("application_id") != APPLICATION_ID:
            raise self._error("it is a database of another program", "give another --store")
        if self._pragma("user_version") in MIGRATIONS:
            with self.transaction():
                # Another process may do the same.
                while (version := self._pragma("user_version")) in MIGRATIONS:
                    for statement in MIGRATIONS[version]:
                        self.connection.execute(statement)
                    self.connection.execute(f"PRAGMA user_version = {version + 1}")
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
        (found,) = self.connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise self._error(f"it is damaged ({found})", "move it away or give another --store")
        _CHECKED[path] = version

    def _is_empty(self) -> bool:
        (tables,) = self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return bool(tables == 0 and self._pragma("application_id") == 0 and self._pragma("user_version") == 0)

    def _pragma(self, name: str) -> int:
        (value,) = self.connection.execute(f"PRAGMA {name}").fetchone()
        return int(value)

    def _error(self, what: str, advice: str) -> StoreError:
        where = "in memory" if self.path is None else str(self.path)
        return StoreError(f"Latency store {where}: {what}. It was left as it is; {advice}.")
