"""The measuring protocol: everything interleaved, in random order, round after round.

Measuring one model after another on a shared machine ranks the models by the load of the moment. Here every
round visits all models, so that each sees the quiet moments, and a canary network tells which they were.
"""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import HwnasError
from hwnas.profilers.measurement import Measurement, References, SessionResult, Workload
from hwnas.profilers.runner import Runner, choose_clock
from hwnas.profilers.target import OrtTarget
from hwnas.profilers.timing import canary_floor, count_quiet, split_half, summarise, time_halves, unexplained

__all__ = ["Measurement", "References", "SessionResult", "Workload", "measure"]

Progress = Callable[[int, int], None]
Record = Callable[[SessionResult], object]

# Sessions alive at the same time: beyond this, models are measured in groups, to bound the memory.
_GROUP_SIZE: Final = 400
_GROUP_BYTES: Final = 1 << 30
_CANARY_EVERY: Final = 16
_WARM_UP_S: Final = 0.2
_LEAST_VISITS: Final = 2
_RECORD_EVERY_S: Final = 2.0
_COMPARED: Final = 32  # the slowest models, whose halves are compared: whole nets, where there are nets and parts
_LEAST_HALVED: Final = 4
_STEADY: Final = 0.02


@dataclass
class _Record:
    """The runs of one workload: when and how long."""

    moments: list[float] = field(default_factory=list)
    times: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, runner: Runner) -> None:
        self.moments.append(time.perf_counter())
        self.times.append(runner.visit())

    def array(self) -> NDArray[np.float64]:
        return np.stack(self.times)  # (visits, windows)


