"""Sampled super-nets under `torch.compile`: one graph without a break, and few of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.space import Sample
from hwnas.strategies.feasible import FeasibleSampler
from hwnas.supernet import OneHot, make_supernet

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "strategy_matrix.py"
# One for each kind of mixed module.
PRIMITIVES = [
    "`LayerChoice`, one inside another",
    "`InputChoice`, any number of 3, mean",
    "`InputChoice`, 2 of 3, concat",
    "`Repeat`, from depth 0",
    "`Cell`, loose ends",
    "`Cell` of factories, loose ends",
    "`NasBench101Cell`",
    "`ValueChoice` called in `forward`",
    "`Conv2d`, depthwise",
    "`ConvTranspose2d`",
    "`BatchNorm2d`",
    "`LayerNorm`",
    "`GroupNorm`",
    "`RMSNorm`",
    "`Embedding`",
    "`MultiheadAttention`",
    "`Dropout`",
    "a class of one's own, by `nn.parametrized`",
]


@pytest.fixture(scope="module")
def cases() -> Any:
    specification = importlib.util.spec_from_file_location("strategy_matrix", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.CASES


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True, recompile_limit=16):
        yield
    torch._dynamo.reset()


class Graphs:
    """A backend that counts the graphs and runs them as they are."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


def supernet_of(space: nn.ModelSpace) -> tuple[nn.ModelSpace, OneHot]:
    relaxation = OneHot(space.simplify().values())
    return make_supernet(space, relaxation).double(), relaxation


def computed(run: Callable[[Tensor], Tensor], space: nn.ModelSpace, x: Tensor) -> list[Tensor | None]:
    """Return the output, the gradients, and the statistics afterwards, which are put back."""
    before = {name: buffer.clone() for name, buffer in space.named_buffers()}
    torch.manual_seed(0)
    space.zero_grad()
    y = run(x)
    y.square().sum().backward()
    buffers = [buffer.clone() for buffer in space.buffers()]
    for name, buffer in space.named_buffers():
        buffer.copy_(before[name])
    return [y.detach(), *(parameter.grad for parameter in space.parameters()), *buffers]


def check(compiled: Any, space: nn.ModelSpace, x: Tensor) -> None:
    for found, expected in zip(computed(compiled, space, x), computed(space, space, x), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_every_primitive_is_one_graph(cases: Any, name: str) -> None:
    space, relaxation = supernet_of(cases[name].space())
    graphs = Graphs()
    compiled = torch.compile(space, fullgraph=True, backend=graphs)
    sampler = FeasibleSampler(space, seed=3)
    for number in range(2):
        relaxation.resample(sampler.sample(number))
        check(compiled, space, cases[name].inputs())
        assert graphs.count <= number + 1


class Widths(nn.ModelSpace):
    """Modules that have a width, a kernel and groups in common."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([4, 6, 8, 10, 12], label="width")
        kernel = width - 3
        self.images = nn.Sequential(
            nn.Conv2d(2, width, 1),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width),
        )
        self.head = nn.Sequential(nn.Linear(width, width * 2), nn.LayerNorm(width * 2), nn.Linear(width * 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.images(x).mean((2, 3)))
        return y


def run_all(space: nn.ModelSpace, relaxation: OneHot, samples: list[Sample], x: Tensor, backend: Any) -> int:
    graphs = Graphs()

    def counted(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.count += 1
        return graph.forward if backend is None else backend(graph, inputs)

    compiled = torch.compile(space, fullgraph=True, backend=counted)
    for sample in samples:
        relaxation.resample(sample)
        check(compiled, space, x)
    return graphs.count


def test_widths_are_symbols() -> None:
    space, relaxation = supernet_of(Widths())
    samples = [{"width": width} for width in (4, 6, 8, 10, 12, 4, 8)]
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    assert run_all(space, relaxation, samples, x, None) <= 2


def test_widths_are_symbols_in_the_backward_pass(cases: Any) -> None:
    space, relaxation = supernet_of(cases["`Linear`"].space())
    samples = [{"width": width} for width in (2, 4, 2)]
    x = cases["`Linear`"].inputs()
    assert run_all(space, relaxation, samples, x, torch._dynamo.lookup_backend("aot_eager")) <= 2


class Layers(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([2, 3, 4], label="width")
        self.first = nn.Linear(3, width)
        self.act = nn.LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, label="act")
        self.body = nn.Repeat(lambda i: nn.Linear(width, width), (0, 1), label="depth")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(self.act(self.first(x))).sum(1)
        return y


def test_every_structure_has_a_graph_for_itself_and_keeps_it() -> None:
    space, relaxation = supernet_of(Layers())
    x = torch.randn(3, 3, dtype=torch.float64)
    samples = list(space.grid())
    assert len(samples) == 3 * 2 * 2
    # Each of the 2 x 2 structures at the first width, and at any width.
    assert run_all(space, relaxation, samples * 2, x, None) <= 2 * 2 * 2


def test_without_the_setting_every_width_has_a_graph() -> None:
    space, relaxation = supernet_of(Layers())
    x = torch.randn(3, 3, dtype=torch.float64)
    samples = [{"width": width, "act": "relu", "depth": 1} for width in (2, 3, 4)]
    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=False):
        assert run_all(space, relaxation, samples, x, None) == 3


def test_a_member_of_a_compiled_supernet_is_a_model_of_its_own() -> None:
    space, relaxation = supernet_of(Layers())
    space.compile(backend="eager", fullgraph=True)
    sample = {"width": 2, "act": "relu", "depth": 1}
    relaxation.resample(sample)
    x = torch.randn(3, 3, dtype=torch.float64)
    expected = space(x)
    member = space.freeze(sample)
    relaxation.resample({"width": 4, "act": "tanh", "depth": 0})
    torch.testing.assert_close(member(x), expected)
    assert not torch.allclose(space(x), expected)
