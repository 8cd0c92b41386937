"""Fused kernels of members, against the graphs that ONNX Runtime saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import UnsupportedError
from hwnas.export.direct import build_many
from hwnas.hub import DigitsSpace
from hwnas.hub.nas_bench_201 import OPERATIONS, NASBench201Space
from hwnas.profilers import LatencyStore, Measurement, OnnxRuntimeLatencyProfiler, OrtTarget, SessionResult, Workload
from hwnas.profilers.composition import adds_choices
from hwnas.profilers.fusion import Fusion
from hwnas.profilers.kernel import Kernel
from hwnas.profilers.kernel_table import KernelTable
from hwnas.profilers.optimised import channel_block, kernels_of, optimised_graph
from hwnas.profilers.profiler import domain_of
from hwnas.profilers.traced_space import TracedSpace

TARGET = OrtTarget()
OVERHEAD = 0.01


class Mixed(nn.ModelSpace):
    """What the cell of NAS-Bench-201 does not have: widths, strides, groups, concatenations, a maximum."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([12, 16, 20], label="width")
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU6())
        self.left = nn.LayerChoice(
            {
                "depthwise": nn.Sequential(
                    nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width), nn.Sigmoid()
                ),
                "conv": nn.Conv2d(width, width, 1),
                "pool": nn.MaxPool2d(3, 1, 1),
                "skip": nn.Identity(),
            },
            label="left",
        )
        self.right = nn.LayerChoice(
            {"conv": nn.Conv2d(width, width, 3, padding=1), "pool": nn.AvgPool2d(3, 1, 1), "skip": nn.Identity()},
            label="right",
        )
        self.join = nn.LayerChoice({"sum": Sum(), "cat": Both(width), "norm": Twice(width)}, label="join")
        self.last = nn.Conv2d(width, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.join(self.left(x), self.right(x)).relu()
        return self.head((self.last(y) + self.last(x)).tanh().mean((2, 3)))


class Sum(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Twice(nn.Module):
    """A normalisation that cannot be folded, because something else reads the convolution."""

    def __init__(self, width: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a = self.conv(a)
        return self.norm(a).relu() + a + b


class Both(nn.Module):
    def __init__(self, width: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width * 2, width, 1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.norm(self.conv(torch.cat([a, b], 1)).relu())


SPACES: dict[str, tuple[Callable[[], nn.ModelSpace], tuple[int, ...], int]] = {
    "cell": (lambda: NASBench201Space(channels=16, cells=2), (1, 3, 8, 8), 40),
    "narrow cell": (lambda: NASBench201Space(channels=8, cells=1), (2, 3, 8, 8), 20),
    "digits": (DigitsSpace, (2, 1, 8, 8), 20),
    "mixed": (Mixed, (1, 3, 8, 8), 108),
}


@pytest.mark.parametrize("name", SPACES)
def test_kernels_are_those_that_onnx_runtime_runs(name: str) -> None:
    make, shape, n = SPACES[name]
    space, x = make(), torch.randn(shape)
    rng = np.random.default_rng(0)
    samples = list(space.grid()) if space.size() <= n else [space.random(random_state=rng) for _ in range(n)]
    models = build_many([space.freeze(sample).eval() for sample in samples], [(x,)] * len(samples))
    fusion, domain = Fusion(TracedSpace(space, x).traces[0], channel_block(TARGET)), domain_of(space)
    found = fusion.run({k: np.array([v.index(sample[k]) for sample in samples]) for k, v in domain.items()})
    for i, (sample, model) in enumerate(zip(samples, models, strict=True)):
        kernels = Counter(fusion.kernels[numbers[i]] for _, numbers in found if numbers[i] >= 0)
        assert kernels == kernels_of(model, TARGET), sample


class Plain(nn.ModelSpace):
    """Layers and parameters around what a test writes down; no choice."""

    def __init__(self, compute: Callable[[Plain, Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.norm, self.pool = nn.BatchNorm2d(16), nn.AvgPool2d(3, 1, 1)
        for name, shape in {"each": (16, 1, 1), "each4": (1, 16, 1, 1), "one": (1, 1, 1), "row": (8,)}.items():
            setattr(self, name, torch.nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


ADDITIONS: dict[str, Callable[[Plain, Tensor], Tensor]] = {
    "the input": lambda net, x: net.b(x + 1.0),
    "a convolution": lambda net, x: net.b(net.a(x) + 1.0),
    "the number comes first": lambda net, x: net.b(1.0 + net.a(x)),
    "an activation behind": lambda net, x: net.b((net.norm(net.a(x)) + 1.0).relu()),
    "an activation in front": lambda net, x: net.b(net.a(x).relu() + 1.0),
    "two": lambda net, x: net.b(net.a(x) + 1.0 + 2.0),
    "others read the convolution": lambda net, x: (lambda y: net.b(y + 1.0) + y)(net.a(x)),
    "a sum of convolutions": lambda net, x: net.b(net.a(x) + net.b(x) + 1.0),
    "a pooling": lambda net, x: net.b(net.pool(x) + 1.0),
    "a mean": lambda net, x: net.a(x).mean((2, 3)) + 1.0,
    "equal numbers": lambda net, x: (lambda y: net.b(y + 1.0) + net.a(y + 1.0))(net.a(x).relu()),
    "two numbers": lambda net, x: (lambda y: net.b(y + 1.0) + net.a(y + 2.0))(net.a(x).relu()),
    "zero": lambda net, x: net.b(net.a(x) + 0.0).relu() + 0,
    "zero beside": lambda net, x: (lambda y: net.b(y + 0.0) + net.a(y))(net.a(x).relu()),
    "zero to the input": lambda net, x: net.b(x + 0.0),
    "channels": lambda net, x: net.b((net.a(x) + net.each).relu()) + x,
    "channels of images": lambda net, x: net.b(net.norm(net.a(x) + net.each4)),
    "channels in front": lambda net, x: net.b(net.each + net.a(x)),
    "channels of what others read": lambda net, x: (lambda y: net.b(y + net.each) + y)(net.a(x)),
    "a parameter for all": lambda net, x: net.b(net.a(x) + net.one),
    "a parameter for columns": lambda net, x: net.b(net.a(x) + net.row),
    "parameters": lambda net, x: (lambda y: net.b(y + net.one) + net.a(y + net.row))(net.a(x).relu()),
    "one parameter twice": lambda net, x: (lambda y: net.b(y + net.row) + net.a(y + net.row))(net.a(x).relu()),
    "scaled": lambda net, x: (lambda y: net.b(torch.add(y, 1.0, alpha=2)) + net.a(y + 1.0))(net.a(x).relu()),
}


@pytest.mark.parametrize("name", ADDITIONS)
def test_a_constant_is_added_as_onnx_runtime_does(name: str) -> None:
    space, x = Plain(ADDITIONS[name]), torch.randn(1, 16, 8, 8)
    fusion = Fusion(TracedSpace(space, x).traces[0], channel_block(TARGET))
    found = Counter(fusion.kernels[number] for _, (number,) in fusion.run({}) if number >= 0)
    (model,) = build_many([space.freeze({}).eval()], [(x,)])
    assert found == kernels_of(model, TARGET)


def test_kernels_of_spaces_with_several_inputs_are_not_known() -> None:
    class Pair(nn.ModelSpace):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.relu() + y.relu()

    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(UnsupportedError, match="one input"):
        Fusion(TracedSpace(Pair(), (x, x)).traces[0], 16).run({})


def test_without_a_blocked_layout_only_activations_are_fused() -> None:
    space, x = Mixed(), torch.randn(1, 3, 8, 8)
    table = KernelTable(space, Fusion(TracedSpace(space, x).traces[0], 0))
    target = OrtTarget(optimization="extended")
    assert channel_block(target) == 0
    for sample in list(space.grid())[::7]:
        (model,) = build_many([space.freeze(sample).eval()], [(x,)])
        assert table.counter(sample) == kernels_of(model, target), sample


def test_equal_constants_are_added_one_by_one() -> None:
    space, x = NASBench201Space(channels=16, cells=1), torch.randn(1, 3, 8, 8)
    zeros = ("cell/1_2", "cell/1_3")
    sample = {label: "none" if label in zeros else "skip_connect" for label in domain_of(space)}
    fusion = Fusion(TracedSpace(space, x).traces[0], channel_block(TARGET))
    found = fusion.run({k: np.array([v.index(sample[k])]) for k, v in domain_of(space).items()})
    (model,) = build_many([space.freeze(sample).eval()], [(x,)])
    assert Counter(fusion.kernels[n[0]] for _, n in found if n[0] >= 0) == kernels_of(model, TARGET)


def test_an_output_leaves_the_blocked_layout() -> None:
    class Open(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            width = nn.ValueChoice([16, 20], label="width")
            self.first = nn.Conv2d(3, width, 3)
            self.second = nn.LayerChoice([nn.Conv2d(width, width, 1), nn.Identity(), nn.Sigmoid()], label="second")

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    space, x = Open(), torch.randn(1, 3, 8, 8)
    block = channel_block(TARGET)
    table = KernelTable(space, Fusion(TracedSpace(space, x).traces[0], block))
    for sample in space.grid():
        (model,) = build_many([space.freeze(sample).eval()], [(x,)])
        kernels = table.counter(sample)
        assert kernels == kernels_of(model, TARGET), sample
        assert sum(n for kernel, n in kernels.items() if kernel.operator == "ReorderOutput") == (block > 0)


def test_the_block_is_that_of_the_weights() -> None:
    block = channel_block(TARGET)
    (model,) = build_many([torch.nn.Conv2d(32, 20, 3)], [(torch.randn(1, 32, 8, 8),)])
    graph = optimised_graph(model, TARGET)
    if block:
        assert {tensor.dims[0] % block for tensor in graph.initializer} == {0}
        assert any(tensor.dims[0] == -(-20 // block) * block for tensor in graph.initializer)


def test_sizes_of_a_kernel() -> None:
    conv = Kernel("Conv", (3, 3, 2), 1, (2, 16, 9, 9), 32, sum=True)
    layer = torch.nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
    y = layer(torch.zeros(2, 16, 9, 9))
    assert conv.written == y.numel()
    assert conv.weights == layer.weight.numel()
    assert conv.macs == y.numel() * layer.weight[0].numel()
    assert conv.traffic == 2 * 16 * 9 * 9 + 2 * y.numel()
    assert Kernel("Add", (), 1, (1, 4, 2, 2), 4).traffic == 48
    constant = Kernel("Add", (), 1, (1, 4, 2, 2), 4, constant=True)
    assert (constant.traffic, constant.weights) == (32, 16)
    assert Kernel("AveragePool", (3, 3, 1), 1, (1, 4, 2, 2), 4).macs == 9 * 16
    assert Kernel("Gemm", (), 1, (2, 64), 10).macs == 1280
    depthwise = Kernel("Conv", (3, 3, 1), 16, (1, 16, 4, 4), 16)
    assert (depthwise.macs, depthwise.weights) == (9 * 256, 144)
    assert len({conv.family, depthwise.family, Kernel("Conv", (3, 3, 2), 1, (1, 3, 9, 9), 32).family}) == 3


def test_the_cost_of_a_member_is_that_of_its_kernels() -> None:
    space = Mixed()
    table = KernelTable(space, Fusion(TracedSpace(space, torch.randn(1, 3, 8, 8)).traces[0], 16))
    costs = np.random.default_rng(0).uniform(0.1, 1, len(table.kernels))
    model = table.add_up(costs, constant=2.0).cost_model
    for sample in space.grid():
        expected = 2.0 + sum(costs[table.kernels.index(kernel)] * n for kernel, n in table.counter(sample).items())
        assert model.evaluate(sample) == pytest.approx(expected)


def test_an_operator_whose_fusion_is_not_known_is_named() -> None:
    class Odd(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.LayerChoice([nn.Conv2d(3, 3, 1), nn.Softplus()], label="a")

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)

    traced = TracedSpace(Odd(), torch.zeros(1, 3, 4, 4))
    fusion = Fusion(traced.traces[0], 16)
    with pytest.raises(UnsupportedError, match=r"a\.candidates\.1: it is not known.*softplus"):
        fusion.run({"a": np.array([0, 1])})
    assert fusion.run({"a": np.array([0])})


class Cells(nn.ModelSpace):
    """Cells with fewer operations than those of NAS-Bench-201; 729 members."""

    operations: Sequence[str] = ("none", "skip_connect", "nor_conv_3x3")

    def __init__(self) -> None:
        super().__init__()
        operations = {name: OPERATIONS[name] for name in self.operations}
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Sequential(*(nn.NasBench201Cell(operations, 16, 16, label="cell") for _ in range(3)))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


# -- the profiler, on a machine whose latencies are known ----------------------------------------------------


def pretend(cost: Callable[[Kernel], float], calls: list[int], crowding: float = 0.0) -> Callable[..., SessionResult]:
    """Stand in for `measure`: nets take the sum over the kernels that ONNX Runtime makes of them.

    Each takes a share `crowding` more for every kernel of the net.
    """

    def takes(kernels: Counter[Kernel]) -> float:
        return OVERHEAD + (1 + crowding * kernels.total()) * sum(n * cost(kernel) for kernel, n in kernels.items())

    def measure(workloads: list[Workload], target: OrtTarget, **options: Any) -> SessionResult:
        calls.append(len(workloads))
        found = {workload.key: takes(kernels_of(workload.model, target)) for workload in workloads}
        return SessionResult(
            measurements={key: Measurement(time, 0.003 * time, 20, False) for key, time in found.items()},
            overhead=Measurement(OVERHEAD, 1e-5, 20, False),
            canary=Measurement(0.2, 1e-3, 20, False),
            canary_floor_ms=0.2,
            clock="thread_time",
            split_half_error=0.01,
            threads=1,
            load=0.0,
            started=0.0,
            duration_s=1.0,
        )

    return measure


def cost(kernel: Kernel) -> float:
    """Far from the arithmetic: fast large convolutions, expensive changes of layout."""
    extra = {"Add": 3.0, "ReorderInput": 2.0, "ReorderOutput": 4.0, "AveragePool": 2.0}.get(kernel.operator, 1.0)
    rate = 2.0 if kernel.window[:1] == (3,) else 1.0
    return 0.002 + extra * 3e-7 * kernel.traffic + 2e-8 / rate * kernel.macs + 1e-7 * kernel.weights


def test_a_cell_space_is_predicted_from_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("hwnas.profilers.latency.measure", pretend(cost, calls))
    space, x = Cells(), torch.randn(1, 3, 16, 16)
    profiler = OnnxRuntimeLatencyProfiler(space, x, store=LatencyStore(), calibration=12, seed=3)
    assert profiler.granularity == "kernels"
    assert calls == [12]  # nothing but whole members
    report = profiler.report(30)
    assert report.within_5 > 0.9
    assert report.mape < 0.02
    assert report.spearman > 0.99
    uniform = {f"cell/{i}_{j}": torch.full((3,), 1 / 3) for j in range(1, 4) for i in range(j)}
    sample = space.random(random_state=5)
    parts = dict(profiler.breakdown(sample))
    assert sum(parts.values()) == pytest.approx(profiler.profile(sample))
    assert parts.pop("constant") == OVERHEAD
    (workload,) = profiler._members.workloads([profiler._members.member(sample)], profiler.target)
    kernels = kernels_of(workload.model, profiler.target)
    assert sorted(name.split()[0] for name in parts) == sorted(str(n) for n in kernels.values())
    assert sorted(name.split()[2].rstrip(",") for name in parts) == sorted(kernel.operator for kernel in kernels)
    everything = profiler.cost_model.evaluate([*space.grid()])
    assert float(profiler.expectation(uniform)) == pytest.approx(float(np.mean(everything)), rel=1e-4)


def test_kernels_take_more_in_nets_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.profilers.latency.measure", pretend(cost, [], crowding=0.02))
    space, x = Cells(), torch.randn(1, 3, 16, 16)
    profiler = OnnxRuntimeLatencyProfiler(space, x, store=LatencyStore(), calibration=16, seed=3)
    report = profiler.report(30)
    assert report.within_5 > 0.95
    assert report.mape < 0.015
    none = dict.fromkeys(domain_of(space), "skip_connect")
    many = dict.fromkeys(domain_of(space), "nor_conv_3x3")
    for sample in (none, many):
        parts = profiler.breakdown(sample)
        assert sum(part for _, part in parts) == pytest.approx(profiler.profile(sample))
    short, long = (
        {
            name.partition(" x ")[2]: ms / float(name.partition(" x ")[0])
            for name, ms in profiler.breakdown(sample)
            if " x " in name
        }
        for sample in (none, many)
    )
    assert short.keys() & long.keys()
    assert all(long[kernel] > short[kernel] for kernel in short.keys() & long.keys())


def test_granularity_is_chosen_by_structure() -> None:
    cell = TracedSpace(NASBench201Space(channels=4, cells=1), torch.randn(1, 3, 8, 8))
    assert adds_choices(cell.traces[0])

    class Chain(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.LayerChoice([nn.Conv2d(3, 3, 1), nn.Identity()], label="a")

        def forward(self, x: Tensor) -> Tensor:
            return x + self.a(x)

    assert not adds_choices(TracedSpace(Chain(), torch.zeros(1, 3, 4, 4)).traces[0])


def test_what_is_fused_otherwise_is_measured_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.profilers.latency.measure", pretend(cost, []))
    monkeypatch.setattr("hwnas.profilers.composition.channel_block", lambda target: 4)
    space, x = Mixed(), torch.randn(1, 3, 8, 8)
    with pytest.warns(UserWarning, match="fuses other operators than expected"):
        profiler = OnnxRuntimeLatencyProfiler(space, x, calibration=3)
    assert profiler.granularity == "blocks"
    options: dict[str, Any] = {"calibration": 3, "granularity": "kernels"}
    with pytest.warns(UserWarning, match="fuses"), pytest.raises(UnsupportedError, match="fuses"):
        OnnxRuntimeLatencyProfiler(space, x, **options)


@pytest.mark.parametrize(
    ("target", "calibration", "error"),
    [(OrtTarget(optimization="basic"), 3, UnsupportedError), (OrtTarget(), 0, ValueError)],
)
def test_kernels_are_refused_where_they_are_not_known(
    target: OrtTarget, calibration: int, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"kernels"):
        OnnxRuntimeLatencyProfiler(
            Mixed(), torch.zeros(1, 3, 8, 8), target, calibration=calibration, granularity="kernels"
        )


def test_kernels_of_a_space_that_needs_blocks_are_refused_with_advice() -> None:
    class Sliced(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.LayerChoice([nn.Conv2d(3, 3, 1), nn.ReLU()], label="a")

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x[:, :, 1:])

    with pytest.raises(
        UnsupportedError, match=r'Sliced cannot .* fuses aten\.slice\. Take granularity "auto" or "blocks"'
    ):
        OnnxRuntimeLatencyProfiler(Sliced(), torch.zeros(1, 3, 8, 8), granularity="kernels")


def test_an_unknown_granularity_is_an_error() -> None:
    granularity: Any = "layers"
    with pytest.raises(ValueError, match="'layers'; expected one of auto, blocks, kernels"):
        OnnxRuntimeLatencyProfiler(Mixed(), torch.zeros(1, 3, 8, 8), granularity=granularity)


def test_kernels_have_names_that_people_can_read() -> None:
    conv = Kernel("Conv", (3, 3, 2), 1, (1, 16, 32, 32), 32, activation=True, sum=True)
    assert conv.title == "Conv 3x3, 16 to 32 channels of 32x32, stride 2, activation, sum"
    assert Kernel("Conv", (5, 5, 1), 8, (1, 8, 4, 4), 8).title == "Conv 5x5, 8 channels of 4x4, 8 groups"
    assert Kernel("Add", (), 1, (1, 8, 4, 4), 8, constant=True).title == "Add, 8 channels of 4x4, constant"
    assert Kernel("Gemm", (), 1, (2, 64), 10).title == "Gemm, 64 to 10 channels of 1"
