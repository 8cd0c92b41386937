"""Depthwise convolutions in super-nets against the plain modules that they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parametrize

import hwnas.nn as nn
from hwnas.supernet import OneHot, Softmax, make_supernet
from hwnas.supernet.fused import DepthwiseConv2d
from hwnas.supernet.fused_sequence import FusedSequential, run_fused


def depthwise(channels: int = 4, kernel: Any = 5, **options: Any) -> torch.nn.Conv2d:
    return torch.nn.Conv2d(channels, channels, kernel, padding=2, groups=channels, **options)


def separable(**options: Any) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.ReLU(**options), depthwise(bias=False), torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4)
    )


class Space(nn.ModelSpace):
    def __init__(self, make: Callable[[], torch.nn.Module] = separable) -> None:
        super().__init__()
        self.layer = nn.LayerChoice({"conv": make(), "skip": torch.nn.Identity()}, label="layer")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def supernet(make: Callable[[], torch.nn.Module] = separable) -> tuple[Any, Any]:
    """Return a super-net, and a copy of its candidate as it was before."""
    space = Space(make)
    plain = copy.deepcopy(space.layer.candidate("conv"))
    make_supernet(space, evenly(space))
    return space, plain


def evenly(space: Any) -> Softmax:
    """Return a mixture of equal weights."""
    relaxation = Softmax(space.simplify().values())
    with torch.no_grad():
        for alpha in relaxation.parameters():
            alpha.zero_()
    return relaxation


def images(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 4, 16, 16), requires_grad=True)


def same(actual: torch.nn.Module, plain: torch.nn.Module, x: Tensor, run: Callable[..., Any] = run_fused) -> None:
    """Compare outputs and all gradients."""
    out, expected = run(actual, x), plain(x)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(expected)
    grads = torch.autograd.grad(out, [x, *actual.parameters()], grad)
    wanted = torch.autograd.grad(expected, [x, *plain.parameters()], grad)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the convolutions that run with a ReLU."""
    calls: list[int] = []
    original = DepthwiseConv2d.after_relu

    def counting(self: DepthwiseConv2d, x: Tensor) -> Tensor:
        calls.append(1)
        return original(self, x)

    monkeypatch.setattr(DepthwiseConv2d, "after_relu", counting)
    return calls


def test_depthwise_convolutions_are_taken_over() -> None:
    space, _ = supernet()
    relu, conv, point, norm = space.layer.candidate("conv")
    assert type(conv) is DepthwiseConv2d
    assert [type(m) for m in (relu, point, norm)] == [torch.nn.ReLU, torch.nn.Conv2d, torch.nn.BatchNorm2d]
    assert type(space.layer.candidate("conv")) is FusedSequential


