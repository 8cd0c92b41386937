from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from rich.console import Console

from hwnas.kernels.bench import PHASES, bench, table


def test_rows_and_table() -> None:
    before = torch.get_num_threads()
    rows = bench(1, 0.0, counts=[3], sizes=[64], compiled=False)
    assert torch.get_num_threads() == before
    assert [row.phase for row in rows] == list(PHASES)
    for row in rows:
        assert row.rounds >= 5
        assert row.native.low_us <= row.native.median_us <= row.native.high_us
        assert row.over_eager == pytest.approx(row.eager.median_us / row.native.median_us)
        passes = 7 if row.phase == "backward" else 4
        assert row.of_copy == pytest.approx(passes / 2 * row.copy.median_us / row.native.median_us)
        assert row.compiled is None
    assert json.loads(json.dumps([asdict(row) for row in rows]))[0]["count"] == 3
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table(rows))
    assert capture.get().count("backward") == 1
