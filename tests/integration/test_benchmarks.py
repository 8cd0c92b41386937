"""The benchmarks: all ways of a step compute the same, and the pages have the recorded figures."""

from __future__ import annotations

import argparse
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def darts_step() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "kernels" / "darts_step.py"))


@pytest.mark.parametrize("autocast", [False, True])
def test_all_ways_of_a_darts_step_have_the_same_losses(darts_step: dict[str, Any], autocast: bool) -> None:
    names = [name for name, (way, _) in darts_step["WAYS"].items() if way != "compiled"]
    small = argparse.Namespace(cells=3, channels=4, batch=8, size=16, rounds=1, autocast=autocast)
    threads = torch.get_num_threads()
    try:
        run = darts_step["measure"](names, 1, small)  # raises when losses differ
    finally:
        torch.set_num_threads(threads)
    assert set(run["ways"]) == set(names)
    assert all(first != second for _, (first, second) in run["losses"].values())


@pytest.mark.parametrize("page", ["kernels", "latency", "costs", "hub", "digits_nb"])
def test_pages_have_the_recorded_figures(page: str) -> None:
    """That of the strategies takes longer; tests/integration/test_strategy_matrix.py checks each of its cells."""
    command = [sys.executable, str(FOLDER / "report.py"), "--check", page]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"run python benchmarks/report.py {page}: {found.stdout}{found.stderr}"
