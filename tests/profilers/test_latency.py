"""Predicted latency against synthetic machines whose latencies are known, and against this one."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.cost import CostModel
from hwnas.errors import BudgetError, StoreError
from hwnas.profilers import LatencyStore, Measurement, OnnxRuntimeLatencyProfiler, OrtTarget, SessionResult, Workload
from hwnas.profilers import RangeProfilerFilter as Within
from hwnas.profilers.latency import REFERENCES, VISITS
from hwnas.profilers.units import Workpiece
from hwnas.space import Sample

X = torch.zeros(2, 1, 8, 8)
OVERHEAD = 0.01


class Net(nn.ModelSpace):
    """A width, two blocks of which the second may be missing: 36 samples."""

    def __init__(self, widths: Sequence[int] = (4, 8)) -> None:
        super().__init__()
        width = nn.ValueChoice(list(widths), label="width")
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

        def block(index: int) -> nn.Module:
            candidates = {
                "3": nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
                "1": nn.Conv2d(width, width, 1),
                "skip": nn.Identity(),
            }
            return nn.LayerChoice(candidates, label=f"block{index}")

        self.body = nn.Repeat(block, (1, 2), label="depth")
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def macs_of_onnx(model: bytes) -> float:
    """Multiply-adds of a graph."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        shapes[value.name] = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    total = 0.0
    for node in graph.node:
        if node.op_type == "Conv":
            total += math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type in ("Gemm", "MatMul"):
            total += math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    return total


def macs_of(model: torch.nn.Module, *inputs: Tensor) -> float:
    """Multiply-adds of a PyTorch model, counted while it runs."""
    total = 0

    def count(module: Any, args: Any, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    model.eval()(*(inputs or (X,)))
    for handle in handles:
        handle.remove()
    return float(total)


def pretend_to_export(
    models: Sequence[torch.nn.Module], inputs: Sequence[tuple[Tensor, ...]], progress: Callable[[int], None]
) -> list[bytes]:
    """Stand in for `build_many`: all that these machines look at is the arithmetic."""
    progress(len(models))
    return [str(macs_of(model, *each)).encode() for model, each in zip(models, inputs, strict=True)]


class Machine:
    """Stands in for `measure`: the latency is a known function of the workload.

    `speed` multiplies every time of a session, as a machine drifts from one session to the next.
    """

    def __init__(self, latency: Callable[[Workload], float], speed: float = 1.0) -> None:
        self.latency, self.speed = latency, speed
        self.calls: list[list[str]] = []
        self.options: list[dict[str, Any]] = []

    def __call__(self, workloads: Sequence[Workload], target: OrtTarget, **options: Any) -> SessionResult:
        self.calls.append([workload.key for workload in workloads])
        self.options.append(options)
        options["progress"](len(workloads), len(workloads))

        def found(latency: float) -> Measurement:
            return Measurement(latency * self.speed, 0.01 * latency * self.speed, 20, False)

        return SessionResult(
            measurements={workload.key: found(self.latency(workload)) for workload in workloads},
            overhead=found(OVERHEAD),
            canary=found(0.2),
            canary_floor_ms=0.19 * self.speed,
            clock="thread_time",
            split_half_error=0.01,
            threads=target.intra_op_threads,
            load=0.0,
            started=time.time(),
            duration_s=1.0,
        )


def by_macs(workload: Workload, scale: float = 1.0) -> float:
    return OVERHEAD + scale * 1e-5 * float(workload.model)


def by_key(workload: Workload) -> float:
    """Anything, so long as it is a function of the key."""
    return OVERHEAD + 0.05 + int(hashlib.sha256(workload.key.encode()).hexdigest()[:6], 16) / 0xFFFFFF


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def put(latency: Callable[[Workload], float] = by_macs, speed: float = 1.0) -> Machine:
        machine = Machine(latency, speed)
        monkeypatch.setattr("hwnas.profilers.latency.measure", machine)
        monkeypatch.setattr("hwnas.profilers.latency_parts.build_many", pretend_to_export)
        return machine

    return put


@pytest.fixture(scope="module")
def exact() -> Iterator[tuple[Net, OnnxRuntimeLatencyProfiler, Machine]]:
    """A profiler on a machine on which parts add up exactly, with models that have been exported."""
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(lambda workload: OVERHEAD + 1e-5 * macs_of_onnx(workload.model))
        patch.setattr("hwnas.profilers.latency.measure", machine)
        space = Net()
        yield space, OnnxRuntimeLatencyProfiler(space, X), machine


def called(member: torch.nn.Module, modules: Sequence[torch.nn.Module]) -> list[Workpiece]:
    """Take the parts of a member from the member itself."""
    parts: list[Workpiece] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args: parts.append(Workpiece(module, args)))
        for module in modules
    ]
    member(X)
    for handle in handles:
        handle.remove()
    return parts


