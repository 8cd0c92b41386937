"""The differentiable mixture against enumeration and finite differences."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import hwnas.nn as nn
from hwnas.errors import UnsupportedError
from hwnas.space import CategoricalMultiple
from hwnas.supernet import Softmax, make_supernet, supernet_modules


def choice(values: list[Any], label: str, **options: Any) -> nn.ValueChoice:
    return nn.ValueChoice(values, label=label, **options)


class Wrapped(nn.ModelSpace):
    """One module as a space; tuples of inputs are passed on as a list."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.layer = make()
        self.many = isinstance(self.layer, nn.InputChoice)

    def forward(self, *x: Tensor) -> Tensor:
        return self.layer(list(x)) if self.many else self.layer(*x)


def supernet_of(space: nn.ModelSpace, seed: int = 0) -> tuple[nn.ModelSpace, Softmax]:
    torch.manual_seed(seed)
    relaxation = Softmax(space.simplify().values(), seed=seed)
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
    return space, relaxation


def decide(relaxation: Softmax, sample: dict[str, Any]) -> None:
    """Give a sample all the probability."""
    with torch.no_grad():
        for label, value in sample.items():
            values = relaxation.dimension(label).values
            chosen = value if isinstance(value, list) else [value]
            relaxation.alpha(label).copy_(torch.tensor([200.0 if v in chosen else -200.0 for v in values]))


def probabilities(relaxation: Softmax, label: str) -> list[float]:
    return torch.softmax(relaxation.alpha(label).detach(), 0).tolist()


def finite_differences_agree(space: nn.ModelSpace, relaxation: Softmax, *x: Tensor) -> None:
    def loss() -> Tensor:
        y = space(*x)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
        return (y * weights).sum() + y.square().mean()

    state = copy.deepcopy(space.state_dict())
    gradients = torch.autograd.grad(loss(), list(relaxation.parameters()))
    for alpha, gradient in zip(relaxation.parameters(), gradients, strict=True):
        assert gradient.abs().max() > 1e-4
        for i in range(len(alpha)):
            step = torch.zeros_like(alpha)
            step[i] = 1e-5
            with torch.no_grad():
                both = []
                for sign in (1, -1):
                    alpha.add_(step, alpha=sign)
                    both.append(loss())
                    alpha.sub_(step, alpha=sign)
                    space.load_state_dict(state)
            difference = (both[0] - both[1]) / 2e-5
            torch.testing.assert_close(gradient[i], difference, rtol=1e-5, atol=1e-7)


# --- structure ---------------------------------------------------------------------------------------------------


def test_layer_is_the_weighted_sum_of_its_candidates() -> None:
    space, relaxation = supernet_of(Wrapped(lambda: nn.LayerChoice([nn.Tanh(), nn.ReLU(), nn.Linear(3, 3)], label="a")))
    x = torch.randn(2, 3, dtype=torch.float64)
    p = probabilities(relaxation, "a")
    expected = p[0] * x.tanh() + p[1] * x.relu() + p[2] * space.layer[2](x)
    torch.testing.assert_close(space(x), expected)
    finite_differences_agree(space, relaxation, x)


