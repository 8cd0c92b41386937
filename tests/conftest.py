from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """No test depends on which ones ran before it."""
    np.random.seed(0)
    torch.manual_seed(0)
