from __future__ import annotations

import json
import os

import torch

from hwnas.kernels import bench
from hwnas.kernels.bench import Case, Problem


def double() -> Problem:
    x = torch.ones(4, requires_grad=True)
    return Problem({"native": lambda: x + x, "eager": lambda: 2 * x, "compiled": lambda: 2 * x}, [x])


def cases(operator):
    return lambda: [Case(operator, "4", "contiguous", "float32", double, dict.fromkeys(bench.PHASES))]


def test_kernels(run, monkeypatch):
    monkeypatch.setattr(bench, "OPERATORS", (cases("one"), cases("two")))
    before = torch.get_num_threads()
    result = run("bench", "kernels", "--seconds", 0, "--no-compile", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    rows = found["rows"]
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["machine"]["instruction_set"] in (None, "base", "avx2", "avx512")
    assert [(row["operator"], row["phase"]) for row in rows] == [(o, p) for o in ("one", "two") for p in bench.PHASES]
    assert all(row["times_us"]["native"]["median"] > 0 for row in rows)
    assert all(set(row["over"]) == {"eager"} for row in rows)
    assert "rows: 0 of 8" in result.stderr
    assert "rows: 8 of 8" in result.stderr

    result = run("bench", "kernels", "two", "--threads", 2, "--seconds", 0)
    assert result.exit_code == 0
    assert result.stdout.count("two") == len(bench.PHASES)
    assert "one" not in result.stdout
    assert "over compiled" in result.stdout
    assert torch.get_num_threads() == before


def test_an_unknown_operator(run):
    result = run("bench", "kernels", "nonesuch")
    assert result.exit_code == 2
    assert "there is no benchmark of 'nonesuch'; there are mixed_sum" in result.stderr
