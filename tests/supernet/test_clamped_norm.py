"""Batch normalisations run together with the activation behind them, and nobody notices."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.kernels import bn_clamp, native
from hwnas.supernet import OneHot, Softmax, clamped_norm, make_supernet
from hwnas.supernet.fused_sequence import FusedSequential

ACTIVATIONS: dict[str, Callable[[], torch.nn.Module]] = {
    "ReLU": lambda: nn.ReLU(inplace=True),
    "ReLU6": nn.ReLU6,
    "Hardtanh": lambda: nn.Hardtanh(-0.5, 1.5),
}
pytestmark = pytest.mark.skipif(native.CPU is None, reason="the CPU kernels are not compiled")


class Net(nn.ModelSpace):
    def __init__(self, activation: Callable[[], torch.nn.Module] = nn.ReLU6, **options: Any) -> None:
        super().__init__()
        width = nn.ValueChoice([4, 8], label="width")
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, **options),
            activation(),
            nn.Conv2d(width, 5, 1, bias=False),
            nn.BatchNorm2d(5, **options),
            activation(),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the tensors that the kernel was given."""
    shapes: list[tuple[int, ...]] = []

    def counted(x: Tensor, *arguments: Any, **options: Any) -> Any:
        shapes.append(tuple(x.shape))
        return bn_clamp(x, *arguments, **options)

    monkeypatch.setattr(clamped_norm, "bn_clamp", counted)
    monkeypatch.setattr(clamped_norm, "_FASTER_FROM", {True: 0, False: 0})
    return shapes


def supernet(width: int = 4, **options: Any) -> tuple[Any, OneHot]:
    torch.manual_seed(0)
    space = Net(**options)
    for module in space.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            torch.nn.init.uniform_(module.weight, 0.5, 4.0)
            torch.nn.init.uniform_(module.bias, -1.0, 3.0)
    relaxation = OneHot(space.simplify().values())
    made = make_supernet(space, relaxation)
    relaxation.sample = {"width": width}
    return made, relaxation


def images(memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 6, 6, generator=generator).contiguous(memory_format=memory_format)


def train(space: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Run forward and backward twice; return everything that this changed."""
    for _ in range(2):
        space.zero_grad()
        y = space(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    gradients = {f"grad of {name}": p.grad for name, p in space.named_parameters() if p.grad is not None}
    return {"y": y.detach(), **gradients, **{name: b.clone() for name, b in space.named_buffers()}}


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=2e-4, atol=2e-5, msg=lambda text, at=name: f"{at}: {text}")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_is_what_the_modules_do_one_by_one(
    fused: list[Any], activation: str, width: int, memory_format: torch.memory_format
) -> None:
    space, _ = supernet(width, activation=ACTIVATIONS[activation])
    other = copy.deepcopy(space)
    x = images(memory_format)
    with native.disabled():
        expected = train(other, x)
    assert not fused
    same(train(space, x), expected)
    assert fused == 2 * [(4, width, 6, 6), (4, 5, 6, 6)]


@pytest.mark.parametrize(
    "options", [{"affine": False}, {"track_running_stats": False}, {"momentum": 0.3}, {"eps": 0.1}]
)
def test_options_of_the_normalisation(fused: list[Any], options: dict[str, Any]) -> None:
    space, _ = supernet(**options)
    other = copy.deepcopy(space)
    with native.disabled():
        expected = train(other, images())
    same(train(space, images()), expected)
    assert fused


def test_a_frozen_member_computes_the_same_and_is_of_pytorch(fused: list[Any]) -> None:
    space, _ = supernet(4)
    member = space.freeze({"width": 4})
    assert [type(module) for module in member.modules() if "Sequential" in type(module).__name__] == [
        torch.nn.Sequential
    ]
    torch.testing.assert_close(space(images()), member(images()), rtol=2e-4, atol=2e-5)
    assert fused


def eval_mode(space: Any) -> None:
    space.eval()


def hook_on_the_norm(space: Any) -> None:
    for index in (1, 4):
        space.layers[index].register_forward_hook(lambda module, args, y: y + 1)


def hook_on_the_activation(space: Any) -> None:
    for index in (2, 5):
        space.layers[index].register_forward_pre_hook(lambda module, args: args[0] + 1)


def cumulative_statistics(space: Any) -> None:
    for index in (1, 4):
        space.layers[index].momentum = None


def another_activation(space: Any) -> None:
    for index in (2, 5):
        space.layers[index] = torch.nn.LeakyReLU()


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        (eval_mode, False),
        (hook_on_the_norm, False),
        (hook_on_the_activation, False),
        (another_activation, False),
        (cumulative_statistics, None),
    ],
)
def test_everything_else_runs_as_written(fused: list[Any], change: Callable[[Any], None], kernel: bool | None) -> None:
    space, _ = supernet()
    change(space)
    other = copy.deepcopy(space)
    with native.disabled():
        expected = train(other, images())
    same(train(space, images()), expected)
    assert kernel is None or bool(fused) == kernel


def test_hooks_on_all_modules_see_all_modules(fused: list[Any]) -> None:
    space, _ = supernet()
    seen: list[str] = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, y: seen.append(type(module).__name__)
    )
    try:
        space(images())
    finally:
        handle.remove()
    assert seen.count("ReLU6") == 2
    assert not fused


def test_small_tensors_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clamped_norm, "bn_clamp", None)
    space, _ = supernet()
    space(images())


def test_a_mixture_of_widths_is_masked_before_it_is_clamped() -> None:
    torch.manual_seed(0)
    space = Net(activation=lambda: nn.Hardtanh(0.5, 1.5))
    relaxation = Softmax(space.simplify().values())
    made: Any = make_supernet(space, relaxation)
    x = images()
    layers = list(made.layers)
    expected = x
    for layer in layers:
        expected = layer(expected)
    torch.testing.assert_close(made(x), expected)


def test_every_plain_sequence_is_taken_over_and_no_other() -> None:
    class Own(torch.nn.Sequential):
        pass

    class Nested(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(Own(nn.Linear(3, nn.ValueChoice([2, 3], label="a"))), nn.Sequential())

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layers(x)
            return y

    space = Nested()
    made: Any = make_supernet(space, OneHot(space.simplify().values()))
    assert [type(module) for module in (made.layers, *made.layers)] == [FusedSequential, Own, FusedSequential]
    assert list(made.state_dict()) == ["layers.0.0.weight", "layers.0.0.bias"]
