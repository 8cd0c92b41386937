"""A search that is killed and goes on from its last checkpoint ends as one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

NAMES = ["DARTS", "GumbelDARTS", "Proxyless", "RandomOneShot", "ENAS"]


@pytest.fixture(scope="module")
def killed(run_searches: Callable[[str], Path]) -> Path:
    """Return the checkpoints of processes that were killed in the middle of the second of three epochs."""
    return run_searches("interrupted")


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by their paths."""
    if isinstance(value, dict):
        return {key: leaf for name, part in value.items() for key, leaf in flat(part, f"{path}.{name}").items()}
    return {path: value}


def assert_same(ours: Any, theirs: Any) -> None:
    ours, theirs = flat(ours), flat(theirs)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        same = torch.equal(value, theirs[path]) if isinstance(value, torch.Tensor) else value == theirs[path]
        assert same, path


@pytest.mark.parametrize("name", NAMES)
def test_the_end_is_the_same_bit_for_bit(name, searches, killed):
    whole = searches.outcome(searches.search(name, 4, random=True, max_epochs=3))
    for every, step in (("epoch", 8), ("steps", 10)):
        last = killed / f"{name}-{every}" / "last.ckpt"
        assert torch.load(last, weights_only=True)["global_step"] == step
        resumed = searches.search(
            name,
            4,
            random=True,
            max_epochs=3,
            callbacks=[searches.checkpoints(name, every, killed)],
            ckpt_path=last,
        )
        assert_same(searches.outcome(resumed), whole)
