"""The searches of `searches.py`, in this process and in others."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent / "searches.py"


@pytest.fixture(scope="session")
def searches() -> ModuleType:
    spec = importlib.util.spec_from_file_location("searches", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run_searches(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what runs the script in a process of its own, and gives the folder that it has written to."""

    def run(what: str) -> Path:
        folder = tmp_path_factory.mktemp(what)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [sys.executable, str(SCRIPT), what, str(folder)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr
        return folder

    return run
