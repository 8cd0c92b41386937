"""The command line, one file for each verb.

Nothing here imports PyTorch before a command runs, so that ``hwnas --help`` answers at once.
"""

from __future__ import annotations

from hwnas.cli.app import app, main

__all__ = ["app", "main"]