def test_layer_with_structured_outputs() -> None:
    class Both(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> Any:
            return {"a": x * self.factor, "b": (x + self.factor,)}

    space, relaxation = supernet_of(Wrapped(lambda: nn.LayerChoice([Both(1.0), Both(3.0)], label="a")))
    p = probabilities(relaxation, "a")
    y = space(torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(y["a"][0].item(), p[0] + 3 * p[1])
    torch.testing.assert_close(y["b"][0][0].item(), 2 * p[0] + 4 * p[1])


def test_repeat_is_the_expectation_over_depths_zero_included() -> None:
    space, relaxation = supernet_of(
        Wrapped(lambda: nn.Repeat(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), (0, 3), label="d"))
    )
    x = torch.randn(2, 3, dtype=torch.float64)
    outputs, p = [x], probabilities(relaxation, "d")
    for block in space.layer:
        outputs.append(block(outputs[-1]))
    expected = sum(weight * output for weight, output in zip(p, outputs, strict=True))
    torch.testing.assert_close(space(x), expected)
    finite_differences_agree(space, relaxation, x)


def test_repeat_over_an_expression_of_two_labels() -> None:
    depth = choice([0, 1], "a") + choice([0, 2], "b") // 2
    space, relaxation = supernet_of(Wrapped(lambda: nn.Repeat(nn.Tanh(), depth)))
    x = torch.randn(2, 3, dtype=torch.float64)
    pa, pb = probabilities(relaxation, "a"), probabilities(relaxation, "b")
    expected: Any = 0
    for (i, a), (j, b) in itertools.product(enumerate([0, 1]), enumerate([0, 1])):
        y = x
        for _ in range(a + b):
            y = y.tanh()
        expected = expected + pa[i] * pb[j] * y
    torch.testing.assert_close(space(x), expected)
    finite_differences_agree(space, relaxation, x)


@pytest.mark.parametrize("n_chosen", [1, 2, None])
def test_mean_stays_a_mean(n_chosen: int | None) -> None:
    x = [torch.full((2, 2), v, dtype=torch.float64) for v in (1.0, 10.0, 100.0)]
    results = {}
    for reduction in ("sum", "mean"):
        make = lambda: nn.InputChoice(3, n_chosen, reduction, label="in")  # noqa: B023, E731
        space, relaxation = supernet_of(Wrapped(make))
        alpha = relaxation.alpha("in").detach()
        share = torch.sigmoid(alpha) if n_chosen is None else torch.softmax(alpha, 0) * n_chosen
        total = sum(s * y for s, y in zip(share, x, strict=True))
        expected = total if reduction == "sum" else total / share.sum()
        results[reduction] = space(*x)
        torch.testing.assert_close(results[reduction], expected)
        finite_differences_agree(space, relaxation, *x)
    # All inputs equal: their mean is that input, whatever the weights.
    same = [torch.full((2,), 7.0, dtype=torch.float64)] * 3
    torch.testing.assert_close(space(*same), same[0])
    if n_chosen != 1:
        assert not torch.allclose(results["sum"], results["mean"])


def test_a_decided_input_choice_is_the_frozen_one() -> None:
    x = [torch.randn(2, dtype=torch.float64) for _ in range(3)]
    for reduction in ("sum", "mean"):
        make = lambda: nn.InputChoice(3, None, reduction, label="in")  # noqa: B023, E731
        space, relaxation = supernet_of(Wrapped(make))
        for sample in space.grid():
            decide(relaxation, sample)
            torch.testing.assert_close(space(*x), space.freeze(sample)(*x))


# --- operations --------------------------------------------------------------------------------------------------


def padded(y: Tensor, width: int) -> Tensor:
    return F.pad(y, [0, 0, 0, 0, 0, width - y.shape[1]])


def test_conv_is_the_expectation_over_widths_and_kernels() -> None:
    kernel = choice([1, 3, 5], "k")
    space, relaxation = supernet_of(Wrapped(lambda: nn.Conv2d(2, choice([2, 4], "w"), kernel, padding=kernel // 2)))
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    expected: Any = 0
    for (i, w), (j, k) in itertools.product(enumerate([2, 4]), enumerate([1, 3, 5])):
        weight = probabilities(relaxation, "w")[i] * probabilities(relaxation, "k")[j]
        expected = expected + weight * padded(space.freeze({"w": w, "k": k})(x), 4)
    torch.testing.assert_close(space(x), expected)
    finite_differences_agree(space, relaxation, x)


def test_conv_with_tuple_kernels() -> None:
    kernel = choice([(1, 3), (3, 1)], "k")
    space, relaxation = supernet_of(Wrapped(lambda: nn.Conv2d(2, 2, kernel, padding="same")))
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    p = probabilities(relaxation, "k")
    expected = sum(q * space.freeze({"k": k})(x) for q, k in zip(p, [(1, 3), (3, 1)], strict=True))
    torch.testing.assert_close(space(x), expected)


def test_tuple_kernels_with_their_own_paddings() -> None:
    wide = choice([True, False], "wide")
    kernel = nn.ValueChoice.condition(wide, (1, 3), (3, 1))
    padding = nn.ValueChoice.condition(wide, (0, 1), (1, 0))
    space, relaxation = supernet_of(Wrapped(lambda: nn.Conv2d(2, 2, kernel, padding=padding)))
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    p = probabilities(relaxation, "wide")
    expected = sum(q * space.freeze({"wide": k})(x) for q, k in zip(p, [True, False], strict=True))
    torch.testing.assert_close(space(x), expected)


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_is_the_expectation_over_widths(training: bool) -> None:
    space, relaxation = supernet_of(Wrapped(lambda: nn.BatchNorm2d(choice([2, 3, 4], "w"))))
    space.train(training)
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    p = probabilities(relaxation, "w")
    members = [padded(space.freeze({"w": w})(x[:, :w]), 4) for w in (2, 3, 4)]
    torch.testing.assert_close(space(x), sum(q * y for q, y in zip(p, members, strict=True)))
    finite_differences_agree(space, relaxation, x)


def test_linear_is_the_expectation_over_widths() -> None:
    space, relaxation = supernet_of(Wrapped(lambda: nn.Linear(3, choice([2, 5], "w"))))
    x = torch.randn(4, 3, dtype=torch.float64)
    p = probabilities(relaxation, "w")
    members = [F.pad(space.freeze({"w": w})(x), [0, 5 - w]) for w in (2, 5)]
    torch.testing.assert_close(space(x), sum(q * y for q, y in zip(p, members, strict=True)))
    finite_differences_agree(space, relaxation, x)


class Net(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        width, kernel = choice([2, 4], "width"), choice([1, 3], "kernel")
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.act = nn.LayerChoice(
            [nn.ReLU(), nn.Sequential(nn.Tanh(), nn.LayerChoice([nn.ELU(), nn.SiLU()], label="in"))],
            label="act",
        )
        self.body = nn.Repeat(
            lambda i: nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)), (0, 2), label="depth"
        )
        self.join = nn.InputChoice(2, 1, "sum", label="join")
        self.head = nn.Linear(width * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.depthwise(self.norm(self.stem(x))))
        return self.head(self.join([x, self.body(x)]).flatten(1))


@pytest.mark.parametrize("training", [False, True])
def test_a_decided_supernet_is_the_frozen_member(training: bool) -> None:
    space, relaxation = supernet_of(Net())
    space.train(training)
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    state = copy.deepcopy(space.state_dict())
    for sample in space.grid():
        decide(relaxation, sample)
        torch.testing.assert_close(space(x), space.freeze(sample)(x), rtol=1e-6, atol=1e-8)
        space.load_state_dict(state)


# --- evaluation mode ---------------------------------------------------------------------------------------------


class Whole(Net):
    """With choices of several inputs and an expression over two labels."""

    def __init__(self) -> None:
        super().__init__()
        self.two = nn.InputChoice(3, 2, "mean", label="two")
        self.any = nn.InputChoice(3, None, "sum", label="any")
        self.last = nn.Repeat(nn.Tanh(), choice([0, 1], "a") + choice([0, 1], "depth2"))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return self.last(self.any([self.two([x, x * 2, x * 3]), x.sin(), x.cos()]))


def test_evaluation_mode_runs_the_exported_member_alone() -> None:
    space, relaxation = supernet_of(Whole())
    relaxation.eval()
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    ran: list[int] = []
    for i, candidate in enumerate(space.act):
        candidate.register_forward_hook(lambda *_, i=i: ran.append(i))
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for alpha in relaxation.parameters():
                alpha.copy_(torch.randn(alpha.shape, generator=generator, dtype=torch.float64))
        best = {label: relaxation.export(label) for label in relaxation.dimensions}
        ran.clear()
        y = space.eval()(x)
        assert ran == [best["act"]]
        torch.testing.assert_close(y, space.freeze(best)(x), rtol=1e-9, atol=1e-12)
        assert all(relaxation.mixture(mutable).weights is None for mutable in relaxation.dimensions.values())
    relaxation.train()
    ran.clear()
    mixed = space(x)
    assert ran == [0, 1]
    assert mixed.requires_grad


def test_evaluation_mode_runs_the_member_that_was_settled_on() -> None:
    space, relaxation = supernet_of(Whole())
    space.eval()
    relaxation.eval()
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    exported = space(x)
    rng = np.random.default_rng(0)
    for _ in range(20):
        sample = space.random(random_state=rng)
        relaxation.settle(sample)
        torch.testing.assert_close(space(x), space.freeze(sample)(x), rtol=1e-9, atol=1e-12)
    relaxation.settle({"depth": 2})
    best = {label: relaxation.export(label) for label in relaxation.dimensions}
    torch.testing.assert_close(space(x), space.freeze({**best, "depth": 2})(x), rtol=1e-9, atol=1e-12)
    items = [0, 1]
    relaxation.settle({"two": items})
    items.append(2)
    assert relaxation.preferred("two") == [0, 1]
    relaxation.settle({})
    assert torch.equal(space(x), exported)
    assert "_settled" not in str(relaxation.state_dict())
    relaxation.settle(sample)
    relaxation.train()
    assert relaxation.mixture(relaxation.dimension("depth")).weights is not None


def test_only_members_can_be_settled_on() -> None:
    _, relaxation = supernet_of(Net())
    with pytest.raises(ValueError, match="label 'depth'"):
        relaxation.settle({"act": 0, "depth": 9})
    with pytest.raises(KeyError, match="no label 'nope'"):
        relaxation.settle({"nope": 1})
    assert relaxation.preferred("act") == relaxation.export("act")


def test_gradients_of_a_whole_supernet() -> None:
    space, relaxation = supernet_of(Net())
    finite_differences_agree(space, relaxation, torch.randn(3, 2, 3, 3, dtype=torch.float64))


def test_batch_norm_does_not_undo_the_mask_of_a_width() -> None:
    """A mask before a normalisation has no effect; the one behind it has."""

    class ConvNorm(nn.ModelSpace):
        def __init__(self, norm: bool) -> None:
            super().__init__()
            width = choice([2, 4], "w")
            self.conv = nn.Conv2d(2, width, 1)
            self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    x = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    sizes = []
    for norm in (True, False):
        space, relaxation = supernet_of(ConvNorm(norm))
        (gradient,) = torch.autograd.grad(space(x).square().sum(), list(relaxation.parameters()))
        sizes.append(gradient.abs().max())
    assert sizes[0] > 1e-2 * sizes[1]


# --- what has no meaning as a mixture ----------------------------------------------------------------------------

REFUSED = {
    "stride": lambda: nn.Conv2d(4, 4, 3, stride=choice([1, 2], "bad")),
    "dilation": lambda: nn.Conv2d(4, 4, 3, dilation=choice([1, 2], "bad")),
    "bias": lambda: nn.Conv2d(4, 4, 3, bias=choice([True, False], "bad")),
    "free groups": lambda: nn.Conv2d(4, 4, 3, groups=choice([1, 2], "bad")),
    "groups of another size": lambda: nn.Conv2d(choice([4, 8], "bad"), 4, 3, groups=2),
    "filters of a group": lambda: nn.Conv2d(choice([4, 8], "bad"), 8, 3, groups=choice([4, 8], "bad") // 2),
    "uncentred kernels": lambda: nn.Conv2d(4, 4, choice([1, 3], "bad")),
    "uncentred padding": lambda: nn.Conv2d(4, 4, 3, padding=choice([0, 1], "bad")),
    "choice in a tuple": lambda: nn.Conv2d(4, 4, (choice([1, 3], "bad"), 1), padding="same"),
    "eps": lambda: nn.BatchNorm2d(4, eps=choice([1e-5, 1e-3], "bad")),
    "linear bias": lambda: nn.Linear(4, 4, bias=choice([True, False], "bad")),
    "concat": lambda: nn.InputChoice(3, 2, reduction="concat", label="bad"),
    "none": lambda: nn.InputChoice(3, 2, reduction="none", label="bad"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_mixed_is_named(what: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        supernet_of(Wrapped(REFUSED[what]))
    assert "layer" in str(caught.value)
    assert "bad" in str(caught.value)


def test_a_value_read_in_forward_cannot_be_mixed() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.times = choice([1, 2], "bad")

        def forward(self, x: Tensor) -> Tensor:
            return x * self.times()

    space, _ = supernet_of(Wrapped(Reader))
    with pytest.raises(UnsupportedError, match=r"layer\.times.*bad"):
        space(torch.ones(1))


# --- the relaxation ----------------------------------------------------------------------------------------------


def test_weights_become_the_initial_distribution() -> None:
    layer = nn.LayerChoice([nn.ReLU(), nn.Tanh(), nn.ELU()], prior=[0.7, 0.2, 0.1], label="a")
    value = choice([1, 2], "b", weights=[0.9, 0.1])
    free = nn.InputChoice(2, None, weights=[0.25, 0.75], label="c")
    relaxation = Softmax([layer.choice, value, free.choice])
    for label, expected in (("a", [0.7, 0.2, 0.1]), ("b", [0.9, 0.1])):
        torch.testing.assert_close(relaxation.probabilities(label).detach(), torch.tensor(expected), rtol=0, atol=2e-3)
    torch.testing.assert_close(
        relaxation.inclusion(free.choice).detach(), torch.tensor([0.25, 0.75]), rtol=0, atol=2e-3
    )
    found = {str(value): free.choice.probability(value) for value in free.choice.grid_values()}
    torch.testing.assert_close(relaxation.probabilities("c").tolist(), list(found.values()), rtol=0, atol=2e-3)


def test_export_is_the_argmax_and_always_the_same() -> None:
    space, relaxation = supernet_of(Net())
    first: dict[str, Any] = {}
    for module in supernet_modules(space):
        first.update(module.export(first))
    for module in supernet_modules(space):
        for label, value in module.export({}).items():
            assert first[label] == value
    best = {label: max(range(len(a)), key=a.tolist().__getitem__) for label in first for a in [relaxation.alpha(label)]}
    for label, value in first.items():
        values = relaxation.dimension(label).values
        assert value == ([values[best[label]]] if label == "join" else values[best[label]])
    assert space.contains(first)
    assert space.act.export({"act": 0}) == {}
    assert all(module.resample({}) == {} for module in supernet_modules(space))


def test_export_of_several_inputs_is_the_sorted_top() -> None:
    relaxation = Softmax([nn.InputChoice(4, 2, label="in").choice, nn.InputChoice(3, None, label="any").choice])
    with torch.no_grad():
        relaxation.alpha("in").copy_(torch.tensor([0.0, 3.0, 1.0, 2.0]))
        relaxation.alpha("any").copy_(torch.tensor([-1.0, -3.0, -2.0]))
    assert relaxation.export("in") == [1, 3]
    assert relaxation.export("any") == [0]  # never none
    with torch.no_grad():
        relaxation.alpha("any").copy_(torch.tensor([0.1, -0.1, 2.0]))
    assert relaxation.export("any") == [0, 2]  # those more probable than not


def test_export_probs_skips_the_memo() -> None:
    space, _ = supernet_of(Net())
    found = space.act.export_probs({})
    assert list(found) == ["act"]
    assert found["act"].sum().item() == pytest.approx(1)
    assert not found["act"].requires_grad
    assert space.act.export_probs({"act": 1}) == {}


def test_one_parameter_vector_for_each_label() -> None:
    space, relaxation = supernet_of(Net())
    assert len(list(relaxation.parameters())) == len(space.simplify())
    assert not {id(p) for p in relaxation.parameters()} & {id(p) for p in space.parameters()}
    with pytest.raises(KeyError, match="no label 'nope'"):
        relaxation.alpha("nope")


def test_entropy_of_undecided_and_decided() -> None:
    relaxation = Softmax([choice([1, 2, 3, 4], "a")])
    assert relaxation.entropy().item() == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-3)
    decide(relaxation, {"a": 2})
    assert relaxation.entropy().item() == pytest.approx(0, abs=1e-6)


def test_entropy_of_a_free_subset_is_that_of_its_values() -> None:
    relaxation = Softmax([nn.InputChoice(3, None, label="in").choice])
    assert relaxation.entropy().item() == pytest.approx(torch.tensor(7.0).log().item(), abs=1e-3)


def test_probabilities_of_several_items_are_those_of_the_values_of_the_label() -> None:
    free, two = nn.InputChoice(3, None, label="any").choice, nn.InputChoice(4, 2, label="two").choice
    relaxation = Softmax([free, two])
    with torch.no_grad():
        for alpha in relaxation.parameters():
            alpha.copy_(torch.linspace(-1, 2, len(alpha)))
    share = torch.sigmoid(relaxation.alpha("any")).tolist()
    expected = []
    for value in free.grid_values():
        inside = [p if i in value else 1 - p for i, p in enumerate(share)]
        expected.append(inside[0] * inside[1] * inside[2])
    total = sum(expected)  # of all but the empty one
    torch.testing.assert_close(relaxation.probabilities("any").tolist(), [p / total for p in expected])
    found = relaxation.probabilities("two")
    assert len(found) == two.count_values() == 6
    assert list(two.grid_values())[int(found.argmax())] == relaxation.export("two") == [2, 3]
    assert found.requires_grad


def test_the_same_seed_gives_the_same_parameters() -> None:
    first, second, third = (Softmax([choice([1, 2, 3], "a")], seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.alpha("a"), second.alpha("a"))
    assert not torch.equal(first.alpha("a"), third.alpha("a"))


@pytest.mark.parametrize("last", ["linear", "norm"])
def test_the_width_of_a_concatenation_cannot_be_mixed(last: str) -> None:
    class Joined(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            a, b = nn.ValueChoice([2, 4], label="a"), nn.ValueChoice([3, 6], label="b")
            self.left, self.right = nn.Conv2d(1, a, 1), nn.Conv2d(1, b, 1)
            self.last = nn.Linear(a + b, 2) if last == "linear" else nn.BatchNorm2d(a + b)

    space = Joined()
    with pytest.raises(UnsupportedError, match=r"last.*labels a, b.*concatenation"):
        make_supernet(space, Softmax(space.simplify().values()))


def test_an_expression_over_an_input_choice_sees_lists() -> None:
    several = CategoricalMultiple([0, 1, 2], 1, label="inputs")
    relaxation = Softmax([several])
    torch.nn.init.normal_(relaxation.alpha("inputs"))
    mixture = relaxation.mixture(several[0] == 2)
    probability = relaxation.probabilities("inputs")
    assert mixture.values == (False, True)
    torch.testing.assert_close(mixture.weights, torch.stack([probability[:2].sum(), probability[2]]))