@dataclass(frozen=True)
class _Load:
    """How busy the machine was: the canary over time, each array of shape (canary_visits,)."""

    moments: NDArray[np.float64]
    canary: NDArray[np.float64]
    floor: float

    def beside(self, record: _Record) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Give the times of a record, the canary at the moment of each of its visits, and the floor."""
        return record.array(), np.interp(record.moments, self.moments, self.canary), self.floor


@dataclass
class _Session:
    """What the groups of a session share."""

    target: OrtTarget
    clock: str
    load_average: float
    started: float
    begin: float
    identity: Runner
    canary: Runner
    rng: np.random.Generator
    relative_error: float
    min_visits: int
    max_visits: int
    prior_floor: float
    records: dict[str, _Record]
    identity_record: _Record = field(default_factory=_Record)
    canary_record: _Record = field(default_factory=_Record)

    verdicts: dict[str, tuple[int, bool]] = field(default_factory=dict)
    on_cpu: dict[str, dict[str, int]] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)  # keys of groups that are done

    def load(self) -> _Load:
        canary = self.canary_record.array()
        floor = min(self.prior_floor, canary_floor(canary))
        return _Load(np.array(self.canary_record.moments), np.median(canary, axis=1), floor)

    def result(self, keys: Collection[str]) -> SessionResult:
        """Summarise the session with the measurements of some keys, in the order of the workloads."""
        load = self.load()
        records = {key: record for key, record in self.records.items() if key in keys}
        halves = [split_half(*load.beside(record)) for record in records.values()]
        return SessionResult(
            measurements={key: summarise(*load.beside(record)) for key, record in records.items()},
            overhead=summarise(*load.beside(self.identity_record)),
            canary=summarise(*load.beside(self.canary_record)),
            canary_floor_ms=load.floor,
            clock=self.clock,
            split_half_error=float(np.median(halves)) if halves else float("nan"),
            threads=self.target.intra_op_threads,
            load=self.load_average,
            started=self.started,
            duration_s=time.perf_counter() - self.begin,
            on_cpu=self.on_cpu,
            unsteadiness=self.unsteadiness(load, records.values()),
        )

    def unsteadiness(self, load: _Load, records: Collection[_Record]) -> float:
        """Compare both halves of the session; see `SessionResult.unsteadiness`."""
        enough = [record for record in records if len(record.times) >= _LEAST_HALVED]
        slowest = sorted(enough, key=lambda record: -float(np.min(record.times[0])))[:_COMPARED]
        halves = [time_halves(*load.beside(record)) for record in slowest]
        return unexplained([ratio for ratio, _ in halves], [stderr for _, stderr in halves])

    def is_finished(self, key: str, record: _Record, load: _Load) -> bool:
        """Whether a record has reached the target error or the most visits, counting quiet visits only."""
        times, canary, floor = load.beside(record)
        quiet = count_quiet(canary, floor)
        if quiet < self.min_visits or quiet >= self.max_visits:
            return quiet >= self.max_visits
        # The floor may fall while the session goes on, which reopens a record; otherwise the verdict stands.
        seen, finished = self.verdicts.get(key, (0, False))
        if quiet != seen:
            found = summarise(times, canary, floor)
            finished = found.stderr_ms <= self.relative_error * found.latency_ms
            self.verdicts[key] = quiet, finished
        return finished


def measure(
    workloads: Sequence[Workload],
    target: OrtTarget,
    *,
    budget_s: float = 60.0,
    relative_error: float = 0.01,
    min_visits: int = 6,
    max_visits: int = 60,
    floor_ms: float | None = None,
    seed: int = 0,
    references: References | None = None,
    anchors: Collection[str] = (),
    record: Record | None = None,
    progress: Progress | None = None,
) -> SessionResult:
    """Measure the latency of ONNX models by the interleaved protocol.

    Each round visits every unfinished model and an Identity network in random order, and every 16 visits a
    canary network. A visit is quiet when the canary then took at most 1.1 times its floor. A model is
    finished at the target error, at `max_visits` quiet visits or when the time is up. Where fewer than six
    visits were quiet, the result is a ratio to the canary, and flagged. Where both halves of the session differ by
    more than standard errors and a common factor explain, measuring goes on beyond the target error.

    Parameters
    ----------
    workloads : sequence of Workload
        The models, in the precision of the target; their keys differ.
    target : OrtTarget
        What they run on.
    budget_s : float, default 60
        Wall time in seconds, loading of the models included. Exceeded only where two visits for each model
        do not fit.
    relative_error : float, default 0.01
        Target standard error relative to the latency.
    min_visits : int, default 6
        Quiet visits before a model can be finished, at least 2.
    max_visits : int, default 60
        Quiet visits after which a model is finished in any case.
    floor_ms : float, optional
        The floor of the canary in milliseconds, known from earlier sessions. A short session on a busy
        machine cannot find it by itself. The lower one of this and of the session's own counts.
    seed : int, default 0
        Seed of the order and of the inputs.
    references : References, optional
        The Identity and the canary network, in the precision of the target; built unless given, which needs the
        package onnx.
    anchors : collection of str, optional
        Keys that an earlier session has measured. They are measured first where there are several groups, and are part
        of whatever is recorded.
    record : callable, optional
        Called now and then, between two rounds, with what the session has found so far: the models that are finished,
        and the anchors. What is given to `LatencyStore.record` survives the end of the process.
    progress : callable, optional
        Called after each round with the number of models that are done and the number of all. In a session that its
        time will end the share of the time counts.

    Returns
    -------
    SessionResult
        A measurement for each key, the overhead of a run and the canary.

    Warns
    -----
    UserWarning
        When the provider left nodes to the CPU; it names their operators. See `SessionResult.on_cpu`.

    Raises
    ------
    HwnasError
        An argument is out of range, a key occurs twice, a model cannot be loaded or run, or the provider leaves all
        of a convolutional network to the CPU.
    """
    begin = time.perf_counter()
    _check(workloads, budget_s, relative_error, min_visits, max_visits, floor_ms)
    clock_name, clock = choose_clock(target)
    references = _built(target) if references is None else references
    session = _Session(
        target=target,
        clock=clock_name,
        load_average=_load_average(),
        started=time.time(),
        begin=begin,
        identity=Runner(Workload("identity", references.identity), target, clock, seed),
        canary=Runner(Workload("canary", references.canary), target, clock, seed),
        rng=np.random.default_rng(seed),
        relative_error=relative_error,
        min_visits=min_visits,
        max_visits=max_visits,
        prior_floor=float("inf") if floor_ms is None else floor_ms,
        records={workload.key: _Record() for workload in workloads},
    )
    # Processors leave their low clock rates only after a while.
    while time.perf_counter() < begin + _WARM_UP_S:
        session.canary.visit()
    _check_provider(session.canary, target)
    recorder = _Recorder(session, frozenset(anchors), record)
    measured = 0
    for group in _groups(workloads, session.rng, anchors):
        remaining = begin + budget_s - time.perf_counter()
        share = remaining * max(len(group), 1) / max(len(workloads) - measured, 1)
        deadline = time.perf_counter() + share
        runners = [Runner(workload, target, clock, seed) for workload in group]
        session.on_cpu.update(_on_cpu(runners, target))
        _measure_group(session, runners, deadline, measured, recorder, progress)
        measured += len(group)
        session.settled.update(workload.key for workload in group)
    _warn_of(session.on_cpu, len(workloads), target)
    return session.result(session.records)


class _Recorder:
    """Has what is finished recorded, not too often."""

    def __init__(self, session: _Session, anchors: frozenset[str], record: Record | None) -> None:
        self._session, self._anchors, self._record = session, anchors, record
        self._last = time.perf_counter()
        self._recorded: set[str] = set()

    def offer(self, finished: set[str]) -> None:
        """Record what is finished if there is something new."""
        now = time.perf_counter()
        # What is measured further, because the machine turned out to be unsteady, has been recorded all the same.
        keys = self._recorded | self._session.settled | finished
        if self._record is None or now - self._last < _RECORD_EVERY_S or keys == self._recorded:
            return
        self._record(self._session.result(keys | self._anchors))
        self._recorded = keys
        self._last = time.perf_counter()


def _on_cpu(runners: Sequence[Runner], target: OrtTarget) -> dict[str, dict[str, int]]:
    """Count for each workload the nodes that the provider left to the CPU, by operator."""
    found: dict[str, dict[str, int]] = {}
    for runner in runners:
        left = {op: n for (provider, op), n in runner.assigned.items() if provider != target.provider}
        if left:
            found[runner.workload.key] = left
    return found


def _check_provider(canary: Runner, target: OrtTarget) -> None:
    providers = {provider for provider, _ in canary.assigned}
    if providers and target.provider not in providers:
        raise HwnasError(
            f"measure: {target.provider} runs no node of a convolutional network; all run on {', '.join(providers)}. "
            f"What is measured would be that. Check the options and the libraries of {target.provider}, or measure "
            "with the provider that runs them."
        )


def _warn_of(on_cpu: Mapping[str, Mapping[str, int]], workloads: int, target: OrtTarget) -> None:
    if on_cpu:
        counts = sum((Counter(left) for left in on_cpu.values()), Counter())
        listed = ", ".join(f"{operator} ({n})" for operator, n in counts.most_common())
        warnings.warn(
            f"{target.provider} lacks operators in {len(on_cpu)} of {workloads} models; these nodes run on the CPU, "
            f"their copies to and fro included in what is measured: {listed}",
            stacklevel=3,
        )


def _built(target: OrtTarget) -> References:
    # Here and not above: this file also measures where there is nothing but ONNX Runtime; see elsewhere.py.
    from hwnas.profilers.precision import references_for

    return references_for(target)


def _measure_group(
    session: _Session,
    runners: Sequence[Runner],
    deadline: float,
    before: int,
    recorder: _Recorder,
    progress: Progress | None,
) -> None:
    """Visit the runners round after round until all are finished or the deadline has passed."""
    # Without workloads the overhead is what there is to measure.
    watched = {runner.workload.key: session.records[runner.workload.key] for runner in runners}
    watched = watched or {session.identity.workload.key: session.identity_record}
    finished: set[str] = set()
    rounds, next_check = 0, session.min_visits
    begin, done, in_time = time.perf_counter(), 0, True
    while in_time and len(finished) < len(watched):
        pending = [runner for runner in runners if runner.workload.key not in finished]
        with _no_garbage_collection():
            in_time = _visit_all(session, pending, deadline if rounds >= _LEAST_VISITS else float("inf"))
        rounds += 1
        if rounds >= next_check:
            # Between rounds, for it disturbs the caches, and at growing intervals, for it takes time.
            next_check = rounds + max(1, rounds // 8)
            load = session.load()
            finished = {key for key, record in watched.items() if session.is_finished(key, record, load)}
            if len(finished) == len(watched) and session.unsteadiness(load, watched.values()) > _STEADY:
                # Standard errors say too little where load comes and goes: all go on, as far as they may.
                finished = {key for key in finished if len(watched[key].times) >= session.max_visits}
            recorder.offer(finished & set(session.records))
        if progress is not None and runners:
            elapsed = (time.perf_counter() - begin) / max(deadline - begin, 1e-9)
            done = max(done, len(finished), int(len(runners) * min(elapsed, 1.0)))
            progress(before + done, len(session.records))


def _visit_all(session: _Session, runners: Sequence[Runner], deadline: float) -> bool:
    """Do one round; give False when the deadline ended it early."""
    order: list[Runner] = [*runners, session.identity]
    for position, index in enumerate(session.rng.permutation(len(order))):
        if time.perf_counter() >= deadline:
            return False
        if position % _CANARY_EVERY == 0:
            session.canary_record.add(session.canary)
        runner = order[index]
        if runner is session.identity:
            session.identity_record.add(runner)
        else:
            session.records[runner.workload.key].add(runner)
    session.canary_record.add(session.canary)
    return True


def _groups(
    workloads: Sequence[Workload], rng: np.random.Generator, first: Collection[str] = ()
) -> Iterator[list[Workload]]:
    """Split the workloads at random into groups of a bounded number and size; one empty group for none.

    Those whose keys are `first` come before the others.
    """
    order = rng.permutation(len(workloads))
    order = order[np.argsort([workloads[index].key not in first for index in order], kind="stable")]
    count = max(1, -(-len(workloads) // _GROUP_SIZE))
    for indices in np.array_split(order, count):
        group: list[Workload] = []
        size = 0
        for index in indices:
            workload = workloads[index]
            if group and size + len(workload.model) > _GROUP_BYTES:
                yield group
                group, size = [], 0
            group.append(workload)
            size += len(workload.model)
        yield group


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load_average() -> float:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return float("nan")


def _check(
    workloads: Sequence[Workload],
    budget_s: float,
    relative_error: float,
    min_visits: int,
    max_visits: int,
    floor_ms: float | None,
) -> None:
    if not budget_s > 0:
        raise HwnasError(f"measure: budget_s is {budget_s!r}; expected a positive number of seconds.")
    if not relative_error > 0:
        raise HwnasError(f"measure: relative_error is {relative_error!r}; expected a number above 0, such as 0.01.")
    if floor_ms is not None and not floor_ms > 0:
        raise HwnasError(f"measure: floor_ms is {floor_ms!r}; expected a positive number of milliseconds or None.")
    if not _LEAST_VISITS <= min_visits <= max_visits:
        raise HwnasError(
            f"measure: min_visits is {min_visits!r} and max_visits {max_visits!r}; expected "
            f"{_LEAST_VISITS} <= min_visits <= max_visits."
        )
    seen: set[str] = set()
    for workload in workloads:
        if workload.key in seen:
            raise HwnasError(f"measure: two workloads have the key {workload.key!r}; expected distinct keys.")
        seen.add(workload.key)
