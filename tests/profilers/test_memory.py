"""Bytes that are written and that are alive at once, compared with the storages of members that really run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import Interpreter
from torch.fx.experimental.proxy_tensor import make_fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import hwnas.nn as nn
from hwnas.errors import UnsupportedError
from hwnas.profilers import ActivationMemoryProfiler, PeakMemoryProfiler, TracedSpace, peak_bound

X = torch.zeros(2, 3, 8, 8)


class Storages(TorchDispatchMode):
    """Watches which storages operators make, and when they are gone."""

    def __init__(self, weights: list[Tensor], inputs: list[Tensor]) -> None:
        super().__init__()
        self._kept = [weight.untyped_storage() for weight in weights]
        self._seen = {storage._cdata for storage in self._kept}
        self._alive: list[tuple[StorageWeakRef, int]] = []
        for tensor in inputs:
            self._watch(tensor)
        self.written = 0
        self.peak = self._bytes()

    def _watch(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if any(ref.cdata == storage._cdata and not ref.expired() for ref, _ in self._alive):
            return 0
        if storage._cdata in self._seen:
            return 0
        self._alive.append((StorageWeakRef(storage), storage.nbytes()))
        return storage.nbytes()

    def _bytes(self) -> int:
        self._alive = [(ref, size) for ref, size in self._alive if not ref.expired()]
        return sum(size for _, size in self._alive)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.written += sum(self._watch(leaf) for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
        self.peak = max(self.peak, self._bytes())
        return output


class Graph(Interpreter):
    """Runs operators one by one and lets go of every tensor behind its last use, of inputs as well."""

    def __init__(self, module: torch.fx.GraphModule, inputs: list[Tensor]) -> None:
        super().__init__(module)
        self._given = inputs

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._given.pop(0)


def run(model: torch.nn.Module, x: Tensor, pure: bool) -> tuple[int, int]:
    """Bytes that a member writes, and the most that are alive at once; pure ones write into no tensor used later."""
    model.eval()
    with torch.no_grad():
        graph = make_fx(model)(x)
        graph.graph.eliminate_dead_code((lambda node: node.op in ("placeholder", "output")) if pure else None)
        graph.recompile()
        inputs = [x.clone()]
        with Storages(_weights(graph), inputs) as storages:
            Graph(graph, inputs).run()
    return storages.written, storages.peak


def _weights(graph: torch.fx.GraphModule) -> list[Tensor]:
    held = [getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"]
    return [tensor for tensor in held if isinstance(tensor, Tensor)]


def all_right(space: nn.ModelSpace, x: Tensor = X, members: int | None = None, pure: bool = True) -> PeakMemoryProfiler:
    traced = TracedSpace(space, x)
    written, peak = ActivationMemoryProfiler(space, traced), PeakMemoryProfiler(space, traced)
    samples = list(space.grid()) if members is None else [space.random(random_state=i) for i in range(members)]
    peaks = peak.evaluate(samples)
    bounds = peak.cost_model.evaluate(samples)
    assert (bounds == peaks).all() if peak.is_exact else (bounds >= peaks).all()
    for sample, at_once in zip(samples, peaks, strict=True):
        assert (written.profile(sample), at_once) == run(space.freeze(sample), x, pure), sample
        assert peak.profile(sample) == at_once
    return peak


def choice(values: list[Any], label: str) -> nn.ValueChoice:
    return nn.ValueChoice(values, label=label)


class Residual(nn.ModelSpace):
    """Branches that wait for each other, and a shortcut that may be skipped."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        width = choice([2, 5, 9], "w")
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=inplace))
        self.body = nn.LayerChoice(
            {
                "conv": nn.Conv2d(width, width, 3, padding=1),
                "deep": nn.Sequential(nn.Conv2d(width, width * 4, 1), nn.ReLU(), nn.Conv2d(width * 4, width, 1)),
                "skip": nn.Identity(),
            },
            label="body",
        )
        self.tail = nn.Repeat(lambda i: nn.Conv2d(width, width, 1), (0, 2), label="depth")

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return F.max_pool2d(self.tail(y + self.body(y)), 2).flatten(1)


@pytest.mark.parametrize("inplace", [True, False])
def test_every_member_of_a_residual_space(inplace: bool) -> None:
    assert all_right(Residual(inplace)).is_exact


def test_in_place_operators_write_nothing_new() -> None:
    samples = {"w": 9, "body": "deep", "depth": 0}
    inplace, new = (ActivationMemoryProfiler(Residual(flag), X).profile(samples) for flag in (True, False))
    assert new - inplace == 2 * 9 * 8 * 8 * 4


