"""A file of JSON lines that survives a kill: what is written once is never computed again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Journal:
    """Results in the order in which they came, one line each, flushed to disk.

    Parameters
    ----------
    path : Path
        The file. It is created with its folder; a line cut off by a kill is removed.
    settings : dict
        What the results depend on. It is the first line, and a file with another one is refused.

    Raises
    ------
    ValueError
        If the file was written under other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.read_bytes() if path.exists() else b""
        whole = written[: written.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if lines and json.loads(lines[0]) != settings:
            raise ValueError(
                f"{path} holds results under {lines[0].decode()}, not under {json.dumps(settings)}; move it away to "
                "start anew"
            )
        self._results: list[dict[str, Any]] = [json.loads(line) for line in lines[1:]]
        if len(whole) < len(written):
            os.truncate(path, len(whole))
        if not lines:
            self._write(settings)

    def add(self, result: dict[str, Any]) -> None:
        """Write one result; when this returns it is on the disk."""
        self._write(result)
        self._results.append(result)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
