from __future__ import annotations

import os

import numpy as np
import pytest
import torch

# Threads that wait for each other make tensors as small as these ten times slower on a busy machine. Tests of threads
# ask for them.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """No test depends on which ones ran before it."""
    np.random.seed(0)
    torch.manual_seed(0)
