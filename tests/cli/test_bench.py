from __future__ import annotations

import json

from hwnas.kernels import bench


def test_kernels(run, monkeypatch):
    measure = bench.bench
    asked = []

    def quick(threads, *, compiled, progress):
        asked.append((threads, compiled))
        return measure(threads, 0.01, counts=(2,), sizes=(256,), compiled=False, progress=progress)

    monkeypatch.setattr(bench, "bench", quick)
    result = run("bench", "kernels", "--no-compile", "--json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)["rows"]
    assert [row["phase"] for row in rows] == list(bench.PHASES)
    assert all(row["native"]["median_us"] > 0 for row in rows)
    assert asked == [(1, False)]
    assert "kernels: 0 of" in result.stderr

    result = run("bench", "kernels", "--threads", 2)
    assert result.exit_code == 0
    assert "backward" in result.stdout
    assert asked[1] == (2, True)
