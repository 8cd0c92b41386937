"""The block that mobile networks share, against its definition written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import hwnas.nn as nn
from hwnas.hub.inverted_bottleneck import InvertedBottleneck, SqueezeExcite, make_divisible


def rounded(value: float, divisor: int) -> int:
    """The rule in words: the nearest multiple, at least one; the next one where more than a tenth would be lost."""
    nearest = max(1, int(value / divisor + 0.5)) * divisor
    return nearest + divisor if nearest < 0.9 * value else nearest


@pytest.mark.parametrize("divisor", [4, 8, 10])
def test_widths_are_rounded_to_multiples(divisor: int) -> None:
    values = [i / 8 for i in range(1, 3000)]
    assert [make_divisible(value, divisor) for value in values] == [rounded(value, divisor) for value in values]


def test_a_width_that_is_chosen_is_rounded_alike() -> None:
    multiplier = nn.ValueChoice([0.35, 0.5, 0.75, 1.0, 1.4], label="m")
    for width in (8, 16, 24, 80, 112):
        expression = make_divisible(make_divisible(width * multiplier) * 2.3)
        for value in multiplier.candidates:
            assert expression.evaluate({"m": value}) == rounded(rounded(width * value, 8) * 2.3, 8)


def test_squeeze_and_excitation_weighs_channels() -> None:
    module = SqueezeExcite(64).eval()
    x = torch.randn(2, 64, 5, 3)
    w1, w2 = module.reduce.weight[:, :, 0, 0], module.restore.weight[:, :, 0, 0]
    assert w1.shape == (16, 64)
    means = torch.stack([image.flatten(1).mean(1) for image in x])
    inner = torch.clamp(means @ w1.T + module.reduce.bias, min=0)
    weights = torch.clamp((inner @ w2.T + module.restore.bias + 3) / 6, 0, 1)
    torch.testing.assert_close(module(x), x * weights[:, :, None, None])


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("expanded", [False, True])
def test_the_block_is_expansion_depthwise_projection(shortcut: bool, expanded: bool) -> None:
    out = 6 if shortcut else 4
    block = InvertedBottleneck(
        6,
        out,
        12 if expanded else None,
        5,
        stride=1,
        shortcut=shortcut,
        norm=nn.BatchNorm2d,
        activation=nn.ReLU6,
        squeeze=nn.Tanh(),
    )
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
    block.eval()
    x = torch.randn(2, 6, 7, 7)
    convs = [module for module in block.modules() if isinstance(module, torch.nn.Conv2d)]
    norms = [module for module in block.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    y = x
    if expanded:
        y = F.relu6(norms[0](F.conv2d(y, convs[0].weight)))
    y = F.relu6(norms[-2](F.conv2d(y, convs[-2].weight, padding=2, groups=y.shape[1])))
    y = norms[-1](F.conv2d(y.tanh(), convs[-1].weight))
    assert len(convs) == len(norms) == (3 if expanded else 2)
    torch.testing.assert_close(block(x), x + y if shortcut else y)


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_a_stride_halves_the_image(kernel: int, size: int) -> None:
    options = {"norm": nn.BatchNorm2d, "activation": nn.ReLU, "shortcut": False}
    block = InvertedBottleneck(2, 3, 4, kernel, stride=2, **options).eval()
    assert block(torch.zeros(1, 2, size, size)).shape == (1, 3, (size + 1) // 2, (size + 1) // 2)
