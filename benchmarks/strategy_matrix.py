"""Which strategy with shared weights searches which primitive.

The cases are those of tests/integration/test_strategy_matrix.py, which checks what docs/strategies/matrix.md says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import UnsupportedError
from hwnas.strategies import DARTS, ENAS, GumbelDARTS, OneShotStrategy, Proxyless, RandomOneShot

STRATEGIES: dict[str, Callable[[], OneShotStrategy]] = {
    "DARTS": DARTS,
    "DARTS, candidates as they are": lambda: DARTS(normalise_candidates=False),
    "GumbelDARTS": GumbelDARTS,
    "GumbelDARTS, hard": lambda: GumbelDARTS(hard=True),
    "Proxyless": Proxyless,
    "Proxyless, all paths": lambda: Proxyless(paths=None),
    "RandomOneShot": RandomOneShot,
    "ENAS": ENAS,
}


class Case(NamedTuple):
    """A tiny space with a primitive in it, and the shape of its input."""

    space: Callable[[], nn.ModelSpace]
    shape: tuple[int, ...] = (3, 4)
    integers: bool = False

    def inputs(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        if self.integers:
            return torch.randint(0, 5, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64)


# --- spaces ---------------------------------------------------------------------------------------------------------


class Chain(nn.ModelSpace):
    """Layers one after the other; of what a layer returns the first part goes on."""

    def __init__(self, make: Callable[[], Sequence[Any]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make())

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


class Inputs(nn.ModelSpace):
    def __init__(self, n_chosen: int | None, reduction: Any) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))
        self.choice = nn.InputChoice(3, n_chosen, reduction, label="inputs")

    def forward(self, x: Tensor) -> Tensor:
        y = self.choice([part(x) for part in self.parts])
        total: Tensor = (torch.cat(y, 1) if isinstance(y, list) else y).sum(1)
        return total


class InForward(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.power = nn.ValueChoice([1, 2], label="power")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) ** self.power()
        return y


class ModelParameter(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        width = nn.ModelParameterChoice([2, 4], label="width")
        self.layers = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class Attention(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        heads = nn.ValueChoice([1, 2], label="heads")
        self.embed, self.head = nn.Linear(4, width()), nn.Linear(width(), 2)
        self.attention = nn.MultiheadAttention(width(), heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        z: Tensor = self.head(self.attention(y, y, y, need_weights=False)[0])
        return z


class Scale(torch.nn.Module):
    """A class of a user: it has a parameter of its own, and layers of plain PyTorch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.norm = torch.nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x) * self.scale
        return y


def filled() -> nn.ModelSpace:
    space = Chain(lambda: [nn.Linear(4, width()), nn.Placeholder("activation"), nn.Linear(width(), 2)])
    space.layers[1] = nn.Tanh()
    return space


def width(*values: int) -> nn.ValueChoice:
    return nn.ValueChoice(values or (2, 4), label="width")


def chain(*make: Callable[[], Any]) -> Callable[[], nn.ModelSpace]:
    return lambda: Chain(lambda: [made() for made in make])


def between(first: Callable[[], Any], *make: Callable[[], Any], last: Callable[[], Any]) -> Callable[[], nn.ModelSpace]:
    return chain(first, *make, last)


