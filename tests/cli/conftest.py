from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hwnas import experiment
from hwnas.cli import app
from hwnas.experiment import ModelRow, SearchResult, SearchSettings

Run = Callable[..., Result]

TINY_SPACE = """
import hwnas.nn as nn


class Tiny(nn.ModelSpace):
    def __init__(self):
        super().__init__()
        width = nn.ValueChoice([4, 8], label="width")
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.act = nn.LayerChoice([nn.ReLU(), nn.SiLU()], label="act")
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.act(self.stem(x)).mean((2, 3)))
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in this process, in an empty folder and with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def invoke(*arguments: object) -> Result:
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr("sys.argv", ["hwnas", *words])
        # A fault of the program must not pass for exit code 1.
        return CliRunner().invoke(app, words, catch_exceptions=False, prog_name="hwnas")

    return invoke


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A space in a file: two widths, two activations."""
    (tmp_path / "tiny.py").write_text(TINY_SPACE)
    return f"{tmp_path}/tiny.py:Tiny"


@pytest.fixture
def make_result() -> Callable[..., SearchResult]:
    """Make what a search of the digits might return."""
    sample = {"width": 32, "stage1/depth": 1, "stage2/depth": 2} | {
        f"stage{stage}/block{block}": "sep3" for stage in (1, 2) for block in range(3)
    }

    def make(measured_ms: float | None = 0.98, **settings: Any) -> SearchResult:
        row = ModelRow(
            name="chosen",
            sample=sample,
            val_accuracy=0.9876,
            test_accuracy=0.9754,
            predicted_ms=1.0,
            predicted_stderr_ms=0.021,
            measured_ms=measured_ms,
            measured_stderr_ms=0.004,
            macs=12_345_678.0,
            parameters=43_210,
        )
        others = [ModelRow(**{**vars(row), "name": name}) for name in ("random", "fastest", "largest")]
        return SearchResult(
            task="digits",
            settings=SearchSettings(**{"max_latency_ms": 1.0, **settings}).to_dict(),
            rows=(row, *others),
            latency={"relative_residual": float("nan")},
            verification={"max_abs_error": 1e-7},
            folder="runs/one",
            seconds={"train": 1.0},
        )

    return make


@pytest.fixture
def fake_search(monkeypatch: pytest.MonkeyPatch, make_result: Callable[..., SearchResult]) -> Callable[..., Any]:
    """Put something in the place of `run_search`; gives the list of calls that it gets."""

    def install(outcome: Any = None) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def run_search(task: Any, settings: Any, folder: Path, **options: Any) -> SearchResult:
            calls.append({"task": task, "settings": settings, "folder": folder, **options})
            options["narrator"].stage("measure the parts of the space")
            options["narrator"].progress("measure", 5, 10)
            print("printed by whatever runs inside")
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome() if callable(outcome) else outcome or make_result()

        monkeypatch.setattr(experiment, "run_search", run_search)
        return calls

    return install
