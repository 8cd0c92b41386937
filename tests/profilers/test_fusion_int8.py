"""Kernels of quantised members, against the graphs that ONNX Runtime saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import UnsupportedError
from hwnas.export import quantise
from hwnas.export.direct import build_many
from hwnas.hub import DigitsSpace
from hwnas.hub.nas_bench_201 import NASBench201Space
from hwnas.profilers import OnnxRuntimeLatencyProfiler, OrtTarget
from hwnas.profilers.fusion_int8 import TO_FIRST, TO_LAST, QuantisedFusion
from hwnas.profilers.kernel import Kernel
from hwnas.profilers.kernel_table import KernelTable
from hwnas.profilers.optimised import kernels_of
from hwnas.profilers.profiler import domain_of
from hwnas.profilers.traced_space import TracedSpace
from hwnas.space import Sample
from tests.profilers.test_fusion import Cells, Mixed, pretend

TARGET = OrtTarget(precision="int8")


def compare(space: nn.ModelSpace, x: Tensor, samples: list[Sample]) -> list[Counter[Kernel]]:
    """Check the kernels of members, and return them."""
    models = build_many([space.freeze(sample).eval() for sample in samples], [(x,)] * len(samples))
    fusion, domain = QuantisedFusion(TracedSpace(space, x).traces[0]), domain_of(space)
    found = fusion.run({k: np.array([v.index(sample[k]) for sample in samples]) for k, v in domain.items()})
    counts = []
    for i, (sample, model) in enumerate(zip(samples, models, strict=True)):
        counts.append(Counter(fusion.kernels[numbers[i]] for _, numbers in found if numbers[i] >= 0))
        assert counts[-1] == kernels_of(quantise(model), TARGET), sample
    return counts


SPACES: dict[str, tuple[Callable[[], nn.ModelSpace], tuple[int, ...], int]] = {
    "cell": (lambda: NASBench201Space(channels=16, cells=1), (1, 3, 8, 8), 25),
    "narrow cell": (lambda: NASBench201Space(channels=8, cells=1), (2, 3, 4, 4), 10),
    "digits": (DigitsSpace, (2, 1, 8, 8), 10),
    "mixed": (Mixed, (1, 3, 8, 8), 36),
}


@pytest.mark.parametrize("name", SPACES)
def test_kernels_are_those_that_onnx_runtime_runs(name: str) -> None:
    make, shape, n = SPACES[name]
    space = make()
    rng = np.random.default_rng(0)
    few = space.size() <= 1000
    samples = list(space.grid())[:: space.size() // n] if few else [space.random(random_state=rng) for _ in range(n)]
    compare(space, torch.randn(shape), samples)


def test_a_member_that_does_not_depend_on_its_input_runs_nothing() -> None:
    space = NASBench201Space(channels=4, cells=1)
    dead = dict.fromkeys(domain_of(space), "none")
    assert compare(space, torch.randn(1, 3, 4, 4), [dead]) == [Counter()]


class Plain(nn.ModelSpace):
    """Layers around what a test writes down; no choice."""

    def __init__(self, compute: Callable[[Plain, Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.wide = nn.Conv2d(9, 4, 1)
        self.whole = nn.Conv2d(3, 6, 8)
        self.norm, self.scale = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.average, self.most = nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1)
        self.six = nn.ReLU6()
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


CASES: dict[str, tuple[Callable[[Plain, Tensor], Tensor], dict[str, int]]] = {
    "a convolution is the output": (lambda net, x: net.a(x), {"QLinearConv": 1, TO_LAST: 1, TO_FIRST: 1}),
    "nothing is a convolution": (lambda net, x: net.average(x) + x, {TO_LAST: 0, "plain QLinearAveragePool": 1}),
    "both of two activations vanish": (
        lambda net, x: net.b(net.six(net.a(x).relu())), {"QuantizeLinear": 1, "Relu": 0, "Clip": 0},
    ),
    "an activation of the input": (lambda net, x: net.b(x.relu()), {"QuantizeLinear": 1}),
    "an activation of a maximum": (lambda net, x: net.b(net.most(net.a(x)).relu()), {"NhwcMaxPool": 1}),
    "an activation of what others read stays": (
        lambda net, x: net.a(x) + net.a(x).relu() + (lambda y: y + y.relu())(net.b(x)),
        {"QuantizeLinear": 2, "DequantizeLinear": 2},
    ),
    "equal operators are not one": (
        lambda net, x: (lambda y: net.b(net.average(y) + net.average(y)))(net.a(x)), {"QLinearAveragePool": 2},
    ),
    "one reader needs channels last and the other first": (
        lambda net, x: (lambda y: net.b(y) + net.scale(y))(net.norm(x)), {TO_LAST: 1, TO_FIRST: 1, "QuantizeLinear": 2},
    ),
    "a number is added": (lambda net, x: net.b(net.a(x) + 1.0), {"QLinearAdd": 1, TO_LAST: 1, TO_FIRST: 1}),
    "a tensor is added to itself": (
        lambda net, x: (lambda y: y + y)(net.a(x)), {"QLinearAdd": 1, TO_FIRST: 1},
    ),
    "a sum behind convolutions takes their layout": (lambda net, x: net.a(x) + net.b(x), {TO_LAST: 1, TO_FIRST: 1}),
    "a sum of one of them does not": (lambda net, x: net.a(x) + x, {TO_LAST: 1, TO_FIRST: 1}),
    "nor before another": (lambda net, x: net.b(net.a(x) + x), {TO_LAST: 2, TO_FIRST: 2}),
    "most of what is concatenated decides": (
        lambda net, x: net.wide(torch.cat([net.a(x), net.b(x), x], 1)), {"QLinearConcat": 1, TO_LAST: 1, TO_FIRST: 1},
    ),
    "less than most does not": (
        lambda net, x: net.wide(torch.cat([net.a(x), x, net.average(x)], 1)), {"plain QLinearConcat": 1, TO_LAST: 2},
    ),
    "a maximum always takes the layout in front": (lambda net, x: net.most(net.a(x)), {"NhwcMaxPool": 1, TO_FIRST: 1}),
    "a maximum before a convolution": (lambda net, x: net.a(net.most(x)), {"MaxPool": 1, "QuantizeLinear": 1}),
    "a mean is transposed behind": (
        lambda net, x: net.linear(net.wide.weight.new_zeros(1) + net.whole(x).mean((2, 3))),
        {"Flatten": 1},
    ),
    "a mean that keeps its sizes": (
        lambda net, x: net.b(net.a(x).mean((2, 3), keepdim=True)), {"QLinearGlobalAveragePool": 1, "Flatten": 0},
    ),
    "a sigmoid has integers": (lambda net, x: net.b(net.a(x).sigmoid()), {"QLinearSigmoid": 1, TO_FIRST: 1}),
    "a tangent has none": (lambda net, x: net.b(net.a(x).tanh()), {"Tanh": 1, "DequantizeLinear": 2, TO_FIRST: 1}),
    "no layout goes through a normalisation": (
        lambda net, x: net.b(net.scale(net.average(net.a(x)))), {"plain QLinearAveragePool": 1, TO_LAST: 2},
    ),
    "nor into one": (
        lambda net, x: (lambda y: net.b(net.scale(y)) + y)(net.a(x)), {"BatchNormalization": 1, TO_LAST: 2},
    ),
    "what is behind a mean has no layout": (
        lambda net, x: (lambda y: y + y)(net.a(x).mean((2, 3))), {TO_FIRST: 1},
    ),
    "what is cut off already is not cut off again": (
        lambda net, x: (lambda y: net.b(net.six(y)) + y)(net.a(x).relu()), {"QuantizeLinear": 1},
    ),
    "a normalisation stays where nothing takes it": (
        lambda net, x: net.linear(net.whole(net.norm(x).relu()).mean((2, 3))), {"BatchNormalization": 1, "Relu": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_edges_of_the_rules(case: str) -> None:
    compute, expected = CASES[case]
    (found,) = compare(Plain(compute), torch.randn(1, 3, 8, 8), [{}])
    operators: Counter[str] = Counter()
    for kernel, n in found.items():
        operators[kernel.operator] += n
    assert {name: operators[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda net, x: net.a(x).mean(1), "ReduceMean in int8"),
        (lambda net, x: net.b(torch.nn.functional.hardtanh(net.a(x))), "Clip in int8"),
    ],
)
def test_what_is_not_known_of_integers_is_named(compute: Callable[[Plain, Tensor], Tensor], message: str) -> None:
    trace = TracedSpace(Plain(compute), torch.randn(1, 3, 8, 8)).traces[0]
    with pytest.raises(UnsupportedError, match=message):
        QuantisedFusion(trace).run({})


def test_several_inputs_are_refused() -> None:
    class Two(nn.ModelSpace):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    trace = TracedSpace(Two(), (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))).traces[0]
    with pytest.raises(UnsupportedError, match="one input"):
        QuantisedFusion(trace).run({})


def test_sizes_of_integer_kernels() -> None:
    conv = Kernel("QLinearConv", (3, 3, 2), 1, (2, 16, 9, 9), 32)
    same = Kernel("Conv", (3, 3, 2), 1, (2, 16, 9, 9), 32)
    assert (conv.macs, conv.weights, conv.traffic) == (same.macs, same.weights, same.traffic)
    assert Kernel("QGemm", (), 1, (2, 64), 10).macs == 1280
    assert Kernel("QLinearAdd", (), 1, (1, 4, 2, 2), 4).traffic == 48
    assert Kernel("plain QLinearGlobalAveragePool", (), 1, (1, 4, 2, 2), 4).written == 4
    assert Kernel("QLinearAveragePool", (3, 3, 1), 1, (1, 4, 2, 2), 4).macs == 9 * 16


# -- the profiler, on a machine whose latencies are known ----------------------------------------------------


def cost(kernel: Kernel) -> float:
    """Far from the arithmetic: averages of integers take ten times as long as a convolution."""
    rates = {"QLinearAveragePool": 1e-6, "QLinearConv": 3e-8, "DequantizeLinear": 1e-6, TO_FIRST: 3e-6}
    return 0.002 + rates.get(kernel.operator, 1e-7) * max(kernel.macs, kernel.traffic)


class Pooled(Cells):
    """The same with an average for a convolution."""

    operations = ("none", "avg_pool_3x3", "nor_conv_3x3")


def test_a_cell_space_is_predicted_from_integer_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("hwnas.profilers.latency.measure", pretend(cost, calls))
    space, x = Pooled(), torch.randn(1, 3, 16, 16)
    profiler = OnnxRuntimeLatencyProfiler(space, x, TARGET, calibration=12, seed=3)
    assert profiler.granularity == "kernels"
    assert calls == [12]  # nothing but whole members
    report = profiler.report(20)
    assert report.within_5 >= 0.9
    assert report.spearman > 0.99


def test_averages_of_integers_are_taken_to_be_slow() -> None:
    space = Pooled()
    table = KernelTable(space, QuantisedFusion(TracedSpace(space, torch.randn(1, 3, 16, 16)).traces[0]))
    rough = dict(zip(table.kernels, table.rough(), strict=True))
    (pool,) = [kernel for kernel in rough if kernel.operator == "QLinearAveragePool"]
    assert rough[pool] > max(rough[kernel] for kernel in rough if kernel.computes != "AveragePool")
