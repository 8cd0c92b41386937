"""Counts of random members against fvcore; expectations against brute force."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import hwnas.nn as nn
from hwnas.profilers.flops import FlopsProfiler
from hwnas.profilers.macs import FORMULAS
from hwnas.profilers.parameters import NumParamsProfiler
from hwnas.supernet import Softmax


def choice(values: list[Any], label: str, **options: Any) -> nn.ValueChoice:
    return nn.ValueChoice(values, label=label, **options)


class Bottleneck(nn.Module):
    def __init__(self, inside: Any, outside: Any, expand: Any, kernel: Any, stride: int) -> None:
        super().__init__()
        hidden = inside * expand
        self.body = nn.Sequential(
            nn.Conv2d(inside, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, hidden, kernel, stride=stride, padding=kernel // 2, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden), nn.Conv2d(hidden, outside, 1), nn.BatchNorm2d(outside, affine=False),
        )  # fmt: skip
        self.skip = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


class MobileNet(nn.ModelSpace):
    """Expansion, kernel, width and depth; depthwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        first, width = choice([4, 8], "first"), choice([4, 6, 8], "width")
        self.stem = nn.Conv2d(3, first, 3, stride=2, padding=1)

        def block(i: int) -> nn.Module:
            expand, kernel = choice([1, 3], f"e{i}"), choice([3, 5], f"k{i}")
            return Bottleneck(width if i else first, width, expand, kernel, 1 if i else 2)

        self.body = nn.Repeat(block, (1, 2), label="depth")
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.body(self.stem(x).relu())).flatten(1))


class Branches(nn.ModelSpace):
    """Nested choices of layers, widths that add up."""

    def __init__(self) -> None:
        super().__init__()
        a, b = choice([3, 5], "a"), choice([2, 4, 6], "b")
        inner = nn.LayerChoice({"3": nn.Conv2d(3, a, 3, padding=1), "5": nn.Conv2d(3, a, 5, padding=2)}, label="inner")
        self.left = nn.LayerChoice(
            {"plain": nn.Conv2d(3, a, 1), "deep": nn.Sequential(inner, nn.BatchNorm2d(a))}, label="left"
        )
        self.right = nn.Sequential(
            nn.Conv2d(3, b, 3, padding=1, bias=False),
            nn.LayerChoice([nn.ReLU(), nn.BatchNorm2d(b)], label="r"),
        )
        self.join = nn.Conv2d(a + b, a + b, 1, groups=1)
        self.head = nn.Linear(a + b, b)

    def forward(self, x: Tensor) -> Tensor:
        x = self.join(torch.cat([self.left(x), self.right(x)], 1))
        return self.head(x.mean((2, 3)))


