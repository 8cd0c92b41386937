"""A search that is killed and goes on from its last checkpoint ends as one that was not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parent / "searches.py"
NAMES = ["DARTS", "GumbelDARTS", "Proxyless", "RandomOneShot", "ENAS"]


@pytest.fixture(scope="module")
def searches() -> ModuleType:
    spec = importlib.util.spec_from_file_location("searches", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoints of processes that were killed in the middle of the second of three epochs."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "interrupted", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return folder


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
