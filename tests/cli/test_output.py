from __future__ import annotations

import json
import math

import pytest

from hwnas.cli.output import compact, milliseconds, percent, print_json, print_table, setting


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7.4, "7"),
        (999, "999"),
        (999.6, "1 k"),
        (1234, "1.23 k"),
        (12_345, "12.3 k"),
        (123_456, "123 k"),
        (999_499, "999 k"),
        (999_600, "1 M"),
        (1.5e9, "1.5 G"),
        (4.2e12, "4200 G"),
        (math.nan, "unknown"),
    ],
)
def test_compact(number, text):
    assert compact(number) == text


def test_no_deviation_is_shown_where_none_is_known():
    assert milliseconds(1.23456) == "1.235"
    assert milliseconds(1.23456, 0.01) == "1.235 ± 0.010"
    assert milliseconds(1.23456, math.nan) == "1.235"


def test_short_latencies_keep_three_digits():
    assert milliseconds(123.456, 1.0) == "123.456 ± 1.000"
    assert milliseconds(0.012345, 0.00012) == "0.0123 ± 0.0001"
    assert milliseconds(0.0) == "0.000"


def test_percent():
    assert percent(0.98765) == "98.8 %"
    assert percent(0.5, 0) == "50 %"
    assert percent(math.nan) == "unknown"


def test_json_has_null_for_what_json_has_not(capsys):
    print_json({"a": [math.nan, (math.inf, 1.5)], 3: True, "text": "ä"})
    assert json.loads(capsys.readouterr().out) == {"a": [None, [None, 1.5]], "3": True, "text": "ä"}


def test_a_pipe_gets_whole_rows_without_colours_or_markup(capsys):
    wide = "[red]x[/red]" + "y" * 150
    print_table("a title that is wider than its table", ["name", "n"], [(wide, "1"), ("z", "20")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a title that is wider than its table"
    assert any(line.split() == [wide, "1"] for line in lines)
    assert any(line.startswith("z ") and line.rstrip().endswith(" 20") for line in lines)
    assert "\x1b" not in "".join(lines)


def test_the_setting_of_a_table():
    assert setting("digits", 4, 1) == "digits: batches of 4, 1 thread"
    assert setting("digits", 4, 2, "int8") == "digits: batches of 4, 2 threads, int8"
