"""Relaxations that draw: every mixed module against the enumeration of its members, draws and their state."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from torch.nn import functional as F

import hwnas.nn as nn
from hwnas.errors import UnsupportedError
from hwnas.supernet import BinaryGates, GumbelSoftmax, SampledSoftmax, make_supernet, supernet_modules

RELAXATIONS: dict[str, Callable[..., SampledSoftmax]] = {
    "soft": functools.partial(GumbelSoftmax, temperature=0.7),
    "hard": functools.partial(GumbelSoftmax, temperature=0.7, hard=True),
    "gates": functools.partial(BinaryGates, paths=None),
    "two paths": functools.partial(BinaryGates, paths=2),
}


@pytest.fixture(params=RELAXATIONS)
def make(request: pytest.FixtureRequest) -> Callable[..., SampledSoftmax]:
    return RELAXATIONS[request.param]


def choice(values: list[Any], label: str) -> nn.ValueChoice:
    return nn.ValueChoice(values, label=label)


class Wrapped(nn.ModelSpace):
    """One module as a space; tuples of inputs are passed on as a list."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.layer = make()
        self.many = isinstance(self.layer, nn.InputChoice)

    def forward(self, *x: Tensor) -> Tensor:
        return self.layer(list(x)) if self.many else self.layer(*x)


def supernet_of(space: nn.ModelSpace, make: Any, seed: int = 0) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    relaxation = make(space.simplify().values(), seed=seed)
    make_supernet(space, relaxation)
    space.double()
    relaxation.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for alpha in relaxation.parameters():
            alpha.copy_(torch.randn(alpha.shape, generator=generator, dtype=torch.float64))
        for tensor in [*space.parameters(), *space.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5)
    relaxation.resample({})
    return space, relaxation


class Net(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        width, kernel = choice([2, 4, 6], "width"), choice([1, 3, 5], "kernel")
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.act = nn.LayerChoice(
            [nn.ReLU(), nn.Conv2d(width, width, 1), nn.Sequential(nn.LayerChoice([nn.ELU(), nn.SiLU()], label="in"))],
            label="act",
        )
        self.body = nn.Repeat(
            lambda i: nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)), (0, 3), label="depth"
        )
        self.join = nn.InputChoice(3, 2, "sum", label="join")
        self.head = nn.Linear(width * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.depthwise(self.norm(self.stem(x))))
        return self.head(self.join([x, self.body(x), x * 2]).flatten(1))


# --- mixtures of every module ------------------------------------------------------------------------------------