class Scaled(nn.ModelSpace):
    """A float multiplier of all widths, tuple kernels, a stride."""

    def __init__(self) -> None:
        super().__init__()
        scale = choice([0.25, 0.5, 0.8, 1.0], "scale")
        width, wide = round(scale * 16), nn.ValueChoice.to_int(scale * 16) * 2
        self.stem = nn.Conv2d(3, width, choice([(1, 3), (3, 1), (3, 3)], "k"), padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.down = nn.Conv2d(width, wide, 3, stride=choice([1, 2], "s"))
        self.out = nn.Conv2d(wide, nn.ValueChoice.max(width, choice([6, 12], "least")), (choice([1, 3], "h"), 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.down(self.norm(self.stem(x))))


X = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize("make", [MobileNet, Branches, Scaled])
def test_random_members_cost_what_fvcore_and_pytorch_count(make: Callable[[], nn.ModelSpace]) -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    space = make()
    flops, parameters = FlopsProfiler(space, X), NumParamsProfiler(space, X)
    assert not flops.uncounted
    found = set()
    for seed in range(50):
        sample = space.random(random_state=seed)
        model = space.freeze(sample).eval()
        assert parameters.profile(sample) == sum(p.numel() for p in model.parameters()), sample
        if len(found) < 17:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                counted = fvcore.FlopCountAnalysis(model, X).unsupported_ops_warnings(False).total()
            assert flops.profile(sample) == counted, sample
            found.add(counted)
    assert len(found) > 5


class Tiny(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        width = choice([2, 3, 5], "w")
        self.stem = nn.Conv2d(1, width, 3)
        self.body = nn.Repeat(
            lambda i: nn.Conv2d(width, width, choice([1, 3], f"k{i}"), padding=choice([1, 3], f"k{i}") // 2),
            (0, 2),
            label="d",
        )
        self.act = nn.LayerChoice([nn.Identity(), nn.BatchNorm2d(width)], label="act")

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(self.stem(x)))


@pytest.fixture(scope="module")
def tiny() -> tuple[Tiny, FlopsProfiler]:
    space = Tiny()
    return space, FlopsProfiler(space, torch.zeros(1, 1, 5, 5))


def macs_by_hand(sample: dict[str, Any]) -> int:
    """9 positions behind the first convolution, which has 9 weights for each filter."""
    w = sample["w"]
    blocks = sum(9 * w * w * sample[f"k{i}"] ** 2 for i in range(sample["d"]))
    return 9 * 9 * w + blocks + (2 * 9 * w if sample["act"] == 1 else 0)


def test_every_member_costs_what_one_counts_by_hand(tiny: tuple[Tiny, FlopsProfiler]) -> None:
    space, profiler = tiny
    costs = [macs_by_hand(sample) for sample in space.grid()]
    assert [profiler.profile(sample) for sample in space.grid()] == costs
    assert profiler.cost_model.minimum().cost == min(costs)
    assert profiler.cost_model.maximum().cost == max(costs)
    assert profiler.unit == "MACs"


def test_expectation_is_brute_force_and_its_gradient_is_right(tiny: tuple[Tiny, FlopsProfiler]) -> None:
    space, profiler = tiny
    relaxation = Softmax(space.simplify().values()).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for alpha in relaxation.parameters():
            alpha.copy_(torch.randn(alpha.shape, dtype=torch.float64))

    def brute() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for sample in space.grid():
            p = torch.ones((), dtype=torch.float64)
            for label, value in sample.items():
                p = p * relaxation.probabilities(label)[relaxation.dimension(label).values.index(value)]
            total = total + p * macs_by_hand(sample)
        return total

    expected = profiler.expectation({label: relaxation.probabilities(label) for label in relaxation.dimensions})
    torch.testing.assert_close(expected, brute())
    gradients = torch.autograd.grad(expected, list(relaxation.parameters()))
    for alpha, gradient in zip(relaxation.parameters(), gradients, strict=True):
        assert (gradient != 0).all()
        for i in range(len(alpha)):
            with torch.no_grad():
                both = []
                for step in (1e-4, -2e-4):
                    alpha[i] += step
                    both.append(brute())
                alpha[i] += 1e-4
            torch.testing.assert_close(gradient[i], (both[0] - both[1]) / 2e-4, rtol=1e-5, atol=1e-6)


def test_the_batch_counts(tiny: tuple[Tiny, FlopsProfiler]) -> None:
    space, profiler = tiny
    larger = FlopsProfiler(space, torch.zeros(4, 1, 5, 5))
    assert larger.profile(space.default()) == 4 * profiler.profile(space.default())


class Dead(nn.ModelSpace):
    def __init__(self, n_chosen: int | None) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(1, 2, k, padding=k // 2) for k in (1, 3, 5)])
        self.pick = nn.InputChoice(3, n_chosen, label="pick")

    def forward(self, x: Tensor) -> Tensor:
        return self.pick([branch(x) for branch in self.branches])


@pytest.mark.parametrize("n_chosen", [1, 2, None])
def test_a_branch_that_is_not_chosen_costs_nothing(n_chosen: int | None) -> None:
    """As in fvcore's graph and in an exported model; its parameters are held all the same."""
    space, x = Dead(n_chosen), torch.zeros(1, 1, 4, 4)
    flops, parameters = FlopsProfiler(space, x), NumParamsProfiler(space, x)
    for sample in space.grid():
        assert flops.profile(sample) == sum(16 * 2 * (1, 9, 25)[i] for i in sample["pick"])
        assert parameters.profile(sample) == sum(p.numel() for p in space.freeze(sample).parameters())
    relaxation = Softmax(space.simplify().values())
    probabilities = {"pick": relaxation.probabilities("pick")}
    values = list(relaxation.dimension("pick").grid_values())
    expected = sum(p * flops.profile({"pick": value}) for p, value in zip(probabilities["pick"], values, strict=True))
    torch.testing.assert_close(flops.expectation(probabilities), expected)


class Fixed(nn.ModelSpace):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.act = nn.LayerChoice([nn.Identity(), nn.Tanh()], label="act")

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        return self.act(y[0] if isinstance(y, tuple) else y)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (lambda: nn.ConvTranspose2d(3, 4, 2, stride=2), (1, 3, 4, 4), 16 * 3 * 4 * 4),
        (lambda: nn.Conv1d(3, 4, 3), (2, 3, 6), 2 * 4 * 4 * 9),
        (lambda: nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 3), 8 * 2 * 8),
        (lambda: nn.GroupNorm(2, 4), (1, 4, 3, 3), 36 * 5),
        (lambda: nn.LayerNorm(4), (2, 4), 8 * 5),
        (lambda: nn.SiLU(), (1, 4), 0),
        (lambda: nn.Softmax(1), (1, 4), 0),
        (lambda: nn.Dropout(), (1, 4), 0),
        (lambda: nn.MaxPool2d(2), (1, 1, 4, 4), 0),
        (lambda: nn.Upsample(scale_factor=2), (1, 2, 3, 3), 2 * 36),
        (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 3, 3), None),
        (lambda: nn.MultiheadAttention(8, 2, batch_first=True), (1, 5, 8), 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8),
        (lambda: nn.LSTM(3, 4, batch_first=True), (2, 6, 3), 2 * 6 * 4 * 4 * (3 + 4)),
        (lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True), (6, 2, 3), 12 * 16 * (2 * (3 + 4) + 2 * (8 + 4))),
        (lambda: nn.GRU(3, 4), (6, 2, 3), 12 * 12 * (3 + 4)),
    ],
)  # fmt: skip
def test_every_kind_of_layer_is_counted(layer: Any, shape: tuple[int, ...], macs: int | None) -> None:
    """No layer needs a formula for its shapes, and none makes the profiler fail."""
    space, x = Fixed(layer()), torch.zeros(shape)
    profiler = FlopsProfiler(space, x)
    assert not profiler.uncounted
    if macs is not None:
        assert profiler.profile({"act": 1}) == macs
    assert NumParamsProfiler(space, x).profile({"act": 0}) == sum(p.numel() for p in space.parameters())