Exact = tuple[Net, OnnxRuntimeLatencyProfiler, Machine]


# -- a machine whose latencies are known ---------------------------------------------------------------------


def test_every_member_is_predicted_where_parts_add_up(exact: Exact) -> None:
    space, profiler, _ = exact
    for sample in space.grid():
        truth = OVERHEAD + 1e-5 * macs_of(space.freeze(sample))
        assert profiler.profile(sample) == pytest.approx(truth, rel=1e-6), sample
    assert profiler.overhead_ms == OVERHEAD
    assert profiler.unit == "ms"
    assert profiler.relative_residual == pytest.approx(0, abs=1e-9)


def test_any_table_of_parts_is_added_up(install: Callable[..., Machine]) -> None:
    machine = install(by_key)
    space = Net()
    profiler = OnnxRuntimeLatencyProfiler(space, X, calibration=0)
    latency = {key: by_key(Workload(key, b"")) for call in machine.calls for key in call}
    for sample in space.grid():
        member = space.freeze(sample).eval()
        parts = called(member, [member.stem, *member.body, member.head])
        keys = [part.identify().key for part in parts if not isinstance(part.module, torch.nn.Identity)]
        mean = profiler.table()[f"mean {{'width': {sample['width']}}}"]["latency_ms"]
        expected = OVERHEAD + mean + sum(latency[key] - OVERHEAD for key in keys)
        assert profiler.profile(sample) == pytest.approx(expected), sample


def test_bounds_draws_and_expectation_follow(exact: Exact) -> None:
    space, profiler, _ = exact
    truth = {str(s): profiler.profile(s) for s in space.grid()}
    assert profiler.cost_model.minimum().cost == pytest.approx(min(truth.values()))
    assert profiler.cost_model.maximum().cost == pytest.approx(max(truth.values()))
    limit = float(np.median(list(truth.values())))
    drawn = profiler.cost_model.sample_within(high=limit, n=20, seed=0)
    assert all(truth[str({label: s[label] for label in space.simplify()})] <= limit for s in drawn)
    with pytest.raises(BudgetError, match=r"ms"):
        Within(profiler, max=min(truth.values()) / 2)


def test_the_expectation_is_that_of_all_members_and_so_is_its_gradient(exact: Exact) -> None:
    space, profiler, _ = exact
    generator = torch.Generator().manual_seed(0)
    domain = profiler.cost_model.domain.values
    logits = {
        label: torch.randn(len(values), generator=generator, dtype=torch.float64, requires_grad=True)
        for label, values in domain.items()
    }

    def brute_force() -> Tensor:
        p = {label: logit.softmax(0) for label, logit in logits.items()}
        terms = [
            profiler.profile(sample)
            * torch.stack([p[label][list(domain[label]).index(sample[label])] for label in domain]).prod()
            for sample in space.grid()
        ]
        return torch.stack(terms).sum()

    truth, found = brute_force(), profiler.expectation({label: logit.softmax(0) for label, logit in logits.items()})
    torch.testing.assert_close(found, truth)
    expected = torch.autograd.grad(truth, list(logits.values()))
    gradients = torch.autograd.grad(found, list(logits.values()))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().max() > 0