class EarlyOutput(nn.ModelSpace):
    """The first output is there long before the peak, and waits for the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, choice([2, 8], "early"), 1)
        self.wide = nn.Conv2d(3, choice([4, 16], "wide"), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        early = self.early(x)
        return early, self.wide(x).relu().sum((2, 3))


def test_outputs_live_to_the_end() -> None:
    all_right(EarlyOutput())


class Concat(nn.ModelSpace):
    """Chunks, joins, attention, views of views and views that are written."""

    def __init__(self) -> None:
        super().__init__()
        a, b = choice([2, 4], "a"), choice([2, 6], "b")
        self.left, self.right = nn.Conv2d(3, a, 1), nn.Conv2d(3, b, 1)
        self.mix = nn.Linear(a + b, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.left(x), F.gelu(self.right(x))], 1)
        z = self.mix(y.flatten(2).transpose(1, 2))
        q, k = z.chunk(2, -1)
        z = F.scaled_dot_product_attention(q[:, None], k[:, None], k[:, None])[:, 0]
        out = torch.zeros(x.shape[0], 64, 4)
        out[:, :, 1:] = z[..., 1:]
        return out.view(-1, 4).softmax(-1).reshape(x.shape[0], -1) * 2


def test_views_are_not_counted_twice() -> None:
    all_right(Concat(), pure=False)


class Inputs(nn.ModelSpace):
    """Tensors that are read late, or never."""

    def __init__(self, n_chosen: int | None = 1) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.which = nn.InputChoice(3, n_chosen=n_chosen, label="which")
        self.gate = nn.LayerChoice([nn.Sigmoid(), nn.Identity(), nn.ReLU(inplace=True)], label="gate")

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(a)
        c = self.gate(self.second(b))
        return self.which([a, b, c])


@pytest.mark.parametrize("n_chosen", [1, 2])
def test_what_is_not_chosen_is_neither_written_nor_kept(n_chosen: int) -> None:
    all_right(Inputs(n_chosen))


def test_a_free_number_of_inputs_is_refused() -> None:
    for profiler in (ActivationMemoryProfiler, PeakMemoryProfiler):
        with pytest.raises(UnsupportedError, match=r"'which'.*give it n_chosen"):
            profiler(Inputs(None), X)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_bytes_follow_the_type(dtype: torch.dtype) -> None:
    space = Residual().to(dtype)
    all_right(space, X.to(dtype))
    single = PeakMemoryProfiler(Residual(), X)
    sample = {"w": 9, "body": "deep", "depth": 0}
    ratio = PeakMemoryProfiler(space, X.to(dtype)).profile(sample) / single.profile(sample)
    assert ratio == dtype.itemsize / 4


def test_tensors_of_several_types() -> None:
    class Mixed(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, choice([2, 3], "w"), 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return torch.where(y > 0, y.double(), 0.0).argmax(1)

    all_right(Mixed())


def test_python_needs_no_less_than_the_graph() -> None:
    space = Residual()
    peak = PeakMemoryProfiler(space, X)
    for sample in space.grid():
        model, inputs = space.freeze(sample).eval(), X.clone()
        with torch.no_grad(), Storages([*model.parameters(), *model.buffers()], [inputs]) as storages:
            model(inputs)
        assert storages.peak >= peak.profile(sample)


class Stages(nn.ModelSpace):
    """Any of several parts may need most."""

    def __init__(self, stages: int) -> None:
        super().__init__()
        self.wide = torch.nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, w := choice([1, 4, 30], f"w{i}"), 1), nn.ReLU(), nn.Conv2d(w, 3, 1))
            for i in range(stages)
        )

    def forward(self, x: Tensor) -> Tensor:
        for part in self.wide:
            x = part(x)
        return x


def test_a_bound_where_many_parts_may_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    space = Stages(3)
    exact = all_right(space)
    assert exact.is_exact
    monkeypatch.setattr(peak_bound, "MAX_PART", 3)
    bound = all_right(space)
    assert not bound.is_exact
    samples = list(space.grid())
    peaks, bounds = bound.evaluate(samples), bound.cost_model.evaluate(samples)
    wide = np.array([sum(value > 1 for value in sample.values()) for sample in samples])
    assert (bounds == peaks)[wide <= 1].all()
    assert (bounds > peaks)[wide > 1].all()
    limit = float(np.median(peaks))
    drawn = bound.cost_model.sample_within(high=limit, n=50)
    assert (bound.evaluate(drawn) <= limit).all()
    monkeypatch.setattr(peak_bound, "MAX_STEP", 1)
    assert not all_right(space).is_exact
    assert not all_right(Inputs(1)).is_exact


def test_expectation_is_that_of_an_exact_model() -> None:
    space = Stages(2)
    peak = PeakMemoryProfiler(space, X)
    assert peak.unit == "bytes"
    assert peak.name == "peak_bytes"
    probabilities = {f"w{i}": torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64, requires_grad=True) for i in range(2)}
    expected = peak.expectation(probabilities)
    index = {1: 0, 4: 1, 30: 2}
    by_hand = sum(
        probabilities["w0"][index[s["w0"]]] * probabilities["w1"][index[s["w1"]]] * peak.profile(s)
        for s in space.grid()
    )
    torch.testing.assert_close(expected, by_hand)
    assert (torch.autograd.grad(expected, probabilities["w0"])[0][2] > 0).all()


class Random(nn.ModelSpace):
    """A small graph drawn at random: layers, joins, choices."""

    def __init__(self, plan: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.plan = plan
        width = choice([2, 3], "w")
        made = [self._layer(kind, i, width) for i, (kind, _, _) in enumerate(plan)]
        self.stem, self.layers = nn.Conv2d(3, width, 1), torch.nn.ModuleList(made)

    @staticmethod
    def _layer(kind: str, i: int, width: Any) -> torch.nn.Module:
        conv = nn.Conv2d(width, width, 3, padding=1)
        if kind == "choice":
            return nn.LayerChoice([conv, nn.Identity(), nn.ReLU(), nn.Hardswish(inplace=True)], label=f"c{i}")
        if kind == "repeat":
            return nn.Repeat(
                lambda j: nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)), (0, 2), label=f"d{i}"
            )
        if kind == "wide":
            wide = width * choice([1, 3], f"e{i}")
            return nn.Sequential(nn.Conv2d(width, wide, 1), nn.ReLU(inplace=True), nn.Conv2d(wide, width, 1))
        if kind == "input":
            return nn.InputChoice(2, n_chosen=1, label=f"i{i}")
        return conv

    def forward(self, x: Tensor) -> Tensor:
        states = [self.stem(x)]
        for layer, (kind, a, b) in zip(self.layers, self.plan, strict=True):
            one, other = states[a % len(states)], states[b % len(states)]
            if kind == "input":
                states.append(layer([one, other]))
            else:
                states.append(layer(one * 1) + other if kind != "plain" else layer(one))
        return torch.cat(states[-2:], 1).mean((2, 3))


KINDS = st.tuples(st.sampled_from(["choice", "repeat", "wide", "input", "plain"]), st.integers(0, 5), st.integers(0, 5))


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(plan=st.lists(KINDS, min_size=1, max_size=4))
def test_random_spaces(plan: list[tuple[str, int, int]]) -> None:
    all_right(Random(plan), X[:1, :, :4, :4], members=6)


@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
@given(plan=st.lists(KINDS, min_size=3, max_size=4))
def test_bounds_hold_however_little_room_there_is(plan: list[tuple[str, int, int]]) -> None:
    space = Random(plan)
    traced = TracedSpace(space, X[:1, :, :4, :4])
    samples = [space.random(random_state=i) for i in range(50)]
    for step, part in [(1, 1), (3, 50_000), (8, 3), (5_000, 8), (5_000, 50_000)]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(peak_bound, "MAX_STEP", step)
            patch.setattr(peak_bound, "MAX_PART", part)
            peak = PeakMemoryProfiler(space, traced)
        peaks, bounds = peak.evaluate(samples), peak.cost_model.evaluate(samples)
        assert (bounds == peaks).all() if peak.is_exact else (bounds >= peaks).all()
        assert all(factor.table.size <= part for factor in peak.cost_model.factors)


class Alternatives(nn.ModelSpace):
    """One of many layers; what follows may have to wait for any of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LayerChoice([nn.Conv2d(3, 20, 2 * n + 1, padding=n) for n in range(5)], label="first")
        self.pool, self.gate = torch.nn.AdaptiveAvgPool2d(1), nn.LayerChoice([nn.ReLU(), nn.Sigmoid()], label="gate")

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y.mean(1, keepdim=True)
        return self.gate(y) * y


