"""Twins behave as the classes of `torch.nn` wherever no choice is involved, and users make twins of their own."""

from __future__ import annotations

import copy
import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import SampleError, UnsupportedError
from hwnas.space import ExpressionConstraint


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


# What a frozen module keeps


def test_weights_stay_where_the_choice_has_nothing_to_do_with_them() -> None:
    conv = nn.Conv2d(4, 4, 3, stride=nn.ValueChoice([1, 2], label="s"))
    frozen = conv.freeze({"s": 2})
    assert frozen.stride == (2, 2)
    torch.testing.assert_close(frozen.state_dict(), conv.state_dict())
    norm = nn.BatchNorm2d(3, eps=nn.ValueChoice([1e-5, 1e-3], label="e"))
    norm(torch.randn(8, 3, 2, 2) + 5)
    torch.testing.assert_close(norm.freeze({"e": 1e-3}).state_dict(), norm.state_dict())


def test_what_a_choice_initialises_does_not_stay() -> None:
    act = nn.PReLU(3, init=nn.ValueChoice([0.25, 0.5], label="i"))
    assert act.freeze({"i": 0.5}).weight.tolist() == [0.5] * 3
    torch.nn.init.constant_(act.weight, 7)
    assert act.freeze({"i": 0.25}).weight.tolist() == [7] * 3


def test_parts_of_a_module_stay() -> None:
    norm = nn.BatchNorm1d(3, affine=nn.ValueChoice([True, False], label="a"))
    torch.nn.init.constant_(norm.running_mean, 3)
    frozen = norm.freeze({"a": False})
    assert frozen.weight is None
    assert frozen.running_mean.tolist() == [3] * 3


def test_freezing_shares_no_tensor_and_weights_that_stay_stay_tied() -> None:
    class Tied(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, stride=nn.ValueChoice([1, 2], label="s"))
            self.other = torch.nn.Conv2d(4, 4, 3)
            self.other.weight = self.conv.weight

    space = Tied()
    for stride in (1, 2):
        model = space.freeze({"s": stride})
        assert model.conv.weight is model.other.weight
        assert not {p.data_ptr() for p in space.parameters()} & {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("width", [4, 6])
def test_what_was_added_to_a_module_stays(width: int) -> None:
    conv = nn.Conv2d(2, nn.ValueChoice([4, 6], label="w"), 1)
    conv.note = "added"
    conv.act = torch.nn.ReLU()
    conv.register_buffer("scale", torch.ones(2), persistent=False)
    conv.register_forward_hook(lambda module, args, output: output + 100)
    conv.weight.requires_grad_(False)
    conv.eval()
    conv.act.train()
    frozen = conv.freeze({"w": width})
    assert type(frozen) is torch.nn.Conv2d
    assert frozen.note == "added"
    assert frozen.scale.tolist() == [1, 1]
    assert "scale" not in frozen.state_dict()
    assert (frozen.training, frozen.act.training) == (False, True)
    assert (frozen.weight.requires_grad, frozen.bias.requires_grad) == (False, True)
    assert frozen(torch.zeros(1, 2, 1, 1)).min() > 50
    assert conv.freeze({"w": width}).scale.data_ptr() != frozen.scale.data_ptr()


def test_the_random_state_moves_on_as_with_the_plain_class() -> None:
    layer = nn.Linear(3, nn.ValueChoice([4, 5], label="w"))
    stride = nn.Conv2d(3, 3, 3, stride=nn.ValueChoice([1, 2], label="s"))
    for module, sample, plain in (
        (layer, {"w": 5}, lambda: torch.nn.Linear(3, 5)),
        (stride, {"s": 2}, lambda: torch.nn.Conv2d(3, 3, 3, stride=2)),
    ):
        torch.manual_seed(5)
        module.freeze(sample)
        after = torch.rand(3)
        torch.manual_seed(5)
        plain()
        assert torch.equal(torch.rand(3), after)


# Twins of the user's classes


class Size(NamedTuple):
    height: Any
    width: Any


class Block(torch.nn.Module):
    """Plain code that needs numbers."""

    def __init__(self, width: int, depth: int = 1, *, act: bool = False, **more: Any) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))
        self.shift = torch.nn.Parameter(torch.zeros(width))
        self.register_buffer("scale", torch.tensor(1.0 / depth))
        if act:
            self.act = torch.nn.ReLU()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        x = x * self.scale + self.shift
        return self.act(x) if hasattr(self, "act") else x


TwinBlock = nn.parametrized(Block)


class BlockSpace(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.width = nn.ValueChoice([4, 8], label="width")
        depth = nn.ValueChoice([1, 2, 3], label="depth")
        self.stem = nn.Linear(2, self.width)
        self.block = TwinBlock(self.width, depth, act=nn.ValueChoice([True, False], label="act"))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.stem(x))


