"""Load during a calibration, on a simulated machine with its own clock: what it really takes is known."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import hwnas.nn as nn
from hwnas.profilers import LatencyStore, OnnxRuntimeLatencyProfiler, Prediction, TracedSpace, Workload, measuring
from hwnas.profilers.device import describe_device
from hwnas.profilers.latency import BETWEEN_CONTENDED, BETWEEN_SESSIONS
from hwnas.profilers.measuring import measure
from hwnas.profilers.target import OrtTarget

X = torch.zeros(2, 1, 8, 8)
OVERHEAD = 0.02
CANARY = 0.2

Slowdown = Callable[[float, float], float]  # of a moment in seconds, and of what a net takes in milliseconds


class Net(nn.ModelSpace):
    """Members that differ by a factor of 20."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([4, 8, 12, 16, 24, 32], label="width")
        self.stem = nn.Conv2d(1, width, 3, padding=1)

        def block(index: int) -> nn.Module:
            kinds = {"3": nn.Conv2d(width, width, 3, padding=1), "1": nn.Conv2d(width, width, 1), "skip": nn.Identity()}
            return nn.LayerChoice(kinds, label=f"block{index}")

        self.body = nn.Repeat(block, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x))


def macs_of(model: torch.nn.Module, *inputs: Tensor) -> float:
    total = 0

    def count(module: Any, args: Any, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    model.eval()(*inputs)
    for handle in handles:
        handle.remove()
    return float(total)


class Machine:
    """A clock, and what nets take at each moment of it: the truth, times a slowdown, times 1 % of noise."""

    def __init__(self) -> None:
        self.now = 0.0
        self.began = 0.0  # of the present session
        self.slowdown: Slowdown = lambda moment, latency: 1.0
        self.visits = 0

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def runner(self, workload: Workload, target: OrtTarget, clock: Any, seed: int = 0) -> SimpleNamespace:
        fixed = {"identity": OVERHEAD, "canary": CANARY}
        latency = fixed.get(workload.key) or OVERHEAD + 1e-5 * float(workload.model)
        rng = np.random.default_rng([seed, zlib.crc32(workload.key.encode())])

        def visit() -> NDArray[np.float64]:
            self.visits += 1
            found = latency * self.slowdown(self.now - self.began, latency) * rng.lognormal(0, 0.01, 4)
            self.now += 0.002 + 5e-3 * latency
            return np.asarray(found)

        return SimpleNamespace(workload=workload, visit=visit, assigned={})


Build = Callable[..., OnnxRuntimeLatencyProfiler]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    simulated = Machine()

    def measured(*arguments: Any, **options: Any) -> Any:
        simulated.began = simulated.now = simulated.now + 10.0
        return measure(*arguments, **options)

    def export(models: Sequence[torch.nn.Module], inputs: Sequence[tuple[Tensor, ...]], **options: Any) -> list[bytes]:
        return [str(macs_of(model, *each)).encode() for model, each in zip(models, inputs, strict=True)]

    monkeypatch.setattr(measuring, "Runner", simulated.runner)
    monkeypatch.setattr(measuring, "time", simulated)
    monkeypatch.setattr("hwnas.profilers.latency.measure", measured)
    monkeypatch.setattr("hwnas.profilers.latency_parts.build_many", export)
    return simulated


def quiet(moment: float, latency: float) -> float:
    return 1.0


def steady(moment: float, latency: float) -> float:
    """Another program keeps memory busy all the time: large nets suffer more, the canary hardly more than others."""
    return float(1.2 * (latency / 0.3) ** 0.15)


def uneven(moment: float, latency: float) -> float:
    """As `steady`, but what a net suffers has nothing to do with how long it takes."""
    return float(1.2 * math.exp(0.15 * math.sin(40 * math.log(latency))))


def from_half(moment: float, latency: float) -> float:
    return 1.0 if moment < 4.0 else steady(moment, latency) / steady(moment, CANARY)


@pytest.fixture(scope="module")
def traced() -> TracedSpace:
    return TracedSpace(Net(), X)


@pytest.fixture
def profiler_under(machine: Machine, traced: TracedSpace) -> Build:
    def build(load: Slowdown, store: LatencyStore | None = None) -> OnnxRuntimeLatencyProfiler:
        machine.slowdown = load
        return OnnxRuntimeLatencyProfiler(traced.space, traced, budget_s=9, store=store)

    return build


def covered(profiler: OnnxRuntimeLatencyProfiler, n: int = 60) -> tuple[float, float]:
    """Share of random members whose measurement lies in the 90 % interval, as predicted before and after measuring."""
    space = Net()
    members = [space.random(random_state=1000 + i) for i in range(n)]
    before = [profiler.predict(sample) for sample in members]
    measured = profiler.measure(members)
    after = [profiler.predict(sample) for sample in members]

    def share(predicted: list[Prediction]) -> float:
        pairs = zip(predicted, measured, strict=True)
        return float(np.mean([abs(p.latency_ms - m.latency_ms) <= 1.645 * p.stderr_ms for p, m in pairs]))

    return share(before), share(after)


def test_on_a_quiet_machine_sessions_differ_by_no_more_than_ever(profiler_under: Build) -> None:
    profiler = profiler_under(quiet)
    assert profiler.between_sessions == BETWEEN_SESSIONS
    assert covered(profiler)[1] > 0.85
    assert profiler.between_sessions < 0.015
    assert not profiler.contended


def test_load_that_comes_during_the_calibration_is_known_at_its_end(machine: Machine, profiler_under: Build) -> None:
    profiler = profiler_under(from_half)
    assert profiler.contended
    (session,) = profiler.store.sessions(profiler.device.key, profiler.target.key)
    # Nets of 0.03 to 3 ms differ by a standard deviation of 0.15 times that of the logarithm of what they take.
    assert 0.03 < session.unsteadiness < 0.3
    machine.slowdown = quiet
    assert min(covered(profiler)) > 0.85
    assert f"contended: members differ by {100 * profiler.between_sessions:.0f} %" in profiler.advice
    assert "another store" in profiler.advice


@pytest.mark.parametrize(("first", "later"), [(steady, quiet), (quiet, steady)])
def test_load_from_which_large_nets_suffer_more_is_undone(
    machine: Machine, profiler_under: Build, first: Slowdown, later: Slowdown
) -> None:
    profiler = profiler_under(first)
    machine.slowdown = later
    assert min(covered(profiler)) > 0.85
    assert not profiler.contended
    _, session = profiler.store.sessions(profiler.device.key, profiler.target.key)
    assert session.scale.exponent == pytest.approx(1.15 if first is steady else 1 / 1.15, abs=0.03)


@pytest.mark.parametrize(("first", "later"), [(uneven, quiet), (quiet, uneven)])
def test_load_all_through_one_session_shows_when_the_next_one_measures_the_same_again(
    machine: Machine, profiler_under: Build, first: Slowdown, later: Slowdown
) -> None:
    profiler = profiler_under(first)
    assert not profiler.contended  # all of it took longer, and there is nothing to compare it with
    assert profiler.predict(Net().default()).stderr_ms > 0
    machine.slowdown = later
    before, after = covered(profiler)
    assert profiler.contended
    assert before < 0.65 or first is uneven  # whose calibration already shows that nets do not add up
    assert after > 0.85


def test_what_a_calibration_knows_outlives_the_process(profiler_under: Build) -> None:
    first = profiler_under(from_half)
    again = profiler_under(quiet, first.store)
    assert again.between_sessions == first.between_sessions
    assert again.contended
    sample = Net().default()
    assert again.predict(sample) == first.predict(sample)


def test_nets_measured_as_ratios_to_the_canary_are_not_taken_for_sure(machine: Machine, profiler_under: Build) -> None:
    store = LatencyStore()
    store.record(describe_device(), OrtTarget(), measure([], OrtTarget()))  # the floor of the canary on a quiet machine
    profiler = profiler_under(lambda moment, latency: 1.4, store)  # all nets alike, the canary too
    assert all(found.contended for found in profiler.measure(profiler.anchors))
    assert profiler.between_sessions >= BETWEEN_CONTENDED
    assert profiler.contended


def test_measuring_goes_on_where_load_comes_and_goes(machine: Machine) -> None:
    """Beyond the target error, until the time is up or the most visits are done."""
    workloads = [Workload(str(i), str(1e4 * 2**i).encode()) for i in range(5)]
    options: dict[str, Any] = {"budget_s": 1000.0, "relative_error": 0.05, "min_visits": 12, "max_visits": 50}
    measure(workloads, OrtTarget(), **options)
    calm = machine.visits
    machine.visits, machine.began = 0, machine.now
    # The canary tells nothing.
    machine.slowdown = lambda moment, latency: 1.0 if moment < 0.4 or latency == CANARY else latency**0.3 + 1
    found = measure(workloads, OrtTarget(), **options)
    assert machine.visits > 2 * calm
    assert found.unsteadiness > 0.02
    assert all(each.visits >= 50 for each in found.measurements.values())


def test_a_common_slowdown_leaves_no_doubt(profiler_under: Build) -> None:
    profiler = profiler_under(lambda moment, latency: 1.07 if moment > 4 else 1.0)
    assert not profiler.contended
    assert math.isfinite(profiler.relative_residual)
