"""Twins behave as the classes of `torch.nn` wherever no choice is involved."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn


def test_everything_of_torch_nn_is_here() -> None:
    missing = [name for name in dir(torch.nn) if not name.startswith("_") and not hasattr(nn, name)]
    assert missing == []
    assert nn.functional.relu is torch.nn.functional.relu


@pytest.mark.parametrize(("twin", "arguments"), [("Conv2d", (3, 4, 3)), ("Linear", (3, 4)), ("BatchNorm2d", (3,))])
def test_without_choices_a_twin_is_the_plain_class(twin: str, arguments: tuple[int, ...]) -> None:
    plain, ours = getattr(torch.nn, twin), getattr(nn, twin)
    made = ours(*arguments)
    assert type(made) is plain
    assert isinstance(made, ours)
    chosen = ours(nn.ValueChoice([2, 3], label="w"), *arguments[1:])
    assert isinstance(chosen, plain)
    assert isinstance(chosen, ours)
    assert not isinstance(torch.nn.ReLU(), ours)
    assert type(chosen.freeze({"w": 3})) is plain


def test_every_argument_may_be_a_choice() -> None:
    k = nn.ValueChoice([1, 3], label="k")
    conv = nn.Conv2d(
        4, 4, k, stride=nn.ValueChoice([1, 2], label="s"), padding=k // 2,
        bias=nn.ValueChoice([True, False], label="b"),
        groups=nn.ValueChoice([1, 2, 4], label="g"), padding_mode=nn.ValueChoice(["zeros", "reflect"], label="m"),
    )  # fmt: skip
    frozen = conv.freeze({"k": 3, "s": 2, "b": False, "g": 4, "m": "reflect"})
    assert (frozen.kernel_size, frozen.stride, frozen.padding) == ((3, 3), (2, 2), (1, 1))
    assert (frozen.bias, frozen.groups, frozen.padding_mode) == (None, 4, "reflect")
    assert frozen.weight.shape == (4, 1, 3, 3)


@pytest.mark.parametrize("kernel", [(1, 3), (3, 1)])
def test_tuple_kernels(kernel: tuple[int, int]) -> None:
    choice = nn.ValueChoice([(1, 3), (3, 1)], label="k")
    conv = nn.Conv2d(2, 2, choice, padding=nn.ValueChoice([(0, 1), (1, 0)], label="p"))
    assert conv.freeze({"k": kernel, "p": (0, 1)}).weight.shape == (2, 2, *kernel)
    inside = nn.Conv2d(2, 2, (nn.ValueChoice([1, 3], label="h"), 5))
    assert inside.freeze({"h": 3}).kernel_size == (3, 5)


def test_unfrozen_forward_is_that_of_the_default_member() -> None:
    conv = nn.Conv2d(2, nn.ValueChoice([3, 5], default=5, label="w"), 1)
    x = torch.randn(1, 2, 4, 4)
    assert conv(x).shape == (1, 5, 4, 4)
    torch.testing.assert_close(conv.freeze({"w": 5})(x), conv(x))


def test_the_choices_are_found_and_shown() -> None:
    a, b = nn.ValueChoice([1, 2], label="a"), nn.ValueChoice([1, 2], label="b")
    layer = nn.Linear(a + b, a)
    assert list(layer.simplify()) == ["a", "b"]
    assert "in_features" in repr(layer)
    assert layer.freeze({"a": 2, "b": 1}).weight.shape == (2, 3)


def test_a_twin_can_be_derived_from() -> None:
    """As any class of `torch.nn`: with an own constructor, own submodules and an own `forward`."""

    class ConvAct(nn.Conv2d):
        def __init__(self, inside: Any, outside: Any) -> None:
            super().__init__(inside, outside, 3, padding=1)
            self.act = nn.LayerChoice([nn.ReLU(), nn.Tanh()], label="act")

        def forward(self, x: Tensor) -> Tensor:
            return self.act(super().forward(x)) + 10

    class Net(nn.ModelSpace):
        def __init__(self, width: Any) -> None:
            super().__init__()
            self.conv = ConvAct(2, width)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    x = torch.randn(1, 2, 4, 4)
    for width, given in (
        (4, {}),
        (nn.ValueChoice([4, 6], label="w"), {"w": 6}),
        (nn.ValueChoice([4, 6], label="w"), {"w": 4}),
    ):
        space = Net(width)
        assert "act" in space.simplify()
        model = space.freeze({"act": 1, **given})
        assert isinstance(model.conv, torch.nn.Conv2d)
        plain = torch.nn.functional.conv2d(x, model.conv.weight, model.conv.bias, padding=1)
        torch.testing.assert_close(model(x), plain.tanh() + 10)
        assert model(x).shape[1] == given.get("w", 4)
        assert not any(base.__module__.startswith("hwnas") for base in type(model.conv).__mro__)


class Small(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([2, 4], label="width")
        self.conv = nn.Conv2d(1, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.LayerChoice([nn.ReLU(), nn.PReLU()], label="act")


def test_deepcopy_of_a_space() -> None:
    space = Small()
    other = copy.deepcopy(space)
    assert list(other.simplify()) == list(space.simplify())
    assert other.conv.arguments["out_channels"] is not space.conv.arguments["out_channels"]
    assert not {p.data_ptr() for p in space.parameters()} & {p.data_ptr() for p in other.parameters()}
    assert other.freeze({"width": 4, "act": 1}).conv.out_channels == 4


def test_state_dict_round_trip() -> None:
    space, other = Small(), Small()
    other.load_state_dict(space.state_dict())
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, space.state_dict()[name])
