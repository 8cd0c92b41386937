"""The example programs run, in their shortest form."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_plain_pytorch_search(capsys: pytest.CaptureFixture[str]) -> None:
    program = runpy.run_path(str(EXAMPLES / "plain_pytorch_search.py"))
    accuracy = program["main"](epochs=1)
    assert 0.1 < accuracy <= 1
    assert "found {'width': " in capsys.readouterr().out
