from __future__ import annotations

import dataclasses

import pytest

import hwnas.nn as nn
from hwnas.cli.search_table import print_search
from hwnas.hub import DigitsSpace
from hwnas.space import ExpressionConstraint


@pytest.fixture
def printed(make_result, capsys):
    print_search(make_result(), DigitsSpace())
    return capsys.readouterr().out


def test_only_labels_in_use_are_listed(printed):
    # The sample has one block in its first stage and two in its second.
    listed = [line.strip() for line in printed.splitlines() if "=" in line]
    assert listed == [
        "width=32",
        "stage1/depth=1",
        "stage1/block0=sep3",
        "stage2/depth=2",
        "stage2/block0=sep3",
        "stage2/block1=sep3",
    ]


class Constrained(nn.ModelSpace):
    """The constraint speaks of a label that only one of the two branches uses."""

    def __init__(self):
        super().__init__()
        width = nn.ValueChoice([4, 8], label="width")
        self.branch = nn.LayerChoice([nn.Linear(2, width), nn.Identity()], label="branch")
        self.add_mutable(ExpressionConstraint(width > 2))


def test_a_constraint_puts_no_label_in_use(make_result, capsys):
    result = make_result()
    rows = [dataclasses.replace(row, sample={"width": 4, "branch": 1}) for row in result.rows]
    print_search(dataclasses.replace(result, rows=tuple(rows)), Constrained())
    printed = capsys.readouterr().out
    assert "branch=1" in printed
    assert "width" not in printed


def test_the_other_rows_are_short(printed):
    assert "fastest: 32 1 sep3 2 sep3 sep3\n" in printed


def test_a_row_has_all_figures_on_one_line_of_a_pipe(printed):
    row = next(line for line in printed.splitlines() if line.strip().startswith("chosen "))
    assert [cell.strip() for cell in row.split("  ") if cell.strip()] == [
        "chosen",
        "98.8 %",
        "97.5 %",
        "1",
        "1.000 ± 0.021",
        "0.980 ± 0.004",
        "12.3 M",
        "43.2 k",
    ]


def test_agreement_is_relative_to_what_was_measured(printed):
    assert f"differ by {100 * (1 / 0.98 - 1):.1f} %" in printed  # 2.0 %
    assert "warning" not in printed
