"""Random numbers of a fit: seeded, and apart from the caller's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch


@contextmanager
def isolated_seed(seed: int) -> Iterator[None]:
    """Seed the global generators of PyTorch, NumPy and Python for the block, and give them back as they were.

    Parameters
    ----------
    seed : int
        At least 0.
    """
    with kept_random_states():
        seed_torch(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield


@contextmanager
def kept_random_states() -> Iterator[None]:
    """Leave the global generators of PyTorch, NumPy and Python as they were before the block."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def seed_torch(seed: int) -> None:
    """Seed PyTorch on all devices.

    Parameters
    ----------
    seed : int
        At least 0, less than 2**63.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        # `torch.manual_seed` also takes down for each kind of device that it should be seeded once it is there, with
        # the stack of the caller. That takes half of a millisecond.
        torch.default_generator.manual_seed(seed)


class SeedEachStep(L.Callback):
    """Seed PyTorch before each training step from (seed, epoch, batch, rank).

    A run that stops and resumes does not draw the numbers that the uninterrupted run drew in between
    (Lightning creates the iterators of a resumed run at another moment), so carrying a generator's state
    along would not make the two equal. Seeding by position does.

    Parameters
    ----------
    seed : int
        At least 0.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed."""
        # Processes that train together draw different numbers, and the first those of a process by itself.
        rank = (trainer.global_rank,) if trainer.global_rank else ()
        entropy = np.random.SeedSequence((self.seed, trainer.current_epoch, batch_idx), spawn_key=rank)
        seed_torch(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
