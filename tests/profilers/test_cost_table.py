from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hwnas.nn as nn
from hwnas.errors import HwnasError
from hwnas.profilers import TableProfiler
from hwnas.profilers.cost_table import activity
from hwnas.strategies.architecture_key import active_labels


class Net(nn.ModelSpace):
    """A width, and a layer with a kernel size that is there in one candidate only."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([4, 8], label="width")
        self.stem = nn.Conv2d(3, width, 3)
        kernel = nn.ValueChoice([3, 5], label="kernel")
        self.layer = nn.LayerChoice({"conv": nn.Conv2d(width, 4, kernel), "skip": nn.Identity()}, label="layer")
        self.tail = nn.Repeat(lambda i: nn.LayerChoice([nn.ReLU(), nn.Tanh()], label=f"act{i}"), (0, 2), label="depth")


CSV = """\
layer, width, kernel, depth, act0, act1, latency_ms
,,,,,,0.5

,4,,,,,1
,8,,,,,2
conv,,,,,,10
skip,,,,,,0
,,3,,,,0.125
,,5,,,,0.25
,,,,0,,20
,,,,1,,30
,,,,,0,40
,,,,,1,50
"""

YAML = """\
cost: latency_ms
constant: 0.5
tables:
  - {labels: [width], rows: [[4, 1], [8, 2]]}
  - {labels: [layer], rows: [[conv, 10], [skip, 0]]}
  - {labels: [kernel], rows: [[5, 0.25], [3, 0.125]]}
  - {labels: [act0], rows: [[0, 20], [1, 30]]}
  - labels: [act1]
    rows:
      - [0, 40]
      - [1, 50]
