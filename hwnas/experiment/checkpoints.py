"""Checkpoints that are whole or absent, whenever the process is stopped."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from hwnas.atomic import replacing
from hwnas.experiment.run_folder import RunFolderError


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints all or nothing.

    Lightning's own way goes through the system's folder for temporary files. Where that is another file system, the
    last step is a copy, which can be cut off.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint beside its place, then move it there."""
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)


def existing_checkpoint(path: Path) -> Path | None:
    """Return the path where there is a checkpoint, None where there is none.

    Raises
    ------
    RunFolderError
        When the file is no checkpoint.
    """
    if not path.exists():
        return None
    if not zipfile.is_zipfile(path):  # what PyTorch writes, with its table of contents at the end
        raise RunFolderError(f"{path} is damaged; remove it to train the super-net anew")
    return path
