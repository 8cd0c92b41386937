"""Two processes with half of the batch each are one process with the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

NAMES = ["DARTS", "GumbelDARTS", "Proxyless", "RandomOneShot", "RandomOneShot, fair", "ENAS"]


@pytest.fixture(scope="module")
def together(run_searches: Callable[[str], Path]) -> Path:
    """Return what the two processes have left behind."""
    return run_searches("two-processes")


def test_processes_that_would_train_different_members_stop(together):
    for rank in (0, 1):
        message = (together / f"disagree-{rank}.txt").read_text()
        assert "the processes of the search disagree on the members" in message


def tensors(outcome: dict[str, Any]) -> dict[str, torch.Tensor]:
    parts = ("relaxation", "weights", "controller")
    return {f"{part}.{name}": tensor for part in parts for name, tensor in outcome[part].items() if tensor is not None}


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_are_one_with_twice_the_batch(name, together, searches):
    first, second = (torch.load(together / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
    for part, tensor in tensors(first).items():
        assert torch.equal(tensor, tensors(second)[part]), part
    assert first["best"] == second["best"]
    assert first["metrics"] == second["metrics"]

    alone = searches.outcome(searches.search(name, 8, max_epochs=2, precision="64-true", devices=1))
    for part, tensor in tensors(first).items():
        torch.testing.assert_close(tensor, tensors(alone)[part], rtol=1e-4, atol=1e-6)
    assert first["best"] == alone["best"]
    assert first["metrics"] == pytest.approx(alone["metrics"], abs=1e-6)