def convolutions(rank: int, kind: str = "Conv") -> Callable[[], nn.ModelSpace]:
    """Return a chain of convolutions with a choice of widths and of kernels."""
    layer = getattr(nn, f"{kind}{rank}d")
    kernel = nn.ValueChoice([1, 3], label="kernel")
    return chain(
        lambda: layer(2, width(), kernel, padding=kernel // 2),
        nn.Tanh,
        lambda: layer(width(), 2, 1),
    )


def batch_norm(rank: int) -> Callable[[], nn.ModelSpace]:
    conv, norm = getattr(nn, f"Conv{rank}d"), getattr(nn, f"BatchNorm{rank}d")
    return chain(lambda: conv(2, width(), 1), lambda: norm(width()), nn.ReLU, lambda: conv(width(), 2, 1))


def on_features(*make: Callable[[], Any]) -> Callable[[], nn.ModelSpace]:
    """Return a chain of layers between two linear ones of a chosen width."""
    return chain(lambda: nn.Linear(4, width()), *make, lambda: nn.Linear(width(), 2))


def cell(merge_op: Any, made: bool) -> Callable[[], nn.ModelSpace]:
    def layers() -> list[Any]:
        candidates: Any = [nn.Linear(4, 4), nn.Tanh()]
        if made:
            candidates = [lambda node, op, source: nn.Linear(4, 4), lambda node, op, source: nn.Tanh()]
        graph = nn.Cell(candidates, 3, merge_op=merge_op, label="cell")
        return [graph, nn.Linear(4 * graph.num_output_nodes, 2)]

    return lambda: Chain(layers)


def nas_bench_101() -> nn.NasBench101Cell:
    candidates = {"linear": lambda n: nn.Sequential(nn.Linear(n, n), nn.BatchNorm1d(n)), "tanh": lambda n: nn.Tanh()}
    return nn.NasBench101Cell(candidates, 4, 5, nn.Linear, max_num_nodes=5, max_num_edges=6, label="cell")


def nas_bench_201() -> nn.NasBench201Cell:
    candidates = {"linear": nn.Linear, "tanh": lambda n, m: nn.Sequential(nn.Linear(n, m), nn.Tanh())}
    return nn.NasBench201Cell(candidates, 4, 3, num_tensors=3, label="cell")


def layer_choice() -> nn.LayerChoice:
    inner = nn.LayerChoice({"sigmoid": nn.Sigmoid(), "tanh": nn.Tanh()}, label="inner")
    return nn.LayerChoice({"linear": nn.Linear(4, 4), "act": inner}, label="layer")


def convolution_or_pooling() -> nn.LayerChoice:
    return nn.LayerChoice([nn.Conv1d(2, 2, 3, padding=1), nn.AvgPool1d(3, 1, 1), nn.Identity()], label="layer")


CASES: dict[str, Case] = {
    "`LayerChoice` of convolution, pooling and skip": Case(
        chain(convolution_or_pooling, nn.ReLU, lambda: nn.Conv1d(2, 2, 1)), (2, 2, 5)
    ),
    "`LayerChoice`, one inside another": Case(chain(layer_choice, lambda: nn.Linear(4, 2))),
    **{
        f"`InputChoice`, {n or 'any number'} of 3, {reduction}": Case(
            lambda n=n, reduction=reduction: Inputs(n, reduction)  # type: ignore[misc]
        )
        for reduction in ("sum", "mean", "concat", "none")
        for n in (1, 2, None)
    },
    "`Repeat`, from depth 0": Case(
        chain(lambda: nn.Repeat(lambda i: nn.Linear(4, 4), (0, 2), label="depth"), lambda: nn.Linear(4, 2))
    ),
    "`Repeat` of one `LayerChoice`": Case(
        chain(lambda: nn.Repeat(layer_choice(), (1, 3), label="depth"), lambda: nn.Linear(4, 2))
    ),
    "`Cell`, all nodes": Case(cell("all", made=False)),
    "`Cell`, loose ends": Case(cell("loose_end", made=False)),
    "`Cell` of factories, all nodes": Case(cell("all", made=True)),
    "`Cell` of factories, loose ends": Case(cell("loose_end", made=True)),
    "`NasBench101Cell`": Case(chain(nas_bench_101)),
    "`NasBench201Cell`": Case(chain(nas_bench_201)),
    "`AutoActivation`": Case(
        chain(
            lambda: nn.Linear(4, 4),
            lambda: nn.AutoActivation(2, "act", unary_candidates=["scale", "tanh"], binary_candidates=["add", "blend"]),
            lambda: nn.Linear(4, 2),
        )
    ),
    "`ValueChoice` called in `forward`": Case(InForward),
    "`ModelParameterChoice`": Case(ModelParameter),
    "`Placeholder`, filled": Case(filled),
    "`Linear`": Case(on_features(nn.Tanh)),
    **{f"`Conv{rank}d`": Case(convolutions(rank), (2, 2, *[4] * rank)) for rank in (1, 2, 3)},
    "`Conv2d`, depthwise": Case(
        chain(
            lambda: nn.Conv2d(2, width(), 1),
            lambda: nn.Conv2d(width(), width(), 3, padding=1, groups=width()),
            lambda: nn.Conv2d(width(), 2, 1),
        ),
        (2, 2, 4, 4),
    ),
    "`Conv2d`, a choice of strides": Case(
        chain(lambda: nn.Conv2d(2, 2, 3, nn.ValueChoice([1, 2], label="stride"))), (2, 2, 5, 5)
    ),
    **{f"`ConvTranspose{rank}d`": Case(convolutions(rank, "ConvTranspose"), (2, 2, *[4] * rank)) for rank in (1, 2, 3)},
    **{f"`BatchNorm{rank}d`": Case(batch_norm(rank), (3, 2, *[3] * rank)) for rank in (1, 2, 3)},
    "`LayerNorm`": Case(on_features(lambda: nn.LayerNorm(width()))),
    "`GroupNorm`": Case(on_features(lambda: nn.GroupNorm(nn.ValueChoice([1, 2], label="groups"), width()))),
    "`RMSNorm`": Case(on_features(lambda: nn.RMSNorm(width()))),
    "`Embedding`": Case(chain(lambda: nn.Embedding(5, width()), lambda: nn.Linear(width(), 2)), integers=True),
    "`MultiheadAttention`": Case(Attention, (2, 3, 4)),
    "`Dropout`": Case(
        chain(lambda: nn.Linear(4, 4), lambda: nn.Dropout(nn.ValueChoice([0.2, 0.5], label="rate"))), (3, 4)
    ),
    "a class of one's own, by `nn.parametrized`": Case(on_features(lambda: nn.parametrized(Scale)(width()))),
    "`PReLU`": Case(on_features(lambda: nn.PReLU(width()))),
    "`AvgPool2d`": Case(
        chain(lambda: nn.Conv2d(2, 2, 1), lambda: nn.AvgPool2d(nn.ValueChoice([1, 2], label="window"))), (2, 2, 4, 4)
    ),
    "`LSTM`": Case(chain(lambda: nn.LSTM(4, width(), batch_first=True), lambda: nn.Linear(width(), 2)), (2, 3, 4)),
}


# --- the page -------------------------------------------------------------------------------------------------------


def refusal(case: Case, strategy: OneShotStrategy) -> str | None:
    """Return with what words a strategy refuses a case; None when it searches it."""
    try:
        space = strategy.mutate_model(case.space()).double()
        strategy.relaxation.double()
        space(case.inputs()).sum().backward()
    except UnsupportedError as error:
        return str(error)
    return None


def table() -> str:
    """Return the table in Markdown, with the notes below."""
    rows = [f"| primitive | {' | '.join(STRATEGIES)} |", "|---" * (len(STRATEGIES) + 1) + "|"]
    notes: list[str] = []
    for name, case in CASES.items():
        cells = []
        for make in STRATEGIES.values():
            reason = refusal(case, make())
            if reason is not None and reason not in notes:
                notes.append(reason)
            cells.append("yes" if reason is None else f"no ({notes.index(reason) + 1})")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", *(f"{i}. {note}." for i, note in enumerate(notes, 1))]) + "\n"
