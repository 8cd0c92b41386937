"""The figure of a profile: what stands where, read back from the drawing."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import pytest

from hwnas.cli.profile_plot import BINS, HEIGHT, WIDTH, Axis, plot

SVG = "{http://www.w3.org/2000/svg}"


def _found(**changes: Any) -> dict[str, Any]:
    spread = {"min": 0.0, "q05": 1.0, "q25": 2.0, "q50": 5.0, "q75": 7.0, "q95": 9.0, "max": 10.0}
    found: dict[str, Any] = {
        "space": "a<b>",
        "members": 12,
        "batch_size": 1,
        "device": {"cpu": "One & only"},
        "target": {"intra_op_threads": 1, "provider": "CPUExecutionProvider", "precision": "fp32"},
        "costs": {name: dict(spread) for name in ("latency_ms", "macs", "parameters")},
        "spearman_macs_latency": 0.5,
        "median_member": {
            "latency_ms": 4.0,
            "parts": [{"name": f"part{i}", "latency_ms": 1.0 if i == 0 else 0.3} for i in range(11)],
        },
        "accuracy": {
            "n": 3, "spearman": 1.0, "kendall": math.nan, "mape": 0.02, "within_5": 1.0, "within_10": 1.0,
            "coverage_90": math.nan, "noise": 0.01,
        },
    }  # fmt: skip
    return found | changes


COSTS = {"latency_ms": [0.0, 5.0, 5.0, 10.0], "macs": [0.0, 10.0, 5.0, 10.0], "parameters": [5.0] * 4}


def _parsed(text: str) -> tuple[list[str], list[dict[str, str]], list[dict[str, str]]]:
    root = ElementTree.fromstring(text)
    texts = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    bars = [element.attrib for element in root.iter(f"{SVG}rect") if "x" in element.attrib]
    return texts, bars, [element.attrib for element in root.iter(f"{SVG}circle")]


def test_bars_points_and_texts_are_those_of_the_figures() -> None:
    texts, bars, points = _parsed(plot(_found(), COSTS))
    assert texts[0] == "a<b>: batches of 1, 1 thread; 12 members"
    assert "One & only, CPUExecutionProvider, fp32" in texts
    # Latency: one member at each end, two in the middle, in bars of half and full height.
    latency = sorted((float(bar["x"]), float(bar["height"])) for bar in bars if float(bar["x"]) < 64 + WIDTH)[:3]
    assert [height for _, height in latency] == pytest.approx([HEIGHT * 0.46, HEIGHT * 0.92, HEIGHT * 0.46], abs=0.1)
    width = WIDTH / BINS
    assert [x for x, _ in latency] == pytest.approx([64, 64 + WIDTH / 2, 64 + WIDTH - width], abs=0.1)
    assert len(points) == 4
    assert float(points[0]["cx"]) < float(points[2]["cx"]) < float(points[1]["cx"]) == float(points[3]["cx"])
    assert float(points[3]["cy"]) < float(points[1]["cy"]) < float(points[0]["cy"])  # up is slow
    shares = [text for text in texts if text.endswith(" %")]
    assert "25.0 %" in shares  # the first part
    assert "4 others" in texts
    assert "30.0 %" in shares  # of the last four parts together
    assert {"2.0 %", "1.0 %"} <= set(shares)
    assert texts.count("undefined") == 1
    assert "latency (ms) against MACs: rank correlation 0.500" in texts


def test_unknown_and_equal_costs_are_drawn_too() -> None:
    unknown = dict.fromkeys(("min", "max"), math.nan) | {"q50": 5.0}
    found = _found(members=None, costs=dict.fromkeys(COSTS, unknown), spearman_macs_latency=math.nan)
    texts, bars, _ = _parsed(plot(found, {name: [5.0, 5.0] for name in COSTS}))
    assert "uncountably many members" in texts[0]
    assert not any(text.startswith("all members") for text in texts)
    assert "nan" not in "".join(texts).lower().replace("uncountably many", "")
    assert all(math.isfinite(float(bar["x"])) for bar in bars)


@pytest.mark.parametrize(
    ("low", "high", "ticks"), [(0, 10, [0, 5, 10]), (0.9, 4.2, [1, 2, 3, 4]), (0, 0, [0]), (130, 790, [200, 400, 600])]
)
def test_ticks_are_round_and_within(low: float, high: float, ticks: list[float]) -> None:
    assert Axis(low, high, 0, 100).ticks() == pytest.approx(ticks)
