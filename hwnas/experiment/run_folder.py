"""`RunFolder`: what a search leaves behind, and from what it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hwnas.atomic import write_text
from hwnas.errors import HwnasError

CONFIG = "config.json"


class RunFolderError(HwnasError):
    """A run folder cannot be written, holds another run, or is damaged."""


class RunFolder:
    """A folder with the configuration of a run and the outcome of each finished stage.

    Every file is written as a whole or not at all, so a run that was stopped at any moment can go on.

    Parameters
    ----------
    path : path-like
        Created when it is missing.
    config : dict
        What decides the outcome. A run goes on only with the same configuration.
    resume : bool, default False
        Whether to go on with the run in the folder, if there is one.

    Raises
    ------
    RunFolderError
        When the folder cannot be written, holds a run and `resume` is not given, or the run in it has another
        configuration.
    """

    def __init__(self, path: str | Path, config: dict[str, Any], *, resume: bool = False) -> None:
        self.path = Path(path)
        existing = self.path / CONFIG
        try:
            if existing.exists():
                self._check(config, resume)
            elif self.path.is_dir() and any(self.path.iterdir()):
                raise RunFolderError(f"{self.path} is not empty and holds no run; choose another folder with --out")
            else:
                self.save(CONFIG, config)
        except OSError as error:
            raise RunFolderError(
                f"the run folder {self.path} cannot be written: {error.strerror or error}; choose another with --out"
            ) from error

    def _check(self, config: dict[str, Any], resume: bool) -> None:
        if not resume:
            raise RunFolderError(
                f"{self.path} holds a run already; go on with it by --resume, or choose another folder with --out"
            )
        before = self.load(CONFIG)
        if not isinstance(before, dict):
            raise RunFolderError(
                f"{self.path / CONFIG} is damaged (it holds no object); choose another folder with --out"
            )
        normal = json.loads(json.dumps(config))
        if before != normal:
            differing = sorted(key for key in {*before, *normal} if before.get(key) != normal.get(key))
            raise RunFolderError(
                f"the run in {self.path} was started differently: {', '.join(differing)}. "
                "Give the same settings, or choose another folder with --out"
            )
        (self.path / CONFIG).touch()  # finds out now, not after hours, that the folder is read-only

    def has(self, name: str) -> bool:
        """Tell whether a file is there."""
        return (self.path / name).exists()

    def load(self, name: str) -> Any:
        """Read a JSON file.

        Raises
        ------
        RunFolderError
            When it is damaged.
        """
        try:
            return json.loads((self.path / name).read_text())
        except (ValueError, UnicodeDecodeError) as error:
            advice = "choose another folder with --out" if name == CONFIG else "remove it to repeat that stage"
            raise RunFolderError(f"{self.path / name} is damaged ({error}); {advice}") from error

    def save(self, name: str, data: Any) -> None:
        """Write a JSON file, all or nothing."""
        write_text(self.path / name, json.dumps(data, indent=2, allow_nan=False) + "\n")
