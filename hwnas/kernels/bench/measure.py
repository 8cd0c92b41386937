"""Measures cases: the contenders take turns, so that a disturbance meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hwnas.kernels.bench.case import Case, Contender, Limit, Problem

MIN_ROUNDS = 5
LEAST_TIMED_S = 5e-4
"""Calls that take less are timed several at once."""

MATMUL_SIZE = 768
"""Rows and columns of the matrices whose product stands for the arithmetic limit."""

_Clock = Callable[[], float]
_Run = Callable[[], float]


@dataclass(frozen=True)
class Quartiles:
    """Median, first and third quartile over all rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One phase of one case.

    Parameters
    ----------
    operator, shape, layout, dtype, phase : str
        As in `Case`.
    threads : int
        Threads of every contender.
    clock : str
        ``cpu`` (time of the process, for one thread) or ``wall``.
    rounds : int
        Number of rounds, in each of which every contender has a turn.
    times_us : dict of str to Quartiles
        Time of one call of each contender, in microseconds. ``copy`` or ``matmul`` is the limit's.
    over : dict of str to Quartiles
        How many times faster ``native`` is than each other contender, by rounds.
    of_limit : Quartiles or None
        Share of the speed of the copy, or of the matrix product, that ``native`` reaches, by rounds.
    """

    operator: str
    shape: str
    layout: str
    dtype: str
    phase: str
    threads: int
    clock: str
    rounds: int
    times_us: dict[str, Quartiles]
    over: dict[str, Quartiles]
    of_limit: Quartiles | None


def measure(
    cases: Iterable[Case],
    threads: int = 1,
    seconds: float = 1.0,
    *,
    compiled: bool = True,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Measure cases.

    On one thread the time of the process counts, which leaves out what other processes take. It adds up over
    threads, so on several wall time counts.

    Parameters
    ----------
    cases : iterable of Case
        What to measure.
    threads : int
        Threads for everybody. The number set before is put back.
    seconds : float
        Time for each phase of each case, without compiling. Five rounds are always made.
    compiled : bool
        Measure ``torch.compile`` as well, which needs a C++ compiler and some seconds or minutes for each case.
    progress : callable, optional
        Told in a few words what is measured next.

    Returns
    -------
    list of Row
        One for each phase of each case.

    Raises
    ------
    ValueError
        A case lacks ``native`` or ``eager``, or a contender computes something else.
    """
    rows = []
    with _threads(threads):
        for case in cases:
            if compiled:
                # Every case gets a program of its own: the best that the compiler can do.
                torch.compiler.reset()
            problem = case.prepare()
            contenders = {name: f for name, f in problem.contenders.items() if compiled or name != "compiled"}
            _check(case, contenders)
            for phase, limit in case.phases.items():
                if progress is not None:
                    progress(f"{case}, {phase}")
                rows.append(_row(case, phase, limit, Problem(contenders, problem.inputs), threads, seconds))
    return rows


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(case: Case, contenders: Mapping[str, Contender]) -> None:
    for name in ("native", "eager"):
        if name not in contenders:
            raise ValueError(f"{case}: there is no contender {name!r}, only {', '.join(contenders)}")
    # With gradients as in most phases: another program would be compiled without.
    expected = contenders["native"]().detach().double()
    tolerance = 0.02 * float(expected.abs().max())
    for name, contender in contenders.items():
        actual = contender().detach().double()
        if actual.shape != expected.shape or not torch.allclose(actual, expected, rtol=0, atol=tolerance):
            raise ValueError(f"{case}: {name!r} computes something else than 'native'")


def _row(case: Case, phase: str, limit: Limit | None, problem: Problem, threads: int, seconds: float) -> Row:
    clock, clock_name = (time.process_time, "cpu") if threads == 1 else (time.perf_counter, "wall")
    runs = {name: _repeated(phase, f, problem.inputs, clock) for name, f in problem.contenders.items()}
    if limit is not None:
        limit_name, run_limit, share = _limit(limit, case.dtype)
        runs[limit_name] = _repeated("inference", run_limit, (), clock)
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["native"]) < MIN_ROUNDS:
        for name, run in runs.items():
            times[name].append(run())
    native = times["native"]
    return Row(
        operator=case.operator,
        shape=case.shape,
        layout=case.layout,
        dtype=case.dtype,
        phase=phase,
        threads=threads,
        clock=clock_name,
        rounds=len(native),
        times_us={name: _quartiles([1e6 * value for value in values]) for name, values in times.items()},
        over={name: _quartiles(_ratios(times[name], native)) for name in problem.contenders if name != "native"},
        of_limit=None if limit is None else _quartiles([share * ratio for ratio in _ratios(times[limit_name], native)]),
    )


def _limit(limit: Limit, dtype: str) -> tuple[str, Contender, float]:
    """Return the name of what is measured for comparison, a function that does it, and how often it is needed."""
    if limit.bytes_moved is not None:
        # A copy reads as many bytes as it writes.
        source = torch.ones(max(1, limit.bytes_moved // 2), dtype=torch.uint8)
        target = torch.empty_like(source)
        return "copy", lambda: target.copy_(source), 1.0
    assert limit.flops is not None
    # Less than float32 has no arithmetic of its own on most processors.
    a = torch.ones(MATMUL_SIZE, MATMUL_SIZE, dtype=torch.float64 if dtype == "float64" else torch.float32)
    product = torch.empty_like(a)
    return "matmul", lambda: torch.mm(a, a, out=product), limit.flops / (2 * MATMUL_SIZE**3)


def _repeated(phase: str, contender: Contender, inputs: Sequence[Tensor], clock: _Clock) -> _Run:
    """Return a function that gives the seconds of one call, averaged over as many calls as the clock needs."""
    grad = torch.ones_like(contender())

    def run(repeats: int) -> float:
        if phase in ("inference", "forward"):
            with torch.set_grad_enabled(phase == "forward"):
                start = clock()
                for _ in range(repeats):
                    contender()
                return (clock() - start) / repeats
        outputs = [contender() if phase == "backward" else None for _ in range(repeats)]
        start = clock()
        for output in outputs:
            torch.autograd.grad(contender() if output is None else output, inputs, grad)
        return (clock() - start) / repeats

    for _ in range(2):  # the first calls compile, and fill caches
        run(1)
    repeats = max(1, round(LEAST_TIMED_S / max(run(1), 1e-6)))

    def turn() -> float:
        run(1)  # pays for what the one before left: caches full of its data, memory that it gave back to the system
        return run(repeats)

    return turn


def _ratios(values: Sequence[float], of: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(values, of, strict=True)]


def _quartiles(values: Sequence[float]) -> Quartiles:
    low, median, high = statistics.quantiles(values, n=4)
    return Quartiles(median, low, high)
