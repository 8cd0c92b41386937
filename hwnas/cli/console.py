"""What a command says on stderr while it works: drawn live on a terminal, line by line elsewhere."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from hwnas.experiment.narrator import Narrator

REDRAW_S = 0.2
LINE_EVERY_S = 5.0
LINE_EVERY_SHARE = 0.1

Clock = Callable[[], float]


class LiveNarrator:
    """Bars that move, for a terminal.

    They are drawn when there is progress, by the thread that reports it: a thread that draws on its own would
    disturb the measuring of latencies.

    Parameters
    ----------
    progress : rich.progress.Progress
        Started, and without a thread of its own.
    clock : callable
        Gives seconds.
    """

    def __init__(self, progress: Progress, clock: Clock = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._drawn = float("-inf")
        self._bars: dict[str, TaskID] = {}

    def stage(self, title: str) -> None:
        """Print a title and take away the bars of the stage before."""
        for bar in self._bars.values():
            self._progress.remove_task(bar)
        self._bars.clear()
        self._progress.console.print(title, style="bold")
        self._progress.refresh()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(f"  {text}", soft_wrap=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """Move the bar of `what`, or add it."""
        if what not in self._bars:
            self._bars[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._bars[what], completed=done, total=total)
        if done >= total or self._clock() - self._drawn >= REDRAW_S:
            self._progress.refresh()
            self._drawn = self._clock()


class LineNarrator:
    """Plain lines, few of them, for a file or a pipe.

    Progress gets a line when it begins, when it ends, and in between only after another tenth of the work and
    5 s, with the time that is left at the pace so far.

    Parameters
    ----------
    stream : text file
        Where the lines go.
    clock : callable
        Gives seconds.
    """

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._first: dict[str, tuple[int, float]] = {}  # what was first said of each: how much, when
        self._last: dict[str, tuple[int, float]] = {}

    def stage(self, title: str) -> None:
        """Write the title."""
        self._first.clear()
        self._last.clear()
        self._write(title)

    def say(self, text: str) -> None:
        """Write the line, indented."""
        self._write(f"  {text}")

    def progress(self, what: str, done: int, total: int) -> None:
        """Write a line unless the last one is too near."""
        now = self._clock()
        said = self._last.get(what)
        if said is not None and done >= said[0]:
            ended = done >= total > said[0]
            due = done - said[0] >= LINE_EVERY_SHARE * total and now - said[1] >= LINE_EVERY_S
            if not (ended or due):
                return
        if said is None or done < said[0]:
            self._first[what] = done, now
        self._last[what] = done, now
        self._write(f"  {what}: {done} of {total}{self._left(what, total)}")

    def _left(self, what: str, total: int) -> str:
        (begun, start), (done, now) = self._first[what], self._last[what]
        if not begun < done < total:
            return ""
        seconds = (now - start) * (total - done) / (done - begun)
        return f", about {seconds:.0f} s left" if seconds < 100 else f", about {seconds / 60:.0f} min left"

    def _write(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


@contextmanager
def narration() -> Iterator[Narrator]:
    """Give the narrator that fits stderr.

    Inside the block, whatever other code prints goes to stderr too, so that stdout has nothing but results,
    and warnings are single lines without the source code that raised them.
    """
    with _narrator() as narrator, redirect_stdout(sys.stderr), _plain_warnings():
        yield narrator


@contextmanager
def _narrator() -> Iterator[Narrator]:
    console = Console(stderr=True, markup=False, highlight=False)
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        yield LineNarrator(sys.stderr)
        return
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, auto_refresh=False, transient=True, redirect_stdout=False) as progress:
        yield LiveNarrator(progress)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    before = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        yield
    finally:
        warnings.showwarning = before
