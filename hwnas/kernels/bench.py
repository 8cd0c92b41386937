"""Measure `mixed_sum` against eager PyTorch, ``torch.compile`` and the speed of a copy, on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from hwnas.kernels.mixed_sum import mixed_sum

Operation = Callable[[Tensor, Sequence[Tensor]], Tensor]

PHASES = ("inference", "forward", "backward")
"""Without gradients; with gradients recorded; the backward pass alone, to the weights and all tensors."""

SIZES = (256, 65_536, 1_048_576, 4_194_304)
"""Elements of each tensor: tiny, in the second-level cache, and two larger ones."""

COUNTS = (2, 4, 8)


@dataclass(frozen=True)
class Timing:
    """Times of one contender over all rounds.

    Parameters
    ----------
    median_us : float
        Median, in microseconds.
    low_us, high_us : float
        First and third quartile, in microseconds.
    """

    median_us: float
    low_us: float
    high_us: float


@dataclass(frozen=True)
class Row:
    """One phase at one size.

    Parameters
    ----------
    phase : str
        One of `PHASES`.
    count : int
        Number of tensors, K.
    elements : int
        Elements of each tensor.
    threads : int
        Threads used by everybody.
    clock : str
        ``cpu`` (time of the process, for one thread) or ``wall``.
    rounds : int
        Number of interleaved rounds.
    native, eager, copy : Timing
        `mixed_sum`; the faster of the two eager ways; copying one tensor into another that exists.
    eager_way : str
        Which eager way was the faster: ``stack`` or ``sequence``.
    compiled : Timing or None
        ``torch.compile`` of the sequence, None when it was not asked for.
    over_eager, over_compiled : float
        How many times faster `mixed_sum` is.
    of_copy : float
        Share of the speed of the copy that `mixed_sum` reaches, counting every tensor that has to be read or
        written once: K + 1 forward, 2 K + 1 backward.
    """

    phase: str
    count: int
    elements: int
    threads: int
    clock: str
    rounds: int
    native: Timing
    eager: Timing
    eager_way: str
    compiled: Timing | None
    copy: Timing
    over_eager: float
    over_compiled: float | None
    of_copy: float


def _stack(weights: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    return (weights.view(-1, *[1] * tensors[0].dim()) * torch.stack(list(tensors))).sum(0)


def _sequence(weights: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    total = weights[0] * tensors[0]
    for k in range(1, len(tensors)):
        total = total + weights[k] * tensors[k]
    return total


def bench(
    threads: int = 1,
    seconds: float = 1.0,
    *,
    counts: Sequence[int] = COUNTS,
    sizes: Sequence[int] = SIZES,
    compiled: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Measure `mixed_sum` and its rivals in interleaved rounds, so that a disturbance meets all of them.

    Parameters
    ----------
    threads : int
        Threads for everybody. The number set before is put back.
    seconds : float
        Time for each phase at each size, without compiling.
    counts, sizes : sequence of int
        Numbers of tensors and elements of each.
    compiled : bool
        Measure ``torch.compile`` as well, which needs a C++ compiler and some seconds for each size.
    seed : int
        Seed of the data.
    progress : callable, optional
        Told in a few words what is measured next.

    Returns
    -------
    list of Row
        One for each size, number of tensors and phase.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    with _threads(threads):
        for size in sizes:
            for count in counts:
                weights = torch.softmax(torch.randn(count, generator=generator), 0).requires_grad_()
                tensors = [torch.randn(size, generator=generator).requires_grad_() for _ in range(count)]
                contenders: dict[str, Operation] = {
                    "native": mixed_sum,
                    "stack": _stack,
                    "sequence": _sequence,
                }
                if compiled:
                    # Every size gets a program of its own: the best that the compiler can do.
                    torch.compiler.reset()
                    contenders["compiled"] = torch.compile(_sequence, dynamic=False)
                for phase in PHASES:
                    if progress is not None:
                        progress(f"{phase}, {count} tensors of {size} elements")
                    rows.append(_row(phase, contenders, weights, tensors, threads, seconds))
    return rows


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _row(
    phase: str,
    contenders: dict[str, Operation],
    weights: Tensor,
    tensors: list[Tensor],
    threads: int,
    seconds: float,
) -> Row:
    # The time of the process leaves out what other processes take, but adds up over threads.
    clock = time.process_time if threads == 1 else time.perf_counter
    size = tensors[0].numel()
    source, target = torch.ones(size), torch.empty(size)
    repeats = max(1, 65_536 // size)

    def copy() -> float:
        start = clock()
        for _ in range(repeats):
            target.copy_(source)
        return (clock() - start) / repeats

    runs = {name: _run(phase, f, weights, tensors, repeats, clock) for name, f in contenders.items()}
    runs["copy"] = copy
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():  # the first calls compile, and fill caches
        run()
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["copy"]) < 5:
        for name, run in runs.items():
            times[name].append(run())
    timings = {name: _timing(values) for name, values in times.items()}
    eager_way = min(("stack", "sequence"), key=lambda way: timings[way].median_us)
    native, eager, compiled = timings["native"], timings[eager_way], timings.get("compiled")
    passes = 2 * len(tensors) + 1 if phase == "backward" else len(tensors) + 1
    return Row(
        phase=phase,
        count=len(tensors),
        elements=size,
        threads=threads,
        clock="cpu" if threads == 1 else "wall",
        rounds=len(times["copy"]),
        native=native,
        eager=eager,
        eager_way=eager_way,
        compiled=compiled,
        copy=timings["copy"],
        over_eager=eager.median_us / native.median_us,
        over_compiled=None if compiled is None else compiled.median_us / native.median_us,
        of_copy=passes / 2 * timings["copy"].median_us / native.median_us,
    )


def _run(
    phase: str,
    operation: Operation,
    weights: Tensor,
    tensors: list[Tensor],
    repeats: int,
    clock: Callable[[], float],
) -> Callable[[], float]:
    """Return a function that gives the seconds of one call in this phase, averaged over `repeats` calls."""
    grad = torch.ones_like(tensors[0])

    def forward() -> float:
        start = clock()
        for _ in range(repeats):
            operation(weights, tensors)
        return (clock() - start) / repeats

    def inference() -> float:
        with torch.no_grad():
            return forward()

    def backward() -> float:
        outputs = [operation(weights, tensors) for _ in range(repeats)]
        start = clock()
        for output in outputs:
            torch.autograd.grad(output, [weights, *tensors], grad)
        return (clock() - start) / repeats

    return {"inference": inference, "forward": forward, "backward": backward}[phase]


def _timing(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median_us=median * 1e6, low_us=low * 1e6, high_us=high * 1e6)


def table(rows: Sequence[Row]) -> Table:
    """Lay rows out for a terminal.

    Parameters
    ----------
    rows : sequence of Row
        What `bench` returned.

    Returns
    -------
    rich.table.Table
        Medians in microseconds, with quartiles for `mixed_sum`, and the ratios.
    """
    result = Table(title="mixed_sum: medians in microseconds")
    for name in (
        "threads",
        "elements",
        "K",
        "phase",
        "native",
        "quartiles",
        "eager",
        "way",
        "compiled",
        "copy",
    ):
        result.add_column(name, justify="left" if name in ("phase", "way") else "right")
    for name in ("over eager", "over compiled", "of copy"):
        result.add_column(name, justify="right")
    for row in rows:
        result.add_row(
            str(row.threads),
            str(row.elements),
            str(row.count),
            row.phase,
            f"{row.native.median_us:.1f}",
            f"{row.native.low_us:.1f}-{row.native.high_us:.1f}",
            f"{row.eager.median_us:.1f}",
            row.eager_way,
            "-" if row.compiled is None else f"{row.compiled.median_us:.1f}",
            f"{row.copy.median_us:.1f}",
            f"{row.over_eager:.2f}x",
            "-" if row.over_compiled is None else f"{row.over_compiled:.2f}x",
            f"{row.of_copy:.0%}",
        )
    return result