def test_what_whole_members_take_more_is_found(install: Callable[..., Machine]) -> None:
    install(lambda workload: by_macs(workload, 1.25 if workload.name.startswith("member") else 1.0))
    space = Net()
    profiler = OnnxRuntimeLatencyProfiler(space, X)
    for sample in list(space.grid())[::7]:
        truth = OVERHEAD + 1.25e-5 * macs_of(space.freeze(sample))
        assert profiler.profile(sample) == pytest.approx(truth, rel=0.01)
        assert abs(profiler.profile(sample) - truth) < 2 * profiler.predict(sample).stderr_ms
        assert profiler.unfitted(sample) < profiler.profile(sample)


def test_the_parts_that_take_more_in_whole_members_are_found(install: Callable[..., Machine]) -> None:
    """Blocks of one kind take twice as long among others, as if something were fused on their own only."""

    def fused(workload: Workload) -> float:
        extra = 2.0 if "'1'" in workload.name and workload.name.startswith("member") else 0.0
        return by_macs(workload) + extra * 1e-5 * workload.name.count("'1'") * 500

    install(fused)
    space = Net()
    profiler = OnnxRuntimeLatencyProfiler(space, X)
    errors, before, covered = [], [], []
    for sample in space.grid():
        truth = fused(Workload("", str(macs_of(space.freeze(sample))).encode(), f"member {sample}"))
        found = profiler.predict(sample)
        errors.append(abs(found.latency_ms / truth - 1))
        before.append(abs(profiler.unfitted(sample) / truth - 1))
        covered.append(abs(found.latency_ms - truth) < 1.645 * found.stderr_ms)
    assert np.mean(errors) < 0.5 * np.mean(before)
    assert np.mean(covered) > 0.6  # two in three members are not near those that were measured


def test_the_error_of_a_prediction_covers_measurements(install: Callable[..., Machine]) -> None:
    def noisy(workload: Workload) -> float:
        noise = int(workload.key[:6], 16) / 0xFFFFFF - 0.5 if workload.name.startswith("member") else 0.0
        return by_macs(workload) * (1 + 0.2 * noise)

    install(noisy)
    profiler = OnnxRuntimeLatencyProfiler(Net(), X)
    assert 0.02 < profiler.relative_residual < 0.15
    report = profiler.report(30)
    assert 0.7 <= report.coverage_90 <= 1
    found = profiler.predict(Net().default())
    assert found.latency_ms == profiler.profile(Net().default())
    assert found.stderr_ms / found.latency_ms == pytest.approx(profiler.relative_residual, rel=0.5)


def test_a_confidence_counts_with_the_error_of_each_member(install: Callable[..., Machine]) -> None:
    def noisy(workload: Workload) -> float:
        noise = int(workload.key[:6], 16) / 0xFFFFFF - 0.5 if workload.name.startswith("member") else 0.0
        return by_macs(workload) * (1 + 0.2 * noise)

    install(noisy)
    space = Net()
    profiler = OnnxRuntimeLatencyProfiler(space, X)
    members = list(space.grid())
    predicted = [profiler.predict(sample) for sample in members]
    shares = [each.stderr_ms / each.latency_ms for each in predicted]
    # A bound, and not far from the truth: what it is too low by has to be rejected.
    assert 0.3 * min(shares) < profiler.least_relative_stderr <= min(shares) * (1 + 1e-9)
    limit = float(np.median([each.latency_ms for each in predicted]))
    within = Within(profiler, max=limit, confidence=0.9)
    feasible = [each.latency_ms + 1.2815516 * each.stderr_ms <= limit for each in predicted]
    assert [within(sample) for sample in members] == feasible
    assert 0 < sum(feasible) < sum(each.latency_ms <= limit for each in predicted)


def test_the_misfit_is_a_share_of_all_but_the_empty_run(install: Callable[..., Machine]) -> None:
    install(lambda workload: by_macs(workload, 0.003))  # next to nothing
    profiler = OnnxRuntimeLatencyProfiler(Net(), X)
    shares = [each.stderr_ms / each.latency_ms for each in map(profiler.predict, Net().grid())]
    assert profiler._posterior is not None
    assert profiler._posterior.misfit > 0.01
    assert profiler.least_relative_stderr <= min(shares) * (1 + 1e-9)


