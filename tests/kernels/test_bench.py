from __future__ import annotations

import dataclasses
import json
import time
import xml.etree.ElementTree as ET

import pytest
import torch
from rich.console import Console

from hwnas.kernels import bench
from hwnas.kernels.bench import PHASES, Case, Limit, Problem, Quartiles, measure, plot, table

SIZE = 64


def prepare() -> Problem:
    x = torch.ones(SIZE, requires_grad=True)

    def slow() -> torch.Tensor:
        end = time.process_time() + 2e-3
        while time.process_time() < end:
            pass
        return 2 * x

    return Problem({"native": lambda: x + x, "eager": slow, "compiled": lambda: 2 * x}, [x])


CASE = Case("double", "64", "contiguous", "float32", prepare, dict.fromkeys(PHASES, Limit(2 * 4 * SIZE)))


def test_rows() -> None:
    before = torch.get_num_threads()
    said: list[str] = []
    rows = measure([CASE], 2, 0.0, compiled=False, progress=said.append)
    assert torch.get_num_threads() == before
    assert [row.phase for row in rows] == list(PHASES)
    assert said[0] == "double 64, contiguous, float32, inference"
    for row in rows:
        assert (row.operator, row.shape, row.threads, row.clock, row.rounds) == ("double", "64", 2, "wall", 5)
        assert set(row.times_us) == {"native", "eager", "copy"}
        assert set(row.over) == {"eager"}
        for quartiles in (*row.times_us.values(), *row.over.values()):
            assert 0 < quartiles.low <= quartiles.median <= quartiles.high
        assert row.of_limit is not None
        # The backward pass of both is the same; what is slow is the forward pass.
        assert (row.times_us["eager"].median > 1900) == (row.phase != "backward")
        assert (row.over["eager"].low > 5) == (row.phase != "backward")
    assert json.loads(json.dumps([dataclasses.asdict(row) for row in rows]))[0]["operator"] == "double"


def test_on_one_thread_the_time_of_the_process_counts() -> None:
    (row,) = measure([dataclasses.replace(CASE, phases={"forward": None})], 1, 0.0)
    assert row.clock == "cpu"
    assert row.of_limit is None
    assert set(row.times_us) == {"native", "eager", "compiled"}


def test_what_others_leave_behind_is_not_timed() -> None:
    def disturbed() -> Problem:
        x, cold = torch.ones(SIZE), [False]

        def native() -> torch.Tensor:
            end = time.process_time() + (2e-2 if cold.pop() else 0)
            while time.process_time() < end:
                pass
            cold.append(False)
            return 2 * x

        def eager() -> torch.Tensor:
            cold[0] = True
            return 2 * x

        return Problem({"native": native, "eager": eager}, [])

    (row,) = measure([dataclasses.replace(CASE, prepare=disturbed, phases={"inference": None})], 1, 0.0)
    assert row.times_us["native"].high < 1e4


def test_the_share_of_the_arithmetic_limit() -> None:
    a = torch.rand(768, 768, dtype=torch.float64)

    def product() -> Problem:
        return Problem({"native": lambda: a @ a, "eager": lambda: a @ a}, [])

    case = Case("product", "768", "contiguous", "float64", product, {"inference": Limit(flops=2 * 768**3)})
    (row,) = measure([case], 1, 0.0)
    assert row.of_limit is not None
    assert row.of_limit.median == pytest.approx(1, rel=0.5)
    assert "matmul" in row.times_us


def test_a_limit_has_one_kind() -> None:
    for arguments in ({}, {"bytes_moved": 1, "flops": 1}):
        with pytest.raises(ValueError, match="expected exactly one of both"):
            Limit(**arguments)


def test_contenders_compute_the_same() -> None:
    x = torch.ones(3)
    wrong = Problem({"native": lambda: x, "eager": lambda: 1.1 * x}, [])
    with pytest.raises(ValueError, match=r"double 64, .*: 'eager' computes something else than 'native'"):
        measure([dataclasses.replace(CASE, prepare=lambda: wrong)], 1, 0.0)
    alone = Problem({"native": lambda: x}, [])
    with pytest.raises(ValueError, match="there is no contender 'eager', only native"):
        measure([dataclasses.replace(CASE, prepare=lambda: alone)], 1, 0.0)


def row(shape: str, **over: float) -> bench.Row:
    around = {name: Quartiles(value, 0.9 * value, 1.1 * value) for name, value in over.items()}
    times = {"native": Quartiles(10.0, 9.0, 11.0)}
    return bench.Row("op", shape, "contiguous", "float32", "forward", 1, "cpu", 5, times, around, None)


ROWS = [row("4 < 5", eager=0.5), row("6", eager=3.0, compiled=17.0)]


def test_table() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table(ROWS))
    first, second = (line for line in capture.get().splitlines() if "contiguous" in line)
    assert "10.0 (9.0-11.0)" in first
    assert "0.50x (0.45-0.55)" in first
    assert "17.00x (15.30-18.70)" in second


def test_plot() -> None:
    image = ET.fromstring(plot(ROWS, "a & b"))
    name = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in image.iter(f"{name}text")]
    assert texts[0] == "a & b"
    assert {"over eager", "over compiled", "0.2x", "1x", "20x"} <= set(texts)
    assert "0.1x" not in texts
    assert "50x" not in texts
    assert "4 < 5, contiguous, float32, forward, 1 thr." in texts
    legend, points = 2, 3
    dots = [element for element in image.iter(f"{name}circle")]
    assert len(dots) == legend + points
    across = [float(dot.get("cx", "")) for dot in dots[legend:]]
    assert across[0] < across[1] < across[2]


def test_cases_are_chosen_by_operator() -> None:
    assert {case.operator for case in bench.cases()} >= {"mixed_sum"}
    assert {case.operator for case in bench.cases(["mixed_sum"])} == {"mixed_sum"}
    with pytest.raises(ValueError, match="there is no benchmark of 'mixedsum'; there are mixed_sum"):
        bench.cases(["mixedsum"])


@pytest.mark.parametrize("operator", sorted({case.operator for case in bench.cases()}))
def test_the_first_case_of_every_operator_can_be_measured(operator: str) -> None:
    first = bench.cases([operator])[0]
    for row in measure([first], 1, 0.0, compiled=False):
        assert row.phase in PHASES
        assert row.over["eager"].median > 0
