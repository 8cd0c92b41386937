from __future__ import annotations

import io
import sys
import warnings

import pytest
from rich.console import Console
from rich.progress import Progress

from hwnas.cli.console import LineNarrator, LiveNarrator, narration


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines(clock):
    stream = io.StringIO()
    narrator = LineNarrator(stream, clock)
    return narrator, lambda: stream.getvalue().splitlines()


def advance(narrator, clock, total, seconds_each):
    for done in range(total + 1):
        narrator.progress("train", done, total)
        clock.now += seconds_each


def test_fast_progress_gets_its_begin_and_its_end(lines, clock):
    narrator, written = lines
    advance(narrator, clock, 1000, 0.001)
    assert written() == ["  train: 0 of 1000", "  train: 1000 of 1000"]


def test_slow_progress_gets_a_line_each_tenth(lines, clock):
    narrator, written = lines
    advance(narrator, clock, 1000, 1.0)
    left = ["", *(f", about {minutes} min left" for minutes in (15, 13, 12, 10, 8, 7, 5, 3, 2)), ""]
    assert written() == [f"  train: {100 * i} of 1000{left[i]}" for i in range(11)]


def test_between_the_two_there_are_5_s_between_lines(lines, clock):
    narrator, written = lines
    advance(narrator, clock, 100, 0.25)  # a tenth takes 2.5 s
    left = ["", ", about 20 s left", ", about 15 s left", ", about 10 s left", ", about 5 s left", ""]
    assert written() == [f"  train: {20 * i} of 100{left[i]}" for i in range(6)]


def test_the_end_is_said_once(lines):
    narrator, written = lines
    for _ in range(3):
        narrator.progress("train", 4, 4)
    assert written() == ["  train: 4 of 4"]


def test_what_starts_again_is_said_again(lines):
    narrator, written = lines
    narrator.progress("export", 4, 4)
    narrator.progress("export", 0, 6)
    narrator.stage("next")
    narrator.progress("export", 0, 6)
    assert written() == ["  export: 4 of 4", "  export: 0 of 6", "next", "  export: 0 of 6"]


def test_the_live_narrator_draws_bars_and_takes_them_away(clock):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, markup=False, highlight=False)
    progress = Progress(console=console, auto_refresh=False)
    with progress:
        narrator = LiveNarrator(progress, clock)
        narrator.stage("train [bold] everything")
        for done in range(1001):
            narrator.progress("epochs", done, 1000)
        assert [task.description for task in progress.tasks] == ["epochs"]
        narrator.say("a finding")
        narrator.stage("next")
        assert progress.tasks == []
    shown = stream.getvalue()
    assert "train [bold] everything" in shown  # no markup
    assert "a finding" in shown
    assert "100%" in shown
    # The clock stood still: the first and the last were drawn, not the thousand between.
    assert shown.count("epochs") < 10


def test_inside_everything_goes_to_stderr_as_plain_lines(capsys):
    with narration() as narrator, warnings.catch_warnings():
        warnings.simplefilter("always")
        narrator.stage("begin")
        print("from elsewhere")
        warnings.warn("take care", RuntimeWarning, stacklevel=1)
    print("result")
    captured = capsys.readouterr()
    assert captured.out == "result\n"
    assert captured.err == "begin\nfrom elsewhere\nwarning: take care\n"
    assert "\x1b" not in captured.err


def test_stdout_and_warnings_are_put_back_after_an_error():
    before = sys.stdout, warnings.showwarning
    with pytest.raises(ZeroDivisionError), narration():
        raise ZeroDivisionError
    assert (sys.stdout, warnings.showwarning) == before