def test_what_is_not_depthwise_or_has_code_of_its_own_is_left_alone() -> None:
    class Own(torch.nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    parts = [
        Own(4, 4, 3, groups=4),
        torch.nn.Conv2d(4, 8, 3, groups=4),
        torch.nn.Conv2d(4, 4, 3, groups=2),
        torch.nn.Conv2d(1, 1, 3),
    ]
    space, _ = supernet(lambda: torch.nn.Sequential(*parts))
    assert [type(part) for part in space.layer.candidate("conv")] == [Own, *[torch.nn.Conv2d] * 3]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_the_same_outputs_and_gradients(training: bool, memory_format: Any, fused: list[int]) -> None:
    space, plain = supernet()
    candidate = space.layer.candidate("conv").train(training)
    x = images().detach().contiguous(memory_format=memory_format).requires_grad_()
    same(candidate, plain.train(training), x)
    assert len(fused) == 1
    for (name, a), (_, b) in zip(candidate.state_dict().items(), plain.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    out, expected = space(x), 0.5 * plain(x) + 0.5 * x
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("nested", [False, True])
def test_a_sequence_of_pairs(nested: bool, fused: list[int]) -> None:
    def make() -> torch.nn.Module:
        relu = torch.nn.ReLU()  # one module twice
        pair = torch.nn.Sequential(relu, depthwise())
        return torch.nn.Sequential(pair, relu, relu, depthwise()) if nested else torch.nn.Sequential(*pair, *pair)

    space, plain = supernet(make)
    same(space.layer.candidate("conv"), plain, images())
    assert len(fused) == 2


def test_a_relu_that_works_in_place_still_does(fused: list[int]) -> None:
    space, plain = supernet(lambda: separable(inplace=True))
    x = images().detach()
    y = x.clone()
    torch.testing.assert_close(run_fused(space.layer.candidate("conv"), x), plain(y))
    torch.testing.assert_close(x, y)
    assert bool((x >= 0).all())
    assert not fused


def hook(*_: Any) -> None:
    pass


WATCHERS: dict[str, Callable[[torch.nn.Module], Any]] = {
    "forward": lambda module: module.register_forward_hook(hook),
    "forward_pre": lambda module: module.register_forward_pre_hook(hook),
    "backward": lambda module: module.register_full_backward_hook(hook),
    "backward_pre": lambda module: module.register_full_backward_pre_hook(hook),
    "exchanged": lambda module: setattr(module, "forward", module.forward),
    "compiled": lambda module: setattr(module, "_compiled_call_impl", module._call_impl),
    "all": lambda _: torch.nn.modules.module.register_module_forward_hook(hook),
}


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("kind", WATCHERS)
def test_modules_that_are_watched_run_by_themselves(kind: str, position: int, fused: list[int]) -> None:
    space, plain = supernet()
    candidate = space.layer.candidate("conv")
    handle = WATCHERS[kind](candidate[position])
    try:
        same(candidate, plain, images())
    finally:
        if kind == "all":
            handle.remove()
    assert not fused


def test_what_a_hook_sees_is_what_a_plain_module_gives_out() -> None:
    space, plain = supernet()
    seen: list[Tensor] = []
    space.layer.candidate("conv")[0].register_forward_hook(lambda *all: seen.append(all[2]))
    x = images()
    space(x)
    torch.testing.assert_close(seen[0], plain[0](x))


def test_a_hook_on_the_sequence() -> None:
    space, _ = supernet()
    space.layer.candidate("conv").register_forward_hook(lambda module, args, out: out * 0)
    assert bool((run_fused(space.layer.candidate("conv"), images()) == 0).all())


def test_other_paddings_and_types(fused: list[int]) -> None:
    def make() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.ReLU(), depthwise(padding_mode="reflect"))

    space, plain = supernet(make)
    same(space.layer.candidate("conv"), plain, images())
    assert not fused
    space, plain = supernet(lambda: torch.nn.Sequential(torch.nn.ReLU(), depthwise()).half())
    x = images().half()
    torch.testing.assert_close(run_fused(space.layer.candidate("conv"), x), plain(x))


def test_parametrised_weights(fused: list[int]) -> None:
    class Doubled(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    space, plain = supernet()
    for sequence in (space.layer.candidate("conv"), plain):
        parametrize.register_parametrization(sequence[1], "weight", Doubled())
    same(space.layer.candidate("conv"), plain, images())
    assert not fused


def test_a_wrong_number_of_channels_is_the_error_of_pytorch() -> None:
    space, _ = supernet()
    with pytest.raises(RuntimeError, match="expected input"):
        space.layer.candidate("conv")(torch.rand(1, 3, 8, 8))


def test_gradients_of_gradients() -> None:
    conv = torch.nn.Sequential(torch.nn.ReLU(), depthwise(2, 3)).double()
    space, _ = supernet(lambda: conv)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: run_fused(space.layer.candidate("conv"), x), (x,))


def test_frozen_members_are_plain() -> None:
    space, plain = supernet()
    frozen = space.freeze({"layer": "conv"})
    for module in frozen.modules():
        assert not type(module).__module__.startswith("hwnas")
    x = images()
    torch.testing.assert_close(frozen.eval()(x), plain.eval()(x))
    assert type(space.layer.candidate("conv")[1]) is DepthwiseConv2d


def test_copies() -> None:
    space, plain = supernet()
    copied = copy.deepcopy(space)
    same(copied.layer.candidate("conv"), plain, images())
    assert copied.layer.candidate("conv")[1].weight is not space.layer.candidate("conv")[1].weight


@pytest.mark.slow
def test_compiled_in_one_graph() -> None:
    space, plain = supernet()
    candidate = space.layer.candidate("conv")
    compiled = torch.compile(lambda x: run_fused(candidate, x), fullgraph=True, backend="aot_eager")
    x = images()
    torch.testing.assert_close(compiled(x), plain(x))


# --- convolutions with choices ------------------------------------------------------------------------------


class Searched(nn.ModelSpace):
    """A depthwise convolution whose width and kernel are choices."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        width = nn.ValueChoice([4, 6, 8], label="width")
        kernel = nn.ValueChoice([3, 5, 7], label="kernel")
        self.point = nn.Conv2d(3, width, 1)
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.point(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("width", "kernel"), [(4, 3), (6, 5), (8, 7)])
def test_a_slice_is_read_in_place(width: int, kernel: int, bias: bool) -> None:
    space = Searched(bias=bias)
    relaxation = OneHot(space.simplify().values())
    make_supernet(space, relaxation)
    relaxation.sample = {"width": width, "kernel": kernel}
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    frozen = space.freeze({"width": width, "kernel": kernel})
    out, expected = space(x), frozen(x)
    torch.testing.assert_close(out, expected)
    assert out.grad_fn is not None
    assert out.grad_fn.name() == "_DwConv2dBackward"
    grad = torch.randn_like(out)
    (weight,) = torch.autograd.grad(out, [space.conv.weight], grad)
    (wanted,) = torch.autograd.grad(expected, [frozen.conv.weight], grad)
    edge = (7 - kernel) // 2
    padded = F.pad(wanted, [edge] * 4 + [0, 0, 0, 8 - width])
    torch.testing.assert_close(weight, padded, atol=1e-4, rtol=1e-4)


def test_a_mixture_of_slices() -> None:
    space = Searched()
    make_supernet(space, evenly(space))
    x = torch.randn(2, 3, 16, 16)
    y = space(x)
    widths = torch.tensor([channel < 4 for channel in range(8)]).float()
    widths = (widths + torch.tensor([channel < 6 for channel in range(8)]) + 1) / 3
    rings = torch.zeros(7, 7)
    for kernel in (3, 5, 7):
        edge = (7 - kernel) // 2
        rings[edge : 7 - edge, edge : 7 - edge] += 1 / 3
    h = space.point(x)
    expected = F.conv2d(h, space.conv.weight * rings, space.conv.bias, padding=3, groups=8) * widths.view(-1, 1, 1)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
