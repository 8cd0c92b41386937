"""The benchmarks: all ways of a step compute the same, and the pages have the recorded figures."""

from __future__ import annotations

import argparse
import runpy
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


@pytest.mark.parametrize("script", ["kernels/report.py", "latency_report.py"])
def test_pages_have_the_recorded_figures(script: str) -> None:
    assert runpy.run_path(str(FOLDER / script))["is_up_to_date"](), f"run python benchmarks/{script}"