def test_a_twin_of_a_class_of_the_user() -> None:
    assert nn.parametrized(Block) is TwinBlock
    assert type(TwinBlock(4, 2)) is Block
    space = BlockSpace()
    assert isinstance(space.block, Block)
    assert isinstance(space.block, nn.ParametrizedModule)
    assert isinstance(Block(4), TwinBlock)
    assert list(space.simplify()) == ["width", "depth", "act"]
    x = torch.randn(3, 2)
    assert space(x).shape == (3, 4)
    for sample in space.grid():
        model = space.freeze(sample)
        assert type(model.block) is Block
        expected = Block(sample["width"], sample["depth"], act=sample["act"])
        assert model.block.state_dict().keys() == expected.state_dict().keys()
        assert repr(model.block) == repr(expected)
        assert model.block.scale == 1 / sample["depth"]
        assert model(x).shape == (3, sample["width"])
    torch.testing.assert_close(space.freeze(space.default())(x), space(x))


def test_layers_that_were_there_before_keep_their_weights() -> None:
    space = BlockSpace()
    model = space.freeze({"width": 4, "depth": 3, "act": True})
    torch.testing.assert_close(model.block.layers[0].weight, space.block.layers[0].weight)
    assert len({tuple(layer.weight.flatten().tolist()) for layer in model.block.layers}) == 3


def test_the_training_mode_of_each_part_is_kept() -> None:
    space = BlockSpace()
    space.block.layers[0].eval()
    block = space.freeze({"width": 8, "depth": 2, "act": True}).block
    assert [part.training for part in (block, block.layers[0], block.layers[1])] == [True, False, True]


def test_twins_and_members_pickle_by_the_name_of_the_class() -> None:
    space = BlockSpace()
    twin = pickle.loads(pickle.dumps(space.block))
    assert type(twin) is TwinBlock
    assert pickle.loads(pickle.dumps(TwinBlock)) is TwinBlock
    member = space.block.freeze({"width": 8, "depth": 2, "act": True})
    again = pickle.loads(pickle.dumps(member))
    x = torch.randn(2, 8)
    torch.testing.assert_close(again(x), member(x))


