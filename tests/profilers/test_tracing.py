"""A trace holds for every member, or says why it cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import hwnas.nn as nn
from hwnas.errors import UnsupportedError
from hwnas.profilers import tracing
from hwnas.profilers.flops import FlopsProfiler
from hwnas.profilers.guards import violations
from hwnas.profilers.tables import Table, at
from hwnas.profilers.tracing import trace_everywhere, trace_space
from hwnas.supernet import OneHot, make_supernet

X = torch.zeros(1, 2, 6, 6)


def choice(values: list[Any], label: str, **options: Any) -> nn.ValueChoice:
    return nn.ValueChoice(values, label=label, **options)


def macs_of(model: torch.nn.Module, x: Tensor = X) -> float:
    """Multiply-adds of the convolutions and linear layers that really run."""
    total = 0

    def count(module: Any, args: Any, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    model(x)
    return float(total)


def all_right(space: nn.ModelSpace, x: Tensor = X) -> FlopsProfiler:
    profiler = FlopsProfiler(space, x)
    for sample in space.grid():
        assert profiler.profile(sample) == macs_of(space.freeze(sample), x), sample
    return profiler


class Branching(nn.ModelSpace):
    """Python decides by a size that is chosen."""

    def __init__(self, values: list[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, choice(values, "w"), 1)
        self.other = nn.Conv2d(2, choice([1, 3], "other"), 1)
        self.large = nn.Conv2d(1, 5, 3)
        self.medium = nn.Conv2d(1, 5, 3)
        self.small = nn.Conv2d(1, 7, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = y.mean(1, keepdim=True) + self.other(x).mean(1, keepdim=True)
        if y.shape[1] > 8:
            return self.large(z)
        if y.shape[1] > 4:  # the same operators as above
            return self.medium(z)
        return self.small(z)


@pytest.mark.parametrize("values", [[16, 8, 4], [4, 8, 16], [8, 4, 16]])
def test_a_branch_on_a_chosen_size_is_followed_for_every_value(values: list[int]) -> None:
    all_right(Branching(values))


def test_only_the_labels_of_the_branch_are_enumerated() -> None:
    traces = trace_everywhere(Branching([4, 16]), X)
    assert [trace.fixed for trace in traces] == [{"w": 4}, {"w": 16}]


def test_too_many_branches_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MAX_TRACES", 1)
    with pytest.raises(UnsupportedError, match=r"branches on sizes that depend on w"):
        trace_everywhere(Branching([4, 16]), X)


def test_a_loop_over_a_chosen_number() -> None:
    class Loop(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.times = choice([1, 2, 4], "times")
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.times()):
                x = self.conv(x)
            return x

    all_right(Loop())


@pytest.mark.parametrize("values", [[True, False], [False, True]])
def test_a_truth_value_read_in_forward(values: list[bool]) -> None:
    class Gate(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.on = choice(values, "on")
            self.width = choice([1, 3], "w")
            self.conv, self.extra = nn.Conv2d(2, self.width, 1), nn.Conv2d(self.width, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.extra(self.conv(x)) if self.on() else self.conv(x)

    all_right(Gate())


def test_a_float_and_a_string_that_change_shapes() -> None:
    class Scaled(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.scale = choice([1.0, 0.5], "scale")
            self.conv = nn.Conv2d(2, 3, 3, padding=choice(["same", "valid"], "padding"))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x[:, :, : int(x.shape[2] * self.scale())])

    all_right(Scaled())


def test_kernels_of_mixed_kind() -> None:
    class Kernels(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, choice([3, (1, 5), (5, 1)], "k"))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    all_right(Kernels())


def test_values_that_change_no_operator_are_not_enumerated() -> None:
    class Plain(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2, eps=choice([1e-5, 1e-3], "eps"))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)

    assert len(trace_everywhere(Plain(), X)) == 1


class Candidates(nn.ModelSpace):
    def __init__(self, *candidates: nn.Module) -> None:
        super().__init__()
        self.layer = nn.LayerChoice(list(candidates), label="layer")

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


@pytest.mark.parametrize(
    "candidates",
    [
        lambda: (nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1, stride=2)),
        lambda: (nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 1)),
        lambda: (nn.Conv2d(2, 2, 1), nn.Conv2d(2, choice([2, 4], "w"), 1)),
        lambda: (nn.Identity(), nn.Flatten()),
    ],
)
def test_candidates_of_different_shapes_are_named(candidates: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"layer: the choice 0 gives the shape .* and 1 gives"):
        trace_space(Candidates(*candidates()), X)


def test_depths_of_different_shapes_are_named() -> None:
    class Growing(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Repeat(lambda i: nn.Conv2d(2 + i, 3 + i, 1), (0, 2), label="depth")

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    with pytest.raises(UnsupportedError, match="depth: the choice 0 gives"):
        trace_space(Growing(), X)


def test_inputs_of_different_shapes_are_named() -> None:
    class Inputs(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Conv2d(2, 4, 1)
            self.choice = nn.InputChoice(2, 1, label="in")

        def forward(self, x: Tensor) -> Tensor:
            return self.choice([x, self.wide(x)])

    with pytest.raises(UnsupportedError, match="in: the choice"):
        trace_space(Inputs(), X)


@pytest.mark.parametrize("reduction", ["sum", "mean", "concat"])
def test_a_free_number_of_inputs(reduction: Any) -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.choice = nn.InputChoice(2, None, reduction, label="in")
            self.conv = torch.nn.LazyConv2d(3, 3) if reduction == "concat" else torch.nn.Conv2d(2, 3, 3)
            if reduction == "concat":
                self.conv = Flexible()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.choice([x, x + 1]))

    all_right(Net()) if reduction != "concat" else concat_is_right(Net())


class Flexible(torch.nn.Module):
    """A convolution over however many channels there are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.repeat(1, x.shape[1] // 2, 1, 1))


def concat_is_right(space: nn.ModelSpace) -> None:
    profiler = FlopsProfiler(space, X)
    assert profiler.profile({"in": [0]}) == profiler.profile({"in": [1]}) == 36 * 3 * 2
    assert profiler.profile({"in": [0, 1]}) == 36 * 3 * 4


def test_a_supernet_is_refused() -> None:
    space = Candidates(nn.ReLU(), nn.Tanh())
    make_supernet(space, OneHot(space.simplify().values()))
    with pytest.raises(UnsupportedError, match="super-net already"):
        trace_space(space, X)


def test_tracing_leaves_the_space_alone() -> None:
    space = Candidates(
        nn.Sequential(nn.Conv2d(2, choice([2, 4], "w"), 1), nn.Conv2d(choice([2, 4], "w"), 2, 1)), nn.ReLU()
    )
    space.train()
    kinds = [type(module) for module in space.modules()]
    state = {name: tensor.clone() for name, tensor in space.state_dict().items()}
    trace_space(space, X)
    assert [type(module) for module in space.modules()] == kinds
    assert all(torch.equal(state[name], tensor) for name, tensor in space.state_dict().items())
    assert all(not module._forward_hooks and module.training for module in space.modules())


def test_calls_know_their_module_and_their_condition() -> None:
    trace = trace_space(Candidates(nn.Conv2d(2, 2, 1), nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))), X)
    convolutions = [call for call in trace.operators if "convolution" in str(call.operator)]
    assert [call.module for call in convolutions] == ["layer.candidates.0", "layer.candidates.1.0"]
    for position, call in enumerate(convolutions):
        (condition,) = [c for c in call.conditions if c.labels]
        assert condition.labels == ("layer",)
        assert condition.values.tolist() == [position == 0, position == 1]
        assert trace.modules[call.caller].module == call.module