def test_what_no_member_has_together_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    space = Alternatives()
    assert all_right(space).is_exact
    monkeypatch.setattr(peak_bound, "MAX_PART", 4)  # fewer than there are layers
    rough = all_right(space)
    assert not rough.is_exact
    assert rough.cost_model.maximum().cost == max(rough.evaluate(list(space.grid())))


class Waiting(nn.ModelSpace):
    """What any of two layers reads waits for parts that run where one of two choices wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.behind = nn.LayerChoice([nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)], label="behind")
        self.parts = torch.nn.ModuleList(nn.Conv2d(3, n, 1) for n in (30, 60))
        self.one, self.other = (nn.InputChoice(2, n_chosen=1, label=label) for label in ("one", "other"))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        parts = [part(x).mean(1, keepdim=True) for part in self.parts]
        return self.behind(y) + self.one(parts) * self.other(parts)


def test_what_is_read_later_waits_and_what_nobody_wants_does_not_run() -> None:
    assert all_right(Waiting()).is_exact


class Graphs(nn.ModelSpace):
    """A cell of any graph of up to five nodes."""

    def __init__(self) -> None:
        super().__init__()
        candidates = [lambda n: torch.nn.Conv2d(n, n, 1), lambda n: torch.nn.MaxPool2d(3, 1, 1)]
        self.cell = nn.NasBench101Cell(candidates, 3, 7, lambda n, m: torch.nn.Conv2d(n, m, 1), 5, 7, label="cell")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cell(x)
        return y


def test_members_of_a_cell_of_any_graph() -> None:
    all_right(Graphs(), members=25)
