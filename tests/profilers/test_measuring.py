"""The protocol on real ONNX Runtime sessions: rankings and ratios, never milliseconds."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import HwnasError
from hwnas.profilers import measuring as measure_module
from hwnas.profilers.canary import canary_model, identity_model
from hwnas.profilers.measuring import SessionResult, Workload, measure
from hwnas.profilers.runner import Runner, choose_clock
from hwnas.profilers.target import OrtTarget

TARGET = OrtTarget()


def conv_net(channels: int, size: int = 16, batch: int | str = 1) -> bytes:
    """Build an ONNX model of two 3x3 convolutions."""
    rng = np.random.default_rng(0)
    weights = [
        (rng.standard_normal((channels, fan_in, 3, 3)) * math.sqrt(2 / (9 * fan_in))).astype(np.float32)
        for fan_in in (8, channels)
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "w1"], ["y"], pads=[1, 1, 1, 1]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, channels, size, size])],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def session() -> SessionResult:
    small = conv_net(16)
    workloads = [
        Workload("small", small),
        Workload("large", conv_net(128)),
        Workload("twin", small),
        Workload("middle", conv_net(48)),
    ]
    return measure(workloads, TARGET, budget_s=5, max_visits=20)


def test_keys_come_back_in_order(session: SessionResult) -> None:
    assert list(session.measurements) == ["small", "large", "twin", "middle"]


def test_larger_nets_are_slower_and_identity_is_the_fastest(session: SessionResult) -> None:
    found = session.measurements
    assert found["small"].latency_ms < found["middle"].latency_ms < found["large"].latency_ms
    assert session.overhead.latency_ms < min(m.latency_ms for m in found.values())


def test_the_same_model_under_two_keys_agrees(session: SessionResult) -> None:
    ratio = session.measurements["small"].latency_ms / session.measurements["twin"].latency_ms
    assert 1 / 1.25 < ratio < 1.25


def test_session_describes_itself(session: SessionResult) -> None:
    assert session.certified
    assert session.clock == choose_clock(TARGET)[0]
    assert session.canary_floor_ms > 0
    assert session.split_half_error < 0.5
    for found in (*session.measurements.values(), session.overhead, session.canary):
        assert found.visits >= 2
        assert 0 <= found.stderr_ms < found.latency_ms


def test_every_key_gets_two_visits_when_no_time_is_left() -> None:
    workloads = [Workload(str(i), conv_net(16)) for i in range(20)]
    found = measure(workloads, TARGET, budget_s=1e-3)
    assert all(m.visits >= 2 for m in found.measurements.values())


def test_budget_ends_a_session_whose_error_cannot_be_reached() -> None:
    begin = time.perf_counter()
    measure([Workload("a", conv_net(64))], TARGET, budget_s=1, relative_error=1e-9, max_visits=10**6)
    assert time.perf_counter() - begin < 10


def test_an_unreachable_floor_makes_everything_contended() -> None:
    found = measure([Workload("a", conv_net(16))], TARGET, budget_s=0.5, floor_ms=1e-9)
    assert found.canary_floor_ms == 1e-9
    assert found.measurements["a"].contended


def test_nothing_to_measure_still_gives_the_overhead() -> None:
    found = measure([], TARGET, budget_s=2)
    assert not found.measurements
    assert 0 < found.overhead.latency_ms < found.canary.latency_ms
    assert math.isnan(found.split_half_error)


def test_groups_cover_all_keys_and_report_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "_GROUP_SIZE", 2)
    seen: list[tuple[int, int]] = []
    workloads = [Workload(str(i), conv_net(16)) for i in range(5)]
    found = measure(
        workloads,
        TARGET,
        budget_s=3,
        max_visits=6,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert list(found.measurements) == [str(i) for i in range(5)]
    assert {total for _, total in seen} == {5}
    assert seen == sorted(seen)
    assert seen[-1] == (5, 5)


def test_progress_is_the_share_of_the_time_where_time_ends_the_session() -> None:
    seen: list[int] = []
    workloads = [Workload(str(i), conv_net(16)) for i in range(10)]
    measure(
        workloads,
        TARGET,
        budget_s=1,
        relative_error=1e-9,
        max_visits=10**6,
        progress=lambda done, total: seen.append(done),
    )
    assert seen == sorted(seen)
    assert seen[-1] == 10
    assert len(set(seen)) > 2


def test_what_is_finished_is_recorded_as_the_session_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "_RECORD_EVERY_S", 0.0)
    monkeypatch.setattr(measure_module, "_GROUP_SIZE", 2)
    seen: list[SessionResult] = []
    workloads = [Workload(str(i), conv_net(16)) for i in range(6)]
    final = measure(workloads, TARGET, budget_s=4, max_visits=8, anchors=["5"], record=seen.append)
    assert seen
    recorded = [set(result.measurements) for result in seen]
    # The anchor is there from the beginning, what was there stays, and there is no record without news.
    assert all("5" in keys for keys in recorded)
    assert all(before <= after for before, after in itertools.pairwise(recorded))
    assert len(recorded) <= 6
    assert recorded[-1] <= set(final.measurements)
    assert {result.started for result in seen} == {final.started}
    for result in seen:
        assert all(found.visits >= 2 for found in result.measurements.values())
        assert list(result.measurements) == sorted(result.measurements)


def test_what_is_measured_further_stays_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may be finished in one round and not in the next: its error grows when the machine turns out unsteady."""
    monkeypatch.setattr(measure_module, "_RECORD_EVERY_S", 0.0)
    seen: list[Any] = []
    session: Any = SimpleNamespace(settled={"before"}, result=lambda keys: keys)
    recorder = measure_module._Recorder(session, frozenset({"anchor"}), seen.append)
    for finished in ({"a"}, {"b"}, set[str](), {"a", "b"}):
        recorder.offer(finished)
    assert seen == [{"before", "anchor", "a"}, {"before", "anchor", "a", "b"}]


