from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.nn.activation_units import BINARY, EPSILON, UNARY, ActivationUnit
from hwnas.supernet import OneHot, Softmax, make_supernet

BETA = 0.7
X = np.concatenate([np.linspace(-3, 3, 41), [1e-4, -1e-4]])  # zero among them
Y = np.concatenate([np.linspace(2.5, -1.5, 41), [0.3, 0.4]])

sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731

UNARY_FORMULAS: dict[str, Callable[..., Any]] = {
    "identity": lambda x: x,
    "negative": lambda x: -x,
    "abs": np.abs,
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "sqrt": lambda x: np.sqrt(np.maximum(x, 0.001)),
    "scale": lambda x: BETA * x,
    "shift": lambda x: x + BETA,
    "log_abs": lambda x: np.log(np.abs(x) + 0.001),
    "exp": np.exp,
    "sin": np.sin,
    "cos": np.cos,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "sinc": lambda x: np.where(x == 0, 1.0, np.sin(x) / np.where(x == 0, 1.0, x)),
    "relu": lambda x: np.maximum(x, 0),
    "negative_part": lambda x: np.minimum(x, 0),
    "sigmoid": sigmoid,
    "softplus": lambda x: np.log(1 + np.exp(x)),
    "gaussian": lambda x: np.exp(-(x**2)),
    "erf": np.vectorize(math.erf),
    "constant": lambda x: np.full_like(x, BETA),
}
BINARY_FORMULAS: dict[str, Callable[..., Any]] = {
    "gate": lambda x, y: sigmoid(x) * y,
    "add": lambda x, y: x + y,
    "multiply": lambda x, y: x * y,
    "subtract": lambda x, y: x - y,
    "divide": lambda x, y: x / (y + 0.001),
    "maximum": np.maximum,
    "minimum": np.minimum,
    "gaussian_distance": lambda x, y: np.exp(-BETA * (x - y) ** 2),
    "laplace_distance": lambda x, y: np.exp(-BETA * np.abs(x - y)),
    "blend": lambda x, y: BETA * x + (1 - BETA) * y,
}
WITH_BETA = {"scale": 1, "shift": 0, "constant": 1, "gaussian_distance": 1, "laplace_distance": 1, "blend": 0.5}


def unit_of(name: str) -> ActivationUnit:
    unit = ActivationUnit(name).double()
    if unit.beta is not None:
        torch.nn.init.constant_(unit.beta, BETA)
    return unit


def test_all_functions_of_the_paper_are_there() -> None:
    assert UNARY.keys() == UNARY_FORMULAS.keys()
    assert BINARY.keys() == BINARY_FORMULAS.keys()
    assert (len(UNARY), len(BINARY)) == (25, 10)