def test_the_least_error_is_that_of_the_fastest_member_if_all_parts_were_known(install: Callable[..., Machine]) -> None:
    def noisy(workload: Workload) -> float:
        noise = int(workload.key[:6], 16) / 0xFFFFFF - 0.5 if workload.name.startswith("member") else 0.0
        return OVERHEAD + (by_macs(workload, 0.2) - OVERHEAD) * (1 + 0.4 * noise)

    install(noisy)
    profiler = OnnxRuntimeLatencyProfiler(Net(), X)
    assert profiler._posterior is not None
    fastest = min(profiler.profile(sample) for sample in Net().grid())
    misfit = profiler._posterior.misfit * (fastest - OVERHEAD) / fastest
    # Members have a standard error of 1 % on this machine, and differ by 1 % from session to session.
    assert profiler.least_relative_stderr == pytest.approx(math.sqrt(0.01**2 + 0.01**2 + misfit**2))
    assert 1.5 * OVERHEAD < fastest < 4 * OVERHEAD
    assert misfit > 0.01


def test_an_empty_run_is_on_the_scale_of_its_session(install: Callable[..., Machine]) -> None:
    class Halved(LatencyStore):
        def record(self, *arguments: Any, **options: Any) -> int:
            return super().record(*arguments, anchor_scale=0.5)

    install()
    space = Net([4])
    profiler = OnnxRuntimeLatencyProfiler(space, X, store=Halved(), calibration=3)
    assert profiler.overhead_ms == pytest.approx(OVERHEAD / 2)
    for sample in space.grid():
        truth = OVERHEAD + 1e-5 * macs_of(space.freeze(sample))
        assert profiler.profile(sample) == pytest.approx(truth / 2, rel=1e-6)


def test_errors_of_many_members_are_those_of_each(install: Callable[..., Machine]) -> None:
    install(by_key)
    profiler = OnnxRuntimeLatencyProfiler(Net(), X)
    members = list(Net().grid())
    each = [profiler.predict(sample).stderr_ms for sample in members]
    np.testing.assert_allclose(profiler.stderrs(members), each, rtol=1e-9)
    assert len(set(each)) > 3
    assert profiler.stderrs([]).shape == (0,)


def test_a_breakdown_adds_up_to_the_prediction(install: Callable[..., Machine]) -> None:
    install(by_key)
    profiler = OnnxRuntimeLatencyProfiler(Net(), X)
    sample = Net().default()
    parts = profiler.breakdown(sample)
    assert sum(cost for _, cost in parts) == pytest.approx(profiler.profile(sample))
    assert dict(parts)["constant"] == profiler.overhead_ms
    assert {"stem", "head"} <= {name for name, _ in parts}


def test_without_calibration_nothing_is_fitted(install: Callable[..., Machine]) -> None:
    machine = install()
    profiler = OnnxRuntimeLatencyProfiler(Net([4]), X, calibration=0)
    assert profiler.anchors == []
    assert profiler.profile(Net([4]).default()) == profiler.unfitted(Net([4]).default())
    assert math.isnan(profiler.relative_residual)
    assert math.isnan(profiler.predict(Net([4]).default()).stderr_ms)
    assert math.isnan(profiler.least_relative_stderr)
    assert np.isnan(profiler.stderrs([Net([4]).default()] * 2)).tolist() == [True, True]
    assert len(machine.calls[0]) == len(profiler.table())


def test_a_part_that_takes_no_longer_than_an_empty_run_costs_nothing(install: Callable[..., Machine]) -> None:
    install(lambda workload: OVERHEAD / 2)
    profiler = OnnxRuntimeLatencyProfiler(Net([4]), X, calibration=0)
    assert profiler.profile(Net([4]).default()) == OVERHEAD


def test_each_distinct_part_is_measured_once(exact: Exact) -> None:
    _, profiler, machine = exact
    # Of each width: stem, two kinds of block, mean, head. Both blocks are the same.
    assert len(profiler.table()) == 10
    assert len(machine.calls[0]) == len(set(machine.calls[0]))