def test_nothing_is_recorded_too_often() -> None:
    seen: list[SessionResult] = []
    measure([Workload("a", conv_net(16))], TARGET, budget_s=0.3, max_visits=8, record=seen.append)
    assert not seen


def test_anchors_come_first() -> None:
    workloads = [Workload(str(i), b"") for i in range(900)]
    groups = list(measure_module._groups(workloads, np.random.default_rng(0), ["7", "800"]))
    assert [len(group) for group in groups] == [300, 300, 300]
    assert {"7", "800"} <= {workload.key for workload in groups[0]}
    assert len({workload.key for group in groups for workload in group}) == 900


def test_models_of_many_bytes_are_measured_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "_GROUP_BYTES", 10)
    workloads = [Workload(str(i), b"x" * 6) for i in range(3)]
    groups = list(measure_module._groups(workloads, np.random.default_rng(0)))
    assert sorted(len(group) for group in groups) == [1, 1, 1]
    assert sorted(w.key for group in groups for w in group) == ["0", "1", "2"]


def test_order_is_random_but_seeded() -> None:
    workloads = [Workload(str(i), b"") for i in range(50)]

    def order(seed: int) -> list[str]:
        (group,) = measure_module._groups(workloads, np.random.default_rng(seed))
        return [workload.key for workload in group]

    assert order(0) == order(0) != order(1)


def test_inputs_are_seeded_and_differ_between_keys() -> None:
    def inputs(key: str, seed: int) -> np.ndarray:
        return Runner(Workload(key, conv_net(16)), TARGET, time.perf_counter_ns)._make_inputs(seed)["x"]

    np.testing.assert_array_equal(inputs("a", 0), inputs("a", 0))
    assert not np.array_equal(inputs("a", 0), inputs("a", 1))
    assert not np.array_equal(inputs("a", 0), inputs("b", 0))


def test_bound_outputs_are_what_a_plain_run_computes() -> None:
    model = conv_net(16)
    runner = Runner(Workload("a", model), TARGET, time.perf_counter_ns, seed=3)
    runner.visit()
    (bound,) = runner._binding.copy_outputs_to_cpu()
    plain = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(bound, plain.run(None, runner._make_inputs(3))[0], rtol=1e-4, atol=1e-5)


def test_garbage_collection_is_restored_after_a_failure() -> None:
    assert gc.isenabled()
    states = []
    with contextlib.suppress(KeyError), measure_module._no_garbage_collection():
        states.append(gc.isenabled())
        raise KeyError
    assert states == [False]
    assert gc.isenabled()


def test_several_threads_use_wall_time() -> None:
    target = OrtTarget(intra_op_threads=2)
    assert choose_clock(target)[0] == "perf_counter"
    found = measure([Workload("a", conv_net(64))], target, budget_s=2, max_visits=10)
    assert found.certified == (found.split_half_error <= 0.02)


def test_a_coarse_thread_clock_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    info = time.get_clock_info("perf_counter")
    info.resolution = 0.0156
    monkeypatch.setattr(time, "get_clock_info", lambda name: info)
    assert choose_clock(TARGET)[0] == "perf_counter"


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (b"no model", "cannot load"),
        (conv_net(16, batch="n"), "dynamic"),
    ],
)
def test_failures_name_the_workload(model: bytes, what: str) -> None:
    with pytest.raises(HwnasError, match=rf"stem/conv.*{what}"):
        measure([Workload("k", model, name="stem/conv")], TARGET, budget_s=1)


def test_failing_runs_name_the_workload() -> None:
    # Shapes are made of zeros, and a zero at the second place has no second size of `x` to copy.
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [3]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(HwnasError, match=r"reshape.*cannot run"):
        measure([Workload("reshape", model.SerializeToString())], TARGET, budget_s=1)


def test_integer_inputs_are_valid_indices() -> None:
    table = numpy_helper.from_array(np.ones((1, 4), np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, [5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 4])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = measure([Workload("gather", model.SerializeToString())], TARGET, budget_s=0.5)
    assert found.measurements["gather"].visits >= 2


def test_a_key_may_occur_once_only() -> None:
    with pytest.raises(HwnasError, match="'a'"):
        measure([Workload("a", conv_net(16)), Workload("a", conv_net(8))], TARGET)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"budget_s": 0}, "budget_s"),
        ({"budget_s": float("nan")}, "budget_s"),
        ({"relative_error": 0}, "relative_error"),
        ({"min_visits": 1}, "min_visits"),
        ({"max_visits": 5}, "max_visits"),
        ({"floor_ms": -1}, "floor_ms"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(HwnasError, match=named):
        measure([], TARGET, **arguments)  # type: ignore[arg-type]


def test_canary_networks_are_valid_and_always_the_same(tmp_path: Path) -> None:
    for build in (identity_model, canary_model):
        assert build() == build()
        model = onnx.load_from_string(build())
        onnx.checker.check_model(model, full_check=True)