"""


def by_hand(sample: dict) -> float:
    cost = 0.5 + {4: 1, 8: 2}[sample["width"]]
    if sample["layer"] == "conv":
        cost += 10 + {3: 0.125, 5: 0.25}[sample["kernel"]]
    if sample["depth"] >= 1:
        cost += (20, 30)[sample["act0"]]
    if sample["depth"] == 2:
        cost += (40, 50)[sample["act1"]]
    return cost


@pytest.mark.parametrize(("suffix", "text"), [("csv", CSV), ("yaml", YAML), ("yml", YAML), ("CSV", CSV)])
def test_every_member_costs_the_sum_of_its_figures(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"phone.{suffix}"
    path.write_text(text)
    space = Net()
    profiler = TableProfiler(space, path)
    assert (profiler.name, profiler.unit) == ("latency_ms", "ms")
    members = list(space.grid())
    assert len(members) > 20
    for sample in members:
        assert profiler.profile(sample) == pytest.approx(by_hand(sample))
    assert profiler.cost_model.minimum().cost == min(map(by_hand, members))
    assert profiler.cost_model.maximum().cost == max(map(by_hand, members))
    uniform = {label: torch.ones(len(v)) / len(v) for label, v in profiler.cost_model.domain.values.items()}
    inactive_too = [dict(sample) for sample in members]
    assert float(profiler.expectation(uniform)) == pytest.approx(sum(map(by_hand, inactive_too)) / len(members))


def test_a_label_is_active_where_a_walk_says_so() -> None:
    space = Net()
    dimensions = space.structure().dimensions
    tables = activity(space, dimensions)
    for sample in space.grid():
        expected = active_labels(space, sample)
        for label, table in tables.items():
            values = [list(dimensions[decider].grid_values()) for decider in table.labels]
            place = tuple(v.index(sample[d]) for v, d in zip(values, table.labels, strict=True))
            assert bool(table.values[place]) == (label in expected), (label, sample)


def test_a_cost_of_two_labels_together(tmp_path: Path) -> None:
    path = tmp_path / "energy.csv"
    rows = [f"{layer},{width},{i}" for i, (layer, width) in enumerate((a, b) for a in ("conv", "skip") for b in (4, 8))]
    path.write_text("\n".join(["layer,width,energy_mj", *reversed(rows)]))
    profiler = TableProfiler(Net(), path)
    assert profiler.name == "energy_mj"
    sample = {"width": 8, "layer": "skip", "kernel": 3, "depth": 0, "act0": 0, "act1": 0}
    assert profiler.profile(sample) == 3
    assert profiler.profile({**sample, "layer": "conv"}) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no figures"),
        ("layer,latency_ms\n", "no figures"),
        ("layer,layer,latency_ms\n", "line 1: the header is .*distinct labels"),
        ("layer,latency_ms\nconv,1\nskip\n", "line 3: it has 1 cells, and the header 2"),
        (
            "layer,latency_ms\nconv,1\nskop,2\n",
            r"line 3: 'skop' is no value of 'layer'; its values are \['conv', 'skip'\]",
        ),
        ("layre,latency_ms\nconv,1\n", "line 2: the space has no label 'layre'.*'layer'"),
        ("layer,latency_ms\nconv,1\n", "of 2 combinations of layer 1 have no cost, such as layer=skip.*with 0"),
        ("layer,latency_ms\nconv,1\nskip,2\nconv,1\n", "line 4: layer=conv stands already at .*line 2"),
        ("layer,latency_ms\nconv,1\nskip,fast\n", "line 3: the cost is 'fast'; expected a number"),
        ("layer,latency_ms\nconv,1\nskip,nan\n", "line 3: the cost is 'nan'; expected a finite number"),
        ('layer,latency_ms\n"conv,1\n', "line 2: unexpected end of data"),
    ],
)
def test_a_csv_file_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(HwnasError, match=message):
        TableProfiler(Net(), path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "while parsing"),
        ("[1, 2]", "expected a mapping with cost"),
        ("{cost: ms, tabels: []}", "expected a mapping with cost"),
        ("{cost: ms}", "no figures"),
        ("{cost: ms, tables: 3}", "tables is a int; expected a list"),
        ("{cost: ms, tables: [{labels: [layer]}]}", "table 0: expected a mapping with labels and rows"),
        ("{cost: ms, tables: [{labels: layer, rows: []}]}", "labels is 'layer'; expected a list"),
        ("{cost: ms, tables: [{labels: [layer], rows: 1}]}", "rows is a int"),
        (
            "{cost: ms, tables: [{labels: [layer], rows: [[conv]]}]}",
            r"table 0, row 1: \['conv'\] is no list of 1 values",
        ),
        ("{cost: ms, constant: much}", "constant: the cost is 'much'"),
    ],
)
def test_a_yaml_file_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(text)
    with pytest.raises(HwnasError, match=message):
        TableProfiler(Net(), path)


def test_too_many_combinations_are_told_at_once(tmp_path: Path) -> None:
    class Wide(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                [nn.Linear(3, nn.ValueChoice(list(range(1, 9)), label=f"w{i}")) for i in range(6)]
            )

    path = tmp_path / "table.csv"
    path.write_text(",".join(f"w{i}" for i in range(6)) + ",latency_ms\n1,1,1,1,1,1,0.5\n")
    with pytest.raises(HwnasError, match=r"line 2: w0, .*, w5 have 262,144 combinations.*Give costs of fewer labels"):
        TableProfiler(Wide(), path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(HwnasError, match=r"its suffix is '\.json'; expected \.csv"):
        TableProfiler(Net(), tmp_path / "table.json")
    with pytest.raises(HwnasError, match=r"cannot be read: .*No such file"):
        TableProfiler(Net(), tmp_path / "table.csv")
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HwnasError, match=r"cannot be read: .*utf-8"):
        TableProfiler(Net(), tmp_path / "table.csv")


def test_a_number_does_not_fit_text_and_number_alike(tmp_path: Path) -> None:
    class Both(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LayerChoice({"1": nn.ReLU(), "2": nn.Tanh()}, label="layer")
            self.dropout = nn.Dropout(nn.ValueChoice([0.5, 0.25], label="p"))

    path = tmp_path / "table.yaml"
    path.write_text("{cost: ms, tables: [{labels: [layer], rows: [[1, 5], [2, 6]]}]}")
    assert TableProfiler(Both(), path).profile({"layer": "2", "p": 0.5}) == 6
