"""Separable convolutions in super-nets, as one call, against the plain modules that they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

import hwnas.nn as nn
from hwnas.hub.cell_operators import separable
from hwnas.kernels import native
from hwnas.supernet import Softmax, make_supernet
from hwnas.supernet.fused import DepthwiseConv2d
from hwnas.supernet.fused_sequence import run_fused


class Space(nn.ModelSpace):
    def __init__(self, made: torch.nn.Module) -> None:
        super().__init__()
        self.layer = nn.LayerChoice({"conv": made, "skip": torch.nn.Identity()}, label="layer")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def depthwise(**options: Any) -> torch.nn.Conv2d:
    return torch.nn.Conv2d(4, 4, 3, **{"padding": 1, "groups": 4, "bias": False} | options)


def pointwise(outputs: int = 6, **options: Any) -> torch.nn.Conv2d:
    return torch.nn.Conv2d(4, outputs, **{"kernel_size": 1, "bias": False} | options)


def supernet(*modules: torch.nn.Module) -> tuple[Any, torch.nn.Module]:
    """Return a sequence as a super-net runs it, and a copy of it as it was before."""
    made = torch.nn.Sequential(*modules)
    plain = copy.deepcopy(made)
    space = Space(made)
    make_supernet(space, Softmax(space.simplify().values()))
    return space.layer.candidate("conv"), plain


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 4, 8, 8, dtype=dtype, requires_grad=True)


def same(actual: torch.nn.Module, plain: torch.nn.Module, x: Tensor, tolerance: float = 1e-4) -> None:
    """Compare outputs and all gradients."""
    out, expected = run_fused(actual, x), plain(x)
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    grad = torch.randn_like(expected)
    grads = torch.autograd.grad(out, [x, *actual.parameters()], grad)
    wanted = torch.autograd.grad(expected, [x, *plain.parameters()], grad)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """List whether each call that runs both convolutions runs a ReLU, too."""
    calls: list[bool] = []
    original = DepthwiseConv2d.before_pointwise

    def counting(self: DepthwiseConv2d, point: torch.nn.Conv2d, x: Tensor, pre_relu: bool) -> Tensor:
        calls.append(pre_relu)
        return original(self, point, x, pre_relu)

    monkeypatch.setattr(DepthwiseConv2d, "before_pointwise", counting)
    return calls


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_operator_of_a_cell(stride: int, training: bool, memory_format: Any, fused: list[bool]) -> None:
    candidate, plain = supernet(separable(4, stride, kernel=5))
    x = images().detach().contiguous(memory_format=memory_format).requires_grad_()
    same(candidate.train(training), plain.train(training), x)
    assert fused == [True, False]  # the second ReLU runs together with the batch normalisation before it
    for (name, a), (_, b) in zip(candidate.state_dict().items(), plain.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize(
    ("before", "pre_relu"),
    [([], False), ([torch.nn.Identity()], False), ([torch.nn.ReLU()], True), ([torch.nn.ReLU6()], False)],
)
def test_what_stands_before_and_behind(before: list[torch.nn.Module], pre_relu: bool, fused: list[bool]) -> None:
    for behind in ([], [torch.nn.ReLU()], [torch.nn.BatchNorm2d(6), torch.nn.ReLU()]):
        same(*supernet(*before, depthwise(dilation=2, padding=2), pointwise(), *behind), images())
        assert fused.pop() == pre_relu
        assert not fused


def test_a_relu_that_works_in_place_still_does(fused: list[bool]) -> None:
    candidate, plain = supernet(torch.nn.ReLU(inplace=True), depthwise(), pointwise())
    x = images().detach()
    y = x.clone()
    torch.testing.assert_close(run_fused(candidate, x), plain(y))
    torch.testing.assert_close(x, y)
    assert fused == [False]


OTHERS: dict[str, Callable[[], list[torch.nn.Module]]] = {
    "bias of the depthwise": lambda: [depthwise(bias=True), pointwise()],
    "bias of the pointwise": lambda: [depthwise(), pointwise(bias=True)],
    "depthwise padded by name": lambda: [depthwise(padding="same"), pointwise()],
    "depthwise padded otherwise": lambda: [depthwise(padding_mode="reflect"), pointwise()],
    "kernel": lambda: [depthwise(), pointwise(kernel_size=(1, 2))],
    "stride": lambda: [depthwise(), pointwise(stride=(1, 2))],
    "padding": lambda: [depthwise(), pointwise(padding=(1, 0))],
    "groups": lambda: [depthwise(), pointwise(groups=2)],
    "another depthwise": lambda: [depthwise(), pointwise(4, groups=4)],
    "something between": lambda: [depthwise(), torch.nn.ReLU(), pointwise()],
    "transposed": lambda: [depthwise(), torch.nn.ConvTranspose2d(4, 6, 1, bias=False)],
    "many channels": lambda: [depthwise(), pointwise((1 << 14) + 1)],
}


@pytest.mark.parametrize("with_relu", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_run_by_themselves(name: str, with_relu: bool, fused: list[bool]) -> None:
    same(*supernet(*[torch.nn.ReLU()] * with_relu, *OTHERS[name]()), images(), 1e-3)
    assert not fused


@pytest.mark.parametrize("padding", ["valid", "same", 0])
def test_a_pointwise_convolution_is_not_padded(padding: Any, fused: list[bool]) -> None:
    same(*supernet(depthwise(), pointwise(padding=padding)), images())
    assert fused == [False]


def test_as_many_channels_as_the_kernel_is_faster_at(fused: list[bool]) -> None:
    same(*supernet(depthwise(), pointwise(1 << 14)), images(), 1e-3)
    assert fused == [False]


def hook(*_: Any) -> None:
    pass


WATCHERS: dict[str, Callable[[torch.nn.Module], Any]] = {
    "forward": lambda module: module.register_forward_hook(hook),
    "backward": lambda module: module.register_full_backward_hook(hook),
    "exchanged": lambda module: setattr(module, "forward", module.forward),
    "compiled": lambda module: setattr(module, "_compiled_call_impl", module._call_impl),
}


@pytest.mark.parametrize(("position", "left"), [(0, [False]), (1, []), (2, [])])
@pytest.mark.parametrize("kind", WATCHERS)
def test_modules_that_are_watched_run_by_themselves(
    kind: str, position: int, left: list[bool], fused: list[bool]
) -> None:
    candidate, plain = supernet(torch.nn.ReLU(), depthwise(), pointwise())
    WATCHERS[kind](candidate[position])
    same(candidate, plain, images())
    assert fused == left


def test_hooks_on_all_modules(fused: list[bool]) -> None:
    candidate, plain = supernet(depthwise(), pointwise())
    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        same(candidate, plain, images())
    finally:
        handle.remove()
    assert not fused


@pytest.mark.parametrize("position", [0, 1])
def test_parametrised_weights(position: int, fused: list[bool]) -> None:
    class Doubled(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    candidate, plain = supernet(depthwise(), pointwise())
    for sequence in (candidate, plain):
        parametrize.register_parametrization(sequence[position], "weight", Doubled())
    same(candidate, plain, images())
    assert not fused


def test_classes_with_code_of_their_own(fused: list[bool]) -> None:
    class Own(torch.nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    same(*supernet(depthwise(), Own(4, 6, 1, bias=False)), images())
    assert not fused


def test_what_the_kernel_cannot_take() -> None:
    candidate, plain = supernet(torch.nn.ReLU(), depthwise(), pointwise())
    same(candidate.double(), plain.double(), images(torch.float64))
    candidate, plain = candidate.float(), plain.float()
    with native.disabled():
        same(candidate, plain, images())
    with torch.autocast("cpu", torch.bfloat16):
        assert run_fused(candidate, images()).dtype == torch.bfloat16
    alone = images()[0].detach()
    torch.testing.assert_close(run_fused(candidate, alone), plain(alone))


def test_a_wrong_number_of_channels_is_the_error_of_pytorch(fused: list[bool]) -> None:
    candidate, _ = supernet(depthwise(), torch.nn.Conv2d(3, 6, 1, bias=False))
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        run_fused(candidate, images())
    candidate, _ = supernet(depthwise(), pointwise())
    with pytest.raises(RuntimeError, match="expected input"):
        run_fused(candidate, torch.rand(1, 3, 8, 8))
    assert not fused


def test_gradients_of_gradients(fused: list[bool]) -> None:
    candidate, plain = supernet(torch.nn.ReLU(), depthwise(), pointwise())
    x = images()
    found = []
    for run in (lambda x: run_fused(candidate, x), plain):
        (grad,) = torch.autograd.grad(run(x).square().sum(), [x], create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), [x])[0])
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-4)
    assert fused == [True]


def test_an_exported_program_knows_only_pytorch(fused: list[bool]) -> None:
    candidate, _ = supernet(torch.nn.ReLU(), depthwise(), pointwise())
    program = torch.export.export(candidate, (images().detach(),))
    assert not any("hwnas" in str(node.target) for node in program.graph.nodes)
    assert not fused


@pytest.mark.slow
def test_compiled_in_one_graph(fused: list[bool]) -> None:
    candidate, plain = supernet(torch.nn.ReLU(), depthwise(), pointwise())
    compiled = torch.compile(lambda x: candidate(x), fullgraph=True, backend="aot_eager")
    x = images()
    torch.testing.assert_close(compiled(x), plain(x))