class Nothing(nn.ModelSpace):
    """No operator at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LayerChoice({"a": nn.Identity(), "b": nn.Identity()}, label="layer")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_a_space_without_parts_takes_an_empty_run(install: Callable[..., Machine]) -> None:
    install()
    profiler = OnnxRuntimeLatencyProfiler(Nothing(), X, calibration=0)
    assert profiler.profile({"layer": "a"}) == OVERHEAD


def test_progress_is_told(install: Callable[..., Machine]) -> None:
    install()
    told: list[tuple[str, int, int]] = []
    OnnxRuntimeLatencyProfiler(Net([4]), X, calibration=2, progress=lambda *said: told.append(said))
    assert list(dict.fromkeys(what for what, _, _ in told)) == [
        "trace",
        "cut into parts",
        "find parts",
        "build members",
        "export",
        "measure",
    ]
    for what in ("trace", "cut into parts", "find parts", "build members", "export"):
        done = [n for each, n, _ in told if each == what]
        assert done[0] == 0
        assert done == sorted(done)
        assert {of for each, _, of in told if each == what} == {done[-1]}


# -- the store -----------------------------------------------------------------------------------------------


def same(one: CostModel, other: CostModel) -> bool:
    return one.to_dict() == other.to_dict()


def test_what_is_stored_is_not_measured_again(install: Callable[..., Machine], tmp_path: Path) -> None:
    machine = install(by_key)
    with LatencyStore(tmp_path / "store.sqlite") as store:
        first = OnnxRuntimeLatencyProfiler(Net(), X, store=store)
    machine.latency, machine.speed = lambda workload: 1.0, 3.0
    with LatencyStore(tmp_path / "store.sqlite") as store:
        second = OnnxRuntimeLatencyProfiler(Net(), X, store=store)
    assert len(machine.calls) == 1
    assert same(first.cost_model, second.cost_model)
    assert dataclasses.astuple(first.predict(Net().default())) == dataclasses.astuple(second.predict(Net().default()))


@pytest.mark.parametrize("other", ["target", "shape"])
def test_another_target_or_shape_is_measured_anew(install: Callable[..., Machine], other: str) -> None:
    machine = install()
    with LatencyStore() as store:
        OnnxRuntimeLatencyProfiler(Net([4]), X, store=store, calibration=0)
        target = OrtTarget(intra_op_threads=2) if other == "target" else None
        x = X[:1] if other == "shape" else X
        OnnxRuntimeLatencyProfiler(Net([4]), x, target, store=store, calibration=0)
    assert len(machine.calls) == 2
    if other == "target":
        assert machine.calls[0] == machine.calls[1]
    else:
        assert set(machine.calls[0]).isdisjoint(machine.calls[1][: len(machine.calls[0])])


def test_only_what_is_missing_is_measured_and_put_on_the_scale_of_before(install: Callable[..., Machine]) -> None:
    machine = install()
    with LatencyStore() as store:
        OnnxRuntimeLatencyProfiler(Net([4]), X, store=store, calibration=3)
        machine.speed = 1.1  # the machine has become slower, all of it alike
        space = Net([4, 8])
        profiler = OnnxRuntimeLatencyProfiler(space, X, store=store, calibration=10)
        before, now = (set(call) for call in machine.calls)
        references = before & now
        assert 1 <= len(references) <= REFERENCES
        assert len(machine.calls[1]) == len(now)
        assert len(now - before) == len(now) - len(references)
        sessions = store.sessions(profiler.device.key, profiler.target.key)
        assert [session.scale.factor for session in sessions] == [1.0, pytest.approx(1 / 1.1)]
    for sample in space.grid():
        truth = OVERHEAD + 1e-5 * macs_of(space.freeze(sample))
        assert profiler.profile(sample) == pytest.approx(truth, rel=1e-6), sample


def test_members_measured_later_are_put_on_the_scale_of_the_calibration(install: Callable[..., Machine]) -> None:
    machine = install()
    space = Net()
    profiler = OnnxRuntimeLatencyProfiler(space, X, calibration=3)
    machine.speed = 1.1  # the machine has become slower, all of it alike
    sample = next(sample for sample in space.grid() if sample not in profiler.anchors)
    (found,) = profiler.measure([sample])
    assert found.latency_ms == pytest.approx(OVERHEAD + 1e-5 * macs_of(space.freeze(sample)), rel=1e-6)
    assert len(machine.calls[1]) <= 1 + REFERENCES
    assert set(machine.calls[0]) >= set(machine.calls[1][1:])


def test_a_later_session_measures_members_of_the_calibration_again_and_knows_the_quiet_machine(
    install: Callable[..., Machine],
) -> None:
    machine = install()
    profiler = OnnxRuntimeLatencyProfiler(Net(), X, calibration=5, budget_s=7, relative_error=0.02, seed=3)
    members = {profiler._members.member(sample) for sample in profiler.anchors}
    machine.speed = 2.0
    profiler.measure([next(sample for sample in Net().grid() if sample not in profiler.anchors)])
    first, later = machine.options
    assert first["anchors"] == []
    assert first["floor_ms"] is None
    assert members <= set(later["anchors"][: len(members)])  # whole members before parts
    assert later["floor_ms"] == 0.19
    for options in machine.options:
        assert options["min_visits"] == VISITS
        assert (options["budget_s"], options["relative_error"], options["seed"]) == (7, 0.02, 3)


def test_a_damaged_store_is_told_and_not_overwritten(install: Callable[..., Machine], tmp_path: Path) -> None:
    install()
    path = tmp_path / "store.sqlite"
    with LatencyStore(path) as store:
        OnnxRuntimeLatencyProfiler(Net([4]), X, store=store, calibration=0)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StoreError, match=r"store\.sqlite"):
        LatencyStore(path)
    assert path.stat().st_size == 5000


# -- whole members -------------------------------------------------------------------------------------------


def test_members_are_measured_in_order_and_once(exact: Exact) -> None:
    space, profiler, machine = exact
    samples = [space.random(random_state=seed) for seed in (50, 51, 50)]
    before = len(machine.calls)
    found = profiler.measure(samples)
    assert found[0] == found[2]
    for sample, measurement in zip(samples, found, strict=True):
        assert measurement.latency_ms == pytest.approx(OVERHEAD + 1e-5 * macs_of(space.freeze(sample)))
    assert profiler.measure(samples) == found
    assert len(machine.calls) <= before + 1


def test_the_report_on_a_machine_on_which_parts_add_up(exact: Exact) -> None:
    _, profiler, _ = exact
    report = profiler.report(n=12)
    assert report.n == 12
    assert report.spearman == pytest.approx(1)
    assert report.mape < 1e-6
    assert report.noise == pytest.approx(0.01)


def test_the_report_is_that_of_the_seed(install: Callable[..., Machine]) -> None:
    install(by_key)
    profiler = OnnxRuntimeLatencyProfiler(Net(), X)
    one, again, other = profiler.report(8, seed=3), profiler.report(8, seed=3), profiler.report(8, seed=4)
    assert one == again
    assert one != other
    assert one.mape > 0.01  # members are anything, so no sum of parts predicts them


# -- this machine --------------------------------------------------------------------------------------------


class Wide(nn.ModelSpace):
    """Members so different in size that no noise hides it."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([4, 64], label="width")
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        kinds = {"5": nn.Conv2d(width, width, 5, padding=2), "1": nn.Conv2d(width, width, 1)}
        self.block = nn.LayerChoice(kinds, label="block")

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.stem(x))


def test_larger_members_are_predicted_and_measured_slower() -> None:
    x = torch.zeros(4, 1, 16, 16)
    profiler = OnnxRuntimeLatencyProfiler(Wide(), x, budget_s=2, calibration=4)
    small: Sample = {"width": 4, "block": "1"}
    large: Sample = {"width": 64, "block": "5"}
    assert profiler.predict(small).latency_ms < profiler.predict(large).latency_ms
    assert profiler.cost_model.minimum().sample == small
    assert profiler.cost_model.maximum().sample == large
    fast, slow = profiler.measure([small, large])
    assert fast.latency_ms < slow.latency_ms
    report = profiler.report(6)
    assert report.n == 6
    assert report.spearman > 0
    assert 0 < report.noise < 1