@pytest.mark.parametrize("name", UNARY_FORMULAS)
def test_unary_functions_are_their_formulas(name: str) -> None:
    found = unit_of(name)(torch.tensor(X)).detach()
    np.testing.assert_allclose(found, UNARY_FORMULAS[name](X), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", BINARY_FORMULAS)
def test_binary_functions_are_their_formulas(name: str) -> None:
    found = unit_of(name)(torch.tensor(X), torch.tensor(Y)).detach()
    np.testing.assert_allclose(found, BINARY_FORMULAS[name](X, Y), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_gradients_are_those_of_the_formulas(name: str) -> None:
    points = torch.tensor([-2.1, -0.4, 0.3, 1.7], dtype=torch.float64, requires_grad=True)
    others = torch.tensor([0.9, 1.2, -0.8, 0.5], dtype=torch.float64, requires_grad=True)
    unit = unit_of(name)
    inputs = (points,) if name in UNARY else (points, others)
    if unit.beta is None:
        assert torch.autograd.gradcheck(unit, inputs)
        return

    def with_beta(beta: Tensor, *inputs: Tensor) -> Tensor:
        return torch.func.functional_call(unit, {"beta": beta}, inputs)

    beta = torch.tensor(BETA, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(with_beta, (beta, *inputs))


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_values_and_gradients_at_zero_are_finite(name: str) -> None:
    inputs = [torch.zeros(3, requires_grad=True) for _ in range(1 if name in UNARY else 2)]
    y = ActivationUnit(name)(*inputs)
    assert y.shape == (3,)
    if y.requires_grad:
        gradients = torch.autograd.grad(y.sum(), inputs, allow_unused=True)
        assert all(g is None or (g.isfinite().all() and g.abs().max() <= 1 / EPSILON) for g in gradients)


@pytest.mark.parametrize("name", ["abs", "sqrt", "log_abs"])
def test_the_slope_at_the_kink_is_zero(name: str) -> None:
    x = torch.zeros(1, requires_grad=True)
    ActivationUnit(name)(x).sum().backward()
    assert x.grad == 0


def test_beta_starts_where_it_is_said_to_start() -> None:
    found = {name: unit.beta for name in [*UNARY, *BINARY] if (unit := ActivationUnit(name)).beta is not None}
    assert {name: beta.item() for name, beta in found.items()} == WITH_BETA
    assert all(beta.shape == () and beta.requires_grad for beta in found.values())


def test_the_labels() -> None:
    dimensions = nn.AutoActivation(2, label="act").simplify()
    assert list(dimensions) == [f"act/unary_{i}" for i in range(4)] + ["act/binary_0", "act/binary_1"]
    assert dimensions["act/unary_3"].values == list(UNARY)
    assert dimensions["act/binary_1"].values == list(BINARY)
    assert nn.AutoActivation(2).size() == 25**4 * 10**2


def test_every_name_can_be_chosen() -> None:
    act = nn.AutoActivation(label="a")
    x = torch.tensor(X, dtype=torch.float32)
    for name, formula in UNARY_FORMULAS.items():
        member = act.freeze({"a/unary_0": name, "a/unary_1": "identity", "a/binary_0": "subtract"})
        for unit in member.unaries:
            if unit.beta is not None:
                torch.nn.init.constant_(unit.beta, BETA)
        np.testing.assert_allclose(member(x).detach(), formula(X) - X, rtol=1e-4, atol=1e-5)
    for name in BINARY:
        member = act.freeze({"a/unary_0": "sin", "a/unary_1": "cosh", "a/binary_0": name})
        torch.testing.assert_close(member(x), ActivationUnit(name)(x.sin(), x.cosh()))


def test_units_follow_each_other() -> None:
    act = nn.AutoActivation(3, label="a")
    names = ["sin", "cube", "exp", "negative", "tanh", "square"]
    sample = {f"a/unary_{i}": name for i, name in enumerate(names)}
    sample |= {"a/binary_0": "add", "a/binary_1": "multiply", "a/binary_2": "minimum"}
    x = torch.linspace(-2, 2, 9)
    first = x.sin() + x**3
    second = first.exp() * -x
    torch.testing.assert_close(act.freeze(sample)(x), torch.minimum(second.tanh(), x**2))


def test_the_default_is_the_sigmoid_weighted_unit() -> None:
    act = nn.AutoActivation(label="a")
    x = torch.randn(7)
    torch.testing.assert_close(act(x), torch.nn.functional.silu(x))
    torch.testing.assert_close(act(x), act.freeze(act.default())(x))


def test_members_are_plain_and_share_nothing() -> None:
    act = nn.AutoActivation(label="a")
    frozen = act.freeze({"a/unary_0": "scale", "a/unary_1": "constant", "a/binary_0": "blend"})
    assert not any(b.__module__.startswith("hwnas") for m in frozen.modules() for b in type(m).__mro__)
    assert len(list(frozen.parameters())) == 3
    assert not {p.data_ptr() for p in act.parameters()} & {p.data_ptr() for p in frozen.parameters()}
    assert "ActivationUnit(blend)" in repr(frozen)


class Net(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            nn.AutoActivation(label="act"),
            torch.nn.Linear(4, 4),
            nn.AutoActivation(label="act"),
            nn.AutoActivation(unary_candidates=["tanh", "sin"], binary_candidates=["multiply", "add"]),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_activations_of_one_label_choose_alike_and_learn_apart() -> None:
    space = Net()
    assert list(space.simplify()) == [
        "act/unary_0", "act/unary_1", "act/binary_0", "activation_1/unary_0", "activation_1/unary_1",
        "activation_1/binary_0",
    ]  # fmt: skip
    assert space.simplify()["activation_1/binary_0"].values == ["multiply", "add"]
    member = space.freeze({**space.default(), "act/unary_0": "scale"})
    assert member.body[0].unaries[0].beta is not member.body[2].unaries[0].beta


def test_a_sampling_supernet_computes_what_the_member_computes() -> None:
    space = Net()
    relaxation = OneHot(space.simplify().values())
    make_supernet(space, relaxation)
    x = torch.randn(3, 4)
    for seed in range(5):
        sample = Net().random(random_state=seed)
        relaxation.resample(sample)
        torch.testing.assert_close(space(x), space.freeze(sample)(x))


class Around(nn.ModelSpace):
    def __init__(self, part: torch.nn.Module) -> None:
        super().__init__()
        self.part = part


def test_a_differentiable_supernet_mixes_the_functions() -> None:
    act = nn.AutoActivation(label="a", unary_candidates=["identity", "tanh"], binary_candidates=["add", "multiply"])
    relaxation = Softmax(act.simplify().values())
    make_supernet(Around(act), relaxation)
    x = torch.randn(5)
    p, q, r = (relaxation.probabilities(f"a/{name}") for name in ("unary_0", "unary_1", "binary_0"))
    u, v = p[0] * x + p[1] * x.tanh(), q[0] * x + q[1] * x.tanh()
    torch.testing.assert_close(act(x), r[0] * (u + v) + r[1] * u * v)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"unit_num": 0}, "unit_num is 0"),
        ({"unary_candidates": ["tanh", "swish"]}, r"'a': unary_candidates has \['swish'\]; expected some of identity"),
        ({"binary_candidates": []}, "binary_candidates has no names"),
        ({"unary_candidates": ["tanh", "add"]}, r"\['add'\]"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nn.AutoActivation(label="a", **kwargs)