def test_as_a_decorator_and_as_a_base_class() -> None:
    @nn.parametrized
    class Scale(torch.nn.Module):
        def __init__(self, width: Any) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(width))

    class Mixed(nn.ParametrizedModule, Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    width = nn.ValueChoice([4, 8], label="width")
    assert Scale(width).freeze({"width": 8}).scale.shape == (8,)
    assert type(Scale(4)).__name__ == "Scale"
    mixed = Mixed(width)
    frozen = mixed.freeze({"width": 8})
    assert isinstance(frozen, Block)
    x = torch.randn(2, 8)
    torch.testing.assert_close(frozen(x), Block.forward(frozen, x) + 1)
    assert not any(base.__module__.startswith("hwnas") for base in type(frozen).__mro__)


def test_choices_inside_containers() -> None:
    width = nn.ValueChoice([4, 8], label="width")
    more = {"sizes": [width, 2], "named": Size(width, width * 2), "inner": {"k": (width,)}}
    twin = TwinBlock(4, **more)
    frozen = twin.freeze({"width": 8})
    assert frozen.more == {"sizes": [8, 2], "named": Size(8, 16), "inner": {"k": (8,)}}
    assert isinstance(frozen.more["named"], Size)
    k = nn.ValueChoice([1, 3], label="k")
    assert nn.Conv2d(1, 1, kernel_size=(k, k)).freeze({"k": 3}).kernel_size == (3, 3)


def test_arguments_without_names() -> None:
    class Sum(torch.nn.Module):
        def __init__(self, first: int, /, *widths: int, bias: bool = True) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(first, sum(widths), bias)

    width = nn.ValueChoice([4, 8], label="width")
    frozen = nn.parametrized(Sum)(3, 1, width, width, bias=False).freeze({"width": 8})
    assert frozen.linear.weight.shape == (17, 3)


class Around(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module, width: int) -> None:
        super().__init__()
        self.inner = inner
        self.head = torch.nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


def test_modules_with_choices_as_arguments() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            width = nn.ValueChoice([4, 8], label="width")
            inner = nn.Sequential(nn.Linear(3, width), nn.LayerChoice([nn.ReLU(), nn.Tanh()], label="act"))
            self.around = nn.parametrized(Around)(inner, width)
            self.again = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.around(x)

    space = Net()
    assert space.simplify().keys() == {"width", "act"}
    for sample in space.grid():
        model = space.freeze(sample)
        assert type(model.around) is Around
        assert model.around.inner is model.again
        assert type(model.again[1]) is [torch.nn.ReLU, torch.nn.Tanh][sample["act"]]
        assert model(torch.randn(5, 3)).shape == (5, 2)
        assert not {p.data_ptr() for p in space.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_freezing_leaves_the_modules_among_the_arguments_as_they_are() -> None:
    class Changing(torch.nn.Module):
        def __init__(self, inner: torch.nn.Linear, width: int) -> None:
            super().__init__()
            self.inner = inner
            torch.nn.init.constant_(inner.weight, width)

    inner = torch.nn.Linear(3, 3)
    twin = nn.parametrized(Changing)(inner, nn.ValueChoice([4, 8], label="width"))
    torch.nn.init.constant_(inner.weight, 1)
    assert (twin.freeze({"width": 8}).inner.weight == 8).all()
    assert (inner.weight == 1).all()


def test_numbers_of_numpy_are_turned_into_those_of_the_choice() -> None:
    lstm = nn.LSTM(3, nn.ValueChoice([4, 5], label="hidden"))  # refuses anything but int
    assert type(lstm.freeze({"hidden": np.int64(5)}).hidden_size) is int


def test_a_twin_inside_what_is_chosen_and_repeated() -> None:
    width = nn.ValueChoice([4, 8], label="width")
    choice = nn.LayerChoice([nn.Identity(), nn.Repeat(lambda i: TwinBlock(width), (1, 2), label="n")], label="c")
    assert set(choice.simplify()) == {"c", "n", "width"}
    assert [type(block) for block in choice.freeze({"c": 1, "n": 2, "width": 8})] == [Block, Block]
    assert choice.contains({"c": 0})


# Errors


def test_arguments_that_do_not_fit_together() -> None:
    groups = nn.ValueChoice([1, 2, 3], label="groups")
    conv = nn.Conv2d(4, 4, 3, groups=groups)
    with pytest.raises(
        SampleError, match=r"Conv2d\(in_channels=4, .*groups=3\).*values of groups.*divisible"
    ) as caught:
        conv.freeze({"groups": 3})
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(SampleError, match=r"Conv2d\(.*the defaults of groups.*divisible.*defaults that fit"):
        nn.Conv2d(3, 3, 3, groups=nn.ValueChoice([2, 3], label="groups"))
    with pytest.raises(SampleError, match=r"MultiheadAttention.*num_heads=5"):
        nn.MultiheadAttention(8, nn.ValueChoice([2, 5], label="h")).freeze({"h": 5})


def test_without_choices_the_error_is_that_of_pytorch() -> None:
    with pytest.raises(ValueError, match=r"^in_channels must be divisible by groups$"):
        nn.Conv2d(3, 3, 3, groups=2)


def test_a_constraint_excludes_what_does_not_fit() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            width = nn.ValueChoice([4, 6], label="width")
            groups = nn.ValueChoice([1, 2, 3], label="groups")
            self.conv = nn.Conv2d(width, width, 3, groups=groups)
            self.add_mutable(ExpressionConstraint(width % groups == 0))

    space = Net()
    members = [space.freeze(sample).conv for sample in space.grid()]
    assert {(m.in_channels, m.groups) for m in members} == {(4, 1), (4, 2), (6, 1), (6, 2), (6, 3)}


def test_arguments_that_the_class_does_not_have() -> None:
    width = nn.ValueChoice([4, 6], label="width")
    with pytest.raises(TypeError, match=r"Conv2d: got an unexpected keyword argument 'kernel'; it takes in_channels, "):
        nn.Conv2d(3, width, 3, kernel=3)
    with pytest.raises(TypeError, match="Linear: missing a required argument: 'out_features'"):
        nn.Linear(width)


def test_what_cannot_have_a_twin() -> None:
    class WithMethod(torch.nn.Module):
        def freeze(self) -> None: ...

    class WithChild(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.random = torch.nn.Linear(width, width)

    class WithChoice(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.act = nn.LayerChoice([nn.ReLU(), nn.Linear(width, width)], label="act")

    width = nn.ValueChoice([4, 6], label="width")
    with pytest.raises(TypeError, match="takes a class of modules, got 3"):
        nn.parametrized(3)
    with pytest.raises(TypeError, match="takes a class of modules"):
        nn.parametrized(int)
    for cls in (nn.Conv2d, nn.ModelSpace, nn.LayerChoice):
        with pytest.raises(UnsupportedError, match=r"takes choices already"):
            nn.parametrized(cls)
    with pytest.raises(UnsupportedError, match="WithMethod cannot have a twin: freeze would hide"):
        nn.parametrized(WithMethod)
    with pytest.raises(UnsupportedError, match="WithChild cannot have a twin: random would hide"):
        nn.parametrized(WithChild)(width)
    with pytest.raises(UnsupportedError, match=r"WithChoice: its constructor makes choices of its own \(act\)"):
        nn.parametrized(WithChoice)(width)