KERNEL = choice([1, 3, 5], "k")
MODULES: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.LayerChoice([nn.Tanh(), nn.Identity(), nn.Conv2d(4, 4, 1), nn.ReLU()], label="a"),
    "repeat": lambda: nn.Repeat(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh()), (0, 3), label="d"),
    "repeat of two labels": lambda: nn.Repeat(nn.Tanh(), choice([0, 1, 2], "a") + choice([0, 2, 4], "b") // 2),
    "one input": lambda: nn.InputChoice(3, 1, "sum", label="in"),
    "two inputs": lambda: nn.InputChoice(4, 2, "sum", label="in"),
    "mean of two": lambda: nn.InputChoice(4, 2, "mean", label="in"),
    "any inputs": lambda: nn.InputChoice(3, None, "sum", label="in"),
    "conv": lambda: nn.Conv2d(4, choice([2, 4, 6], "w"), KERNEL, padding=KERNEL // 2),
    "conv with a kernel of a condition": lambda: nn.Conv2d(
        4, 2, nn.ValueChoice.condition(choice([1, 2, 3], "k") == 3, 3, 1), padding="same"
    ),
    "norm": lambda: nn.BatchNorm2d(nn.ValueChoice.condition(choice([1, 2, 3], "w") == 3, 4, 2)),
    "linear": lambda: nn.Linear(5, choice([2, 3, 5], "w")),
    "conv of one dimension": lambda: nn.Conv1d(4, choice([2, 4, 6], "w"), KERNEL, padding=KERNEL // 2),
    "transposed conv": lambda: nn.ConvTranspose2d(4, choice([2, 4, 6], "w"), 3),
    "groups of a norm": lambda: nn.GroupNorm(choice([1, 2, 4], "g"), 4),
    "layer norm": lambda: nn.LayerNorm(5, eps=choice([1e-5, 1e-2, 1.0], "e")),
    "rms norm": lambda: nn.RMSNorm(5, eps=choice([1e-5, 1e-2, 1.0], "e")),
    "embedding": lambda: nn.Embedding(7, choice([2, 3, 5], "w")),
}
SIZES = {
    "linear": (3, 5),
    "layer norm": (3, 5),
    "rms norm": (3, 5),
    "conv of one dimension": (3, 4, 6),
    "embedding": (3, 2),
}


def members(space: nn.ModelSpace, x: tuple[Tensor, ...], shape: torch.Size) -> list[tuple[dict[str, Any], Tensor]]:
    """Outputs of all members, channels beyond their width zero."""
    found = []
    for sample in space.grid():
        member = space.freeze(sample)
        y = member(*(part[:, : getattr(member.layer, "num_features", None)] for part in x))
        padding = [n for a, b in zip(reversed(shape), reversed(y.shape), strict=True) for n in (0, a - b)]
        found.append((sample, F.pad(y, padding)))
    return found


def forward_and_surrogate(relaxation: SampledSoftmax, label: str) -> tuple[Tensor, Tensor, float]:
    """Weights of the values in the forward pass, those whose gradient is taken, and the temperature."""
    logits = relaxation.logits(label).detach()
    if isinstance(relaxation, GumbelSoftmax):
        tau = relaxation.temperature
        soft = torch.softmax((logits + relaxation._noise[label]) / tau, 0)
        return (F.one_hot(soft.argmax(), len(soft)).to(soft) if relaxation.hard else soft), soft, tau
    assert isinstance(relaxation, BinaryGates)
    draw = relaxation._draws[label]
    if relaxation.paths == 2 and relaxation.dimension(label).kind != "categorical_multiple":
        shares = torch.zeros_like(logits)
        shares[list(draw.pair)] = torch.softmax(logits[list(draw.pair)], 0)
        return F.one_hot(torch.tensor(draw.open), len(logits)).to(logits), shares, 1.0
    return F.one_hot(torch.tensor(draw.position), len(logits)).to(logits), torch.softmax(logits, 0), 1.0


@pytest.mark.parametrize("name", MODULES)
def test_outputs_and_gradients_are_those_of_the_enumeration(name: str, make: Any) -> None:
    space, relaxation = supernet_of(Wrapped(MODULES[name]), make)
    generator = torch.Generator().manual_seed(3)
    count = space.layer.n_candidates if space.many else 1
    size = SIZES.get(name, (3, 4, 6, 6))
    x = tuple(torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(count))
    if name == "embedding":
        x = (torch.randint(7, size, generator=generator),)
    for _ in range(2):
        relaxation.resample({})
        y = space(*x)
        seed = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
        found = torch.autograd.grad((y * seed).sum() + y.square().mean(), list(relaxation.parameters()))

        # The truth: the sum over all members, weighted by the product of the weights of their values.
        used = {label: forward_and_surrogate(relaxation, label) for label in relaxation.dimensions}
        weights = {label: forward.clone().requires_grad_() for label, (forward, _, _) in used.items()}
        for forward, _, _ in used.values():
            assert forward.sum().item() == pytest.approx(1)
        total: Any = 0
        for sample, output in members(space, x, y.shape):
            factors = [
                w[list(relaxation.dimension(label).grid_values()).index(sample[label])] for label, w in weights.items()
            ]
            total = total + math.prod(factors) * output
        torch.testing.assert_close(y, total, rtol=1e-9, atol=1e-9)
        loss = (total * seed).sum() + total.square().mean()
        of_weights = torch.autograd.grad(loss, list(weights.values()))
        for (label, (_, s, tau)), dw, gradient in zip(used.items(), of_weights, found, strict=True):
            of_logits = s * (dw - (dw * s).sum()) / tau
            mutable = relaxation.dimension(label)
            if mutable.kind == "categorical_multiple":
                inside = [[float(i in value) for i in mutable.values] for value in mutable.grid_values()]
                of_logits = torch.tensor(inside, dtype=torch.float64).T @ of_logits
            torch.testing.assert_close(gradient, of_logits, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_drawn_runs_as_the_frozen_member(make: Any, training: bool) -> None:
    """In the step of the weights (but for soft samples), and in validation."""
    space, relaxation = supernet_of(Net(), make)
    space.train(training)
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    state = copy.deepcopy(space.state_dict())
    relaxation.requires_grad_(False)
    if not (isinstance(relaxation, GumbelSoftmax) and not relaxation.hard):
        for _ in range(10):
            sample = relaxation.resample({})
            torch.testing.assert_close(space(x), space.freeze(sample)(x), rtol=1e-6, atol=1e-8)
            space.load_state_dict(state)
    relaxation.eval()
    best = {label: relaxation.export(label) for label in relaxation.dimensions}
    for _ in range(2):
        relaxation.resample({})
        torch.testing.assert_close(space(x), space.freeze(best)(x), rtol=1e-6, atol=1e-8)
        space.load_state_dict(state)


def test_validation_runs_the_member_that_was_settled_on(make: Any) -> None:
    space, relaxation = supernet_of(Net(), make)
    space.eval()
    relaxation.eval()
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    rng = np.random.default_rng(0)
    for _ in range(5):
        sample = space.random(random_state=rng)
        relaxation.settle(sample)
        torch.testing.assert_close(space(x), space.freeze(sample)(x), rtol=1e-6, atol=1e-8)
    relaxation.settle({})
    best = {label: relaxation.export(label) for label in relaxation.dimensions}
    torch.testing.assert_close(space(x), space.freeze(best)(x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["hard", "gates", "two paths"])
def test_the_architecture_step_runs_one_member_forward(kind: str) -> None:
    space, relaxation = supernet_of(Net(), RELAXATIONS[kind])
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    state = copy.deepcopy(space.state_dict())
    for _ in range(5):
        relaxation.resample({})
        sample = {}
        for label, mutable in relaxation.dimensions.items():
            forward, _, _ = forward_and_surrogate(relaxation, label)
            assert sorted(set(forward.tolist())) == [0.0, 1.0]
            sample[label] = list(mutable.grid_values())[int(forward.argmax())]
        torch.testing.assert_close(space(x), space.freeze(sample)(x), rtol=1e-6, atol=1e-8)
        space.load_state_dict(state)


def test_no_gradient_in_the_step_of_the_weights_or_without_gradients(make: Any) -> None:
    space, relaxation = supernet_of(Net(), make)
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    relaxation.requires_grad_(False)
    space(x).sum().backward()
    assert all(alpha.grad is None for alpha in relaxation.parameters())
    relaxation.requires_grad_(True)
    with torch.no_grad():
        assert not space(x).requires_grad
        soft = isinstance(relaxation, GumbelSoftmax) and not relaxation.hard
        for mutable in relaxation.dimensions.values():
            assert soft or relaxation.active(mutable.label).weights is None  # one member runs


@pytest.mark.parametrize("kind", ["hard", "gates", "two paths"])
def test_candidates_that_were_not_drawn_have_no_weight_gradient(kind: str) -> None:
    space, relaxation = supernet_of(
        Wrapped(lambda: nn.LayerChoice([nn.Linear(3, 3) for _ in range(4)], label="a")), RELAXATIONS[kind]
    )
    relaxation.requires_grad_(False)
    seen = set()
    for _ in range(20):
        drawn = relaxation.resample({})["a"]
        seen.add(drawn)
        space.zero_grad()
        space(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
        for i, candidate in enumerate(space.layer):
            assert (candidate.weight.grad is None) == (i != drawn)
    assert len(seen) > 1


# --- draws -------------------------------------------------------------------------------------------------------


def chi_square(counts: dict[Any, int], expected: dict[Any, float]) -> None:
    total = sum(counts.values())
    statistic = sum((counts.get(k, 0) - total * p) ** 2 / (total * p) for k, p in expected.items())
    assert set(counts) <= set(expected)
    assert statistic < chi2.ppf(0.999, len(expected) - 1)


@pytest.mark.parametrize("n_chosen", [0, 1, 2, None])
def test_frequencies_of_draws_match_the_probabilities(make: Any, n_chosen: int | None) -> None:
    mutable = choice([1, 2, 3, 4], "a") if n_chosen == 0 else nn.InputChoice(4, n_chosen, label="a").choice
    relaxation = make([mutable], seed=5)
    with torch.no_grad():
        relaxation.alpha("a").copy_(torch.tensor([0.0, 1.0, -0.5, 0.3]))
    counts: dict[str, int] = {}
    for _ in range(2000):
        value = str(relaxation.resample({})["a"])
        counts[value] = counts.get(value, 0) + 1
    p = relaxation.probabilities("a").tolist()
    chi_square(counts, dict(zip(map(str, mutable.grid_values()), p, strict=True)))


def test_probabilities_are_the_softmax_of_the_logits_and_free_of_noise(make: Any) -> None:
    relaxation = make([choice([1, 2, 3], "a"), nn.InputChoice(4, 2, label="two").choice])
    before = {label: relaxation.probabilities(label) for label in ("a", "two")}
    relaxation.resample({})
    for label, p in before.items():
        assert torch.equal(p, relaxation.probabilities(label))
        torch.testing.assert_close(p, torch.softmax(relaxation.logits(label), 0))
        assert p.requires_grad


def test_weights_of_several_items_sum_to_their_number(make: Any) -> None:
    two, free = nn.InputChoice(4, 2, label="two").choice, nn.InputChoice(3, None, label="any").choice
    relaxation = make([two, free])
    for _ in range(20):
        relaxation.resample({})
        assert relaxation.subset(two).weights.sum().item() == pytest.approx(2, rel=1e-5)
        assert relaxation.subset(free).weights.sum().item() >= 1 - 1e-5  # never none


def test_modules_with_one_label_agree_and_draws_last_until_the_next(make: Any) -> None:
    class Twice(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.LayerChoice([nn.Identity(), nn.Tanh(), nn.ReLU()], label="a")
            self.two = nn.LayerChoice([nn.Identity(), nn.Tanh(), nn.ReLU()], label="a")

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(x), self.two(x)

    space, relaxation = supernet_of(Twice(), make)
    x = torch.randn(5, dtype=torch.float64)
    results = set()
    for _ in range(10):
        relaxation.resample({})
        one, two = space(x)
        assert torch.equal(one, two)
        assert torch.equal(space(x)[0], one)
        results.add(tuple(one.tolist()))
    assert len(results) > 1


def mixtures(relaxation: SampledSoftmax, n: int) -> list[Any]:
    found = []
    for _ in range(n):
        drawn = relaxation.resample({})
        found.append((drawn, [relaxation.mixture(m).weights.tolist() for m in relaxation.dimensions.values()]))
    return found


def test_draws_are_seeded_and_the_program_s_own_random_state_is_left_alone(make: Any) -> None:
    dimensions = [choice([1, 2, 3], "a"), choice([1, 2, 3, 4], "b")]
    state = torch.random.get_rng_state()
    first = mixtures(make(dimensions, seed=1), 10)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(3)
    assert mixtures(make(dimensions, seed=1), 10) == first
    assert mixtures(make(dimensions, seed=2), 10) != first


def test_a_state_goes_on_with_the_draws(make: Any) -> None:
    dimensions = [choice([1, 2, 3], "a"), choice([1, 2, 3, 4], "b")]
    whole, resumed = make(dimensions, seed=1), make(dimensions, seed=9)
    mixtures(whole, 3)
    resumed.load_state_dict(whole.state_dict())
    assert mixtures(resumed, 5) == mixtures(whole, 5)


def test_a_memo_is_honoured_and_only_the_rest_is_returned(make: Any) -> None:
    dimensions = [choice([1, 2, 3], "a"), choice([1, 2, 3, 4], "b"), nn.InputChoice(4, 2, label="c").choice]
    relaxation = make(dimensions)
    for value, items in ((1, [0, 1]), (3, [1, 3])):
        drawn = relaxation.resample({"a": value, "c": items, "elsewhere": 1})
        assert list(drawn) == ["b"]
        a = relaxation.mixture(dimensions[0])
        assert a.values[int(a.weights.argmax())] == value
        relaxation.requires_grad_(False)
        if not (isinstance(relaxation, GumbelSoftmax) and not relaxation.hard):
            assert relaxation.value(dimensions[0]) == value
            assert relaxation.subset(dimensions[2]).values == (items,)
        relaxation.requires_grad_(True)
    with pytest.raises(ValueError, match="label 'a'"):
        relaxation.resample({"a": 7})


def test_modules_resample_with_a_growing_memo(make: Any) -> None:
    space, relaxation = supernet_of(Net(), make)
    memo: dict[str, Any] = {}
    for module in supernet_modules(space):
        memo.update(module.resample(memo, np.random.default_rng(4)))
    assert space.contains(memo)
    forward = {label: relaxation.active(label) for label in memo}
    assert all(active.weights is not None for active in forward.values())
    again: dict[str, Any] = {}
    for module in supernet_modules(space):
        again.update(module.resample(again, np.random.default_rng(4)))
    assert again == memo


def test_what_is_drawn_shares_no_list(make: Any) -> None:
    relaxation = make([nn.InputChoice(3, 2, label="in").choice])
    relaxation.resample({})["in"].append(7)
    relaxation.subset(relaxation.dimension("in"))
    values = [relaxation.resample({})["in"] for _ in range(30)]
    assert all(len(value) == 2 for value in values)


def test_export_is_the_argmax_whatever_was_drawn(make: Any) -> None:
    relaxation = make([choice([1, 2, 3], "a"), nn.InputChoice(4, 2, label="two").choice])
    with torch.no_grad():
        relaxation.alpha("a").copy_(torch.tensor([0.1, 0.3, 0.2]))
        relaxation.alpha("two").copy_(torch.tensor([0.1, 0.3, 0.2, 0.4]))
    for _ in range(20):
        relaxation.resample({})
        assert relaxation.export("a") == 2
        assert relaxation.export("two") == [1, 3]


def test_expressions_over_a_choice_of_several_see_its_lists(make: Any) -> None:
    inputs = nn.InputChoice(3, 2, label="in").choice
    relaxation = make([inputs])
    first = inputs[0]
    for _ in range(10):
        drawn = relaxation.resample({})["in"]
        mixture = relaxation.mixture(first)
        assert set(mixture.values) <= {0, 1}
        assert mixture.values[int(mixture.weights.argmax())] == drawn[0] or isinstance(relaxation, GumbelSoftmax)
        assert mixture.weights.sum().item() == pytest.approx(1)


def test_a_single_value_has_no_weight(make: Any) -> None:
    only = choice([3], "a")
    relaxation = make([only])
    assert relaxation.value(only) == 3
    assert relaxation.mixture(only).weights is None


def test_too_many_subsets_are_refused_by_name(make: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"label 'in'.*32767"):
        make([nn.InputChoice(15, None, label="in").choice])


def test_copies_draw_for_themselves(make: Any) -> None:
    relaxation = make([choice([1, 2, 3], "a")])
    twin = copy.deepcopy(relaxation)
    assert mixtures(twin, 4) == mixtures(relaxation, 4)