def test_embedding_takes_integers() -> None:
    assert FlopsProfiler(Fixed(nn.Embedding(5, 3)), torch.zeros(2, 4, dtype=torch.int64)).profile({"act": 0}) == 0


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.cholesky_ex(x @ x.mT)[0]


def test_unknown_operators_are_listed_and_warned_about() -> None:
    x = torch.eye(3)[None]
    with pytest.warns(UserWarning, match=r"no count of multiply-adds is known for aten\.linalg_cholesky_ex"):
        profiler = FlopsProfiler(Fixed(Sorted()), x)
    assert dict(profiler.uncounted) == {"aten.linalg_cholesky_ex.default": 1}
    packet = torch.ops.aten.linalg_cholesky_ex
    counted = FlopsProfiler(Fixed(Sorted()), x, formulas={packet: lambda x, *_, output, **__: 1000 * x.shape[-1]})
    assert not counted.uncounted
    assert counted.profile({"act": 0}) == profiler.profile({"act": 0}) + 3000


def test_constraints_are_part_of_the_cost_model() -> None:
    from hwnas.space import ExpressionConstraint

    class Limited(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            a, b = choice([1, 2, 3], "a"), choice([1, 2, 3], "b")
            self.first, self.second = nn.Conv2d(1, a, 1), nn.Conv2d(a, b, 1)
            self.add_mutable(ExpressionConstraint(a + b >= 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    space = Limited()
    profiler = FlopsProfiler(space, torch.zeros(1, 1, 1, 1))
    costs = {profiler.profile(sample) for sample in space.grid()}
    assert profiler.cost_model.minimum().cost == min(costs) == 1 + 3
    assert all(space.contains(sample) for sample in profiler.cost_model.sample_within(None, 5, n=10))


def test_a_constraint_counts_only_where_it_is_active() -> None:
    from hwnas.space import ExpressionConstraint

    class Pair(nn.MutableModule):
        def __init__(self, name: str, least: int) -> None:
            super().__init__()
            a, b = choice([1, 2, 3], f"{name}/a"), choice([1, 2, 3], f"{name}/b")
            self.first, self.second = nn.Conv2d(1, a, 1), nn.Conv2d(a, b, 1)
            self.last = nn.Conv2d(b, 1, 1)
            self.add_mutable(ExpressionConstraint(a + b >= least))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.second(self.first(x)))

    class Limited(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.LayerChoice([Pair("x", 5), nn.Identity(), Pair("y", 6)], label="body")
            self.more = nn.Repeat(lambda index: Pair(f"more{index}", 4), (0, 1), label="depth")

        def forward(self, x: Tensor) -> Tensor:
            return self.more(self.body(x))

    space = Limited()
    model = FlopsProfiler(space, torch.zeros(1, 1, 1, 1)).cost_model
    valid = list(space.grid())
    assert model.count_within().value == len(valid) == space.size()
    assert model.minimum().cost == 0  # neither pair runs
    found = {tuple(sorted(sample.items())) for sample in model.sample_within(None, None, n=2000, seed=0)}
    assert found <= {tuple(sorted(sample.items())) for sample in valid}
    assert {dict(sample)["body"] for sample in found} == {0, 1, 2}


class Function(nn.ModelSpace):
    """A layer of chosen width, and any function of what it gives."""

    def __init__(self, layer: Any, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


def written(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :2] = F.conv2d(x[:, :3], torch.ones(2, 3, 1, 1))
    return out


WIDTH = choice([4, 8], "w")
IMAGE, SEQUENCE, VOLUME = torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 8), torch.zeros(1, 3, 2, 4, 4)

# Multiply-adds behind the layer as a function of its width w; on the right how they come about.
FUNCTIONS: dict[str, tuple[Tensor, Callable[[Tensor], Tensor], Callable[[int], int]]] = {
    "attention": (SEQUENCE, lambda x: F.scaled_dot_product_attention(x, x, x), lambda w: 2 * 2 * 5 * 5 * w),
    "causal": (SEQUENCE, lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), lambda w: 100 * w),
    "einsum": (SEQUENCE, lambda x: torch.einsum("bic,bjc->bij", x, x), lambda w: 2 * 5 * 5 * w),
    "bmm": (SEQUENCE, lambda x: torch.bmm(x, x.transpose(1, 2)), lambda w: 2 * 5 * 5 * w),
    "mv": (SEQUENCE, lambda x: x[0] @ x[0, 0], lambda w: 5 * w),
    "addmv": (SEQUENCE, lambda x: torch.addmv(torch.zeros(5), x[0], x[0, 0]), lambda w: 5 * w),
    "dot": (SEQUENCE, lambda x: torch.dot(x[0, 0], x[0, 0]), lambda w: w),
    "sort": (SEQUENCE, lambda x: x.sort(-1)[0].cumprod(-1).logsumexp(-1).std(-1), lambda w: 0),
    "linear": (SEQUENCE, lambda x: F.interpolate(x, size=9, mode="linear"), lambda w: 2 * 2 * 5 * 9),
    "nearest": (IMAGE, lambda x: F.interpolate(x, scale_factor=2), lambda w: 2 * w * 16 * 16),
    "bilinear": (IMAGE, lambda x: F.interpolate(x, size=(5, 9), mode="bilinear"), lambda w: 4 * 2 * w * 5 * 9),
    "bicubic": (IMAGE, lambda x: F.interpolate(x, size=(5, 9), mode="bicubic"), lambda w: 16 * 2 * w * 5 * 9),
    "trilinear": (VOLUME, lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), lambda w: 8 * w * 4 * 8 * 8),
    "sampled": (
        IMAGE,
        lambda x: F.grid_sample(x, torch.zeros(2, 4, 4, 2), align_corners=False),
        lambda w: 4 * 2 * w * 4 * 4,
    ),
    "unfold": (IMAGE, lambda x: F.fold(F.unfold(x, 3), 8, 3), lambda w: 0),
    "instances": (IMAGE, lambda x: F.instance_norm(x), lambda w: 4 * 2 * w * 8 * 8),
    "written": (IMAGE, written, lambda w: 2 * 2 * 3 * 8 * 8),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functional_calls_are_counted(name: str) -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    x, function, macs = FUNCTIONS[name]
    layers = {3: nn.Linear(8, WIDTH), 4: nn.Conv2d(3, WIDTH, 1), 5: nn.Conv3d(3, WIDTH, 1)}
    space = Function(layers[x.dim()], function)
    profiler = FlopsProfiler(space, x)
    products = {packet: (lambda *_, **__: 0) for packet in FORMULAS if packet not in flop_registry}
    multiplied = FlopsProfiler(space, x, formulas=products)
    assert not profiler.uncounted
    for sample in space.grid():
        model, w = space.freeze(sample).eval(), sample["w"]
        layer = {3: 2 * 5 * 8, 4: 2 * 64 * 3, 5: 32 * 3}[x.dim()] * w
        assert profiler.profile(sample) == layer + macs(w)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x)
        assert 2 * multiplied.profile(sample) == counter.get_total_flops()
        if name == "mv":
            continue  # fvcore cannot
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            analysis = fvcore.FlopCountAnalysis(model, x).unsupported_ops_warnings(False).tracer_warnings("none")
            counted, unknown = analysis.total(), set(analysis.unsupported_ops())
        if not any(word in op for op in unknown for word in ("attention", "upsample", "dot", "addmv")):
            assert profiler.profile(sample) == counted


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: torch.fft.rfft(x).abs(), "_fft_r2c"),
        (lambda x: torch.cdist(x, x), "_cdist_forward"),
        (torch.linalg.svdvals, "_linalg_svd"),
    ],
)
def test_what_has_no_formula_is_named(function: Callable[[Tensor], Tensor], operator: str) -> None:
    with pytest.warns(UserWarning, match=operator):
        FlopsProfiler(Function(nn.Linear(8, WIDTH), function), SEQUENCE)


def test_a_depthwise_convolution_of_chosen_kernel_and_constant_width() -> None:
    kernel = choice([3, 5], "k")
    space = Function(nn.Conv2d(3, 3, kernel, padding=kernel // 2, groups=3), torch.relu)
    profiler = FlopsProfiler(space, IMAGE)
    assert [profiler.profile({"k": k}) for k in (3, 5)] == [2 * 3 * 64 * 9, 2 * 3 * 64 * 25]


def test_recurrent_layers_meet_every_step() -> None:
    for layer, gates in ((torch.nn.LSTM(4, 6, batch_first=True), 4), (torch.nn.GRU(4, 6, batch_first=True), 3)):
        function = Recurrent(layer)
        assert FlopsProfiler(function, SEQUENCE).profile({"w": 4}) == 2 * 5 * 8 * 4 + 2 * 5 * gates * 6 * (4 + 6)


class Recurrent(nn.ModelSpace):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.project, self.layer = nn.Linear(8, choice([4], "w")), layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(self.project(x))[0]
        return y
