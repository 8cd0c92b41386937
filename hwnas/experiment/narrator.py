"""How a search tells what it is doing."""

from __future__ import annotations

from typing import Protocol


class Narrator(Protocol):
    """Receives what a search has to say while it runs; nothing of it is a result."""

    def stage(self, title: str) -> None:
        """Hear that a new stage begins."""

    def say(self, text: str) -> None:
        """Hear a finding worth a line."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Hear that `done` of `total` steps of `what` are finished."""


class Silent:
    """A narrator that says nothing."""

    def stage(self, title: str) -> None:
        """Say nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Say nothing."""