def test_violations_are_all_reported_up_to_a_limit() -> None:
    guard = Table(("a", "b"), np.array([[True, False], [False, True]]))
    assert set(violations(iter([guard, guard]))) == {(("a", "b"), (0, 1)), (("a", "b"), (1, 0))}
    assert list(violations(iter([Table(("a",), np.array([True]))]))) == []
    assert len(list(violations(iter([Table(("a",), np.zeros(1000, dtype=bool))])))) <= 16


def test_many_kernels_with_their_padding_do_not_hang_together() -> None:
    class Tower(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            kernels = [choice([3, 5, 7], f"kernel{i}") for i in range(12)]  # 3^12 combinations
            self.layers = nn.Sequential(*(nn.Conv2d(2, 2, kernel, padding=kernel // 2) for kernel in kernels))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    space = Tower()
    profiler = FlopsProfiler(space, X)
    for seed in range(3):
        sample = space.random(random_state=seed)
        assert profiler.profile(sample) == macs_of(space.freeze(sample), X)


def test_slices_of_weights_have_their_shapes_and_cost_no_operator() -> None:
    class Sliced(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.width = choice([3, 5, 8], "w")
            self.table = torch.nn.Parameter(torch.randn(8, 6, 4))

        def forward(self, x: Tensor) -> Tensor:
            n = self.width()
            shapes = [
                self.table[:n], self.table[n:], self.table[1 : n - 1, :2], self.table[..., 1:3], self.table[: n + 4],
                self.table[-n:], self.table[0], self.table[:n, 2], self.table[::2], self.table[None, :n],
            ]  # fmt: skip
            return torch.stack([part.sum() for part in shapes])

    space = Sliced()
    for trace in trace_everywhere(space, X):
        sums = [call for call in trace.operators if "sum" in str(call.operator)]
        assert len(sums) == 10
        for n in (3, 5, 8):
            if trace.fixed and trace.fixed != {"w": n}:
                continue
            table = space.table
            expected = [
                table[:n], table[n:], table[1 : n - 1, :2], table[..., 1:3], table[: n + 4], table[-n:], table[0],
                table[:n, 2], table[::2], table[None, :n],
            ]  # fmt: skip
            domain = {"w": [3, 5, 8]}
            found = [[int(at(trace.symbols.evaluate(s), {"w": n}, domain)) for s in c.args[0].shape] for c in sums]
            assert found == [list(part.shape) for part in expected]
    plain = [str(call.operator) for call in trace_space(Branching([4, 16]), X).operators]
    assert not any("slice" in name for name in plain)
