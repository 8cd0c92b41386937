"""The benchmarks of whole steps: all ways compute the same, and the page has the recorded figures."""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks" / "kernels"


@pytest.fixture(scope="module")
def darts_step() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "darts_step.py"))


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


def test_the_page_has_the_recorded_figures() -> None:
    report = runpy.run_path(str(FOLDER / "report.py"))
    assert report["is_up_to_date"](), "run python benchmarks/kernels/report.py"
