"""Operators of the cell spaces: shapes, and what they look at."""

from __future__ import annotations

import pytest
import torch

from hwnas.hub.cell_operators import OPERATORS, FactorizedReduce, narrow_row_then_column


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("side", [8, 7])
def test_shapes(name: str, side: int) -> None:
    x = torch.randn(2, 6, side, side)
    assert OPERATORS[name](6, 1)(x).shape == x.shape
    assert OPERATORS[name](6, 2)(x).shape == (2, 6, (side + 1) // 2, (side + 1) // 2)


def seen_by(operator: torch.nn.Module) -> torch.Tensor:
    """Return which pixels of a 21 x 21 image the middle pixel of the output depends on."""
    for parameter in operator.parameters():
        torch.nn.init.ones_(parameter)
    x = torch.ones(1, 6, 21, 21, requires_grad=True)
    operator.eval()(x)[0, :, 10, 10].sum().backward()
    assert x.grad is not None
    return x.grad[0].abs().sum(0) > 0


def window(height: int, width: int, step: int = 1) -> torch.Tensor:
    pixels = torch.zeros(21, 21, dtype=torch.bool)
    rows, columns = (range(10 - step * (n // 2), 11 + step * (n // 2), step) for n in (height, width))
    pixels[torch.tensor(rows)[:, None], torch.tensor(columns)] = True
    return pixels


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("skip_connect", window(1, 1)),
        ("conv_1x1", window(1, 1)),
        ("conv_3x3", window(3, 3)),
        ("conv_3x1_1x3", window(3, 3)),
        ("conv_7x1_1x7", window(7, 7)),
        ("sep_conv_3x3", window(5, 5)),  # twice
        ("sep_conv_5x5", window(9, 9)),
        ("sep_conv_7x7", window(13, 13)),
        ("dil_conv_3x3", window(3, 3, step=2)),
        ("dil_conv_5x5", window(5, 5, step=2)),
        ("dil_sep_conv_3x3", window(5, 5, step=2)),
        ("avg_pool_3x3", window(3, 3)),
    ],
)
def test_receptive_fields(name: str, expected: torch.Tensor) -> None:
    assert torch.equal(seen_by(OPERATORS[name](6, 1)), expected)


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_maxima(kernel: int) -> None:
    x = torch.zeros(1, 1, 21, 21)
    x[0, 0, 10, 10] = 1
    assert torch.equal(OPERATORS[f"max_pool_{kernel}x{kernel}"](1, 1)(x)[0, 0] > 0, window(kernel, kernel))


def test_averages_are_over_what_lies_inside() -> None:
    x = torch.ones(1, 1, 4, 4)
    assert torch.equal(OPERATORS["avg_pool_3x3"](1, 1)(x), x)


def test_no_connection_is_zero_even_for_infinite_inputs() -> None:
    assert torch.equal(OPERATORS["none"](1, 2)(torch.full((1, 1, 4, 4), torch.inf)), torch.zeros(1, 1, 2, 2))


def test_the_narrow_form_works_on_a_quarter_of_the_channels() -> None:
    operator = narrow_row_then_column(8, 2, kernel=7)
    kernels = [tuple(m.weight.shape) for m in operator.modules() if isinstance(m, torch.nn.Conv2d)]
    assert kernels == [(2, 8, 1, 1), (2, 2, 1, 7), (2, 2, 7, 1), (8, 2, 1, 1)]
    assert operator(torch.randn(2, 8, 7, 7)).shape == (2, 8, 4, 4)
    assert torch.equal(seen_by(narrow_row_then_column(6, 1, kernel=7)), window(7, 7))


@pytest.mark.parametrize("side", [6, 5])
def test_factorized_reduce_reads_even_and_odd_pixels(side: int) -> None:
    reduce = FactorizedReduce(1, 3).eval()
    assert (reduce.even.out_channels, reduce.odd.out_channels) == (1, 2)
    for parameter in (reduce.even.weight, reduce.odd.weight):
        torch.nn.init.ones_(parameter)
    reduce.norm.eps = 0.0
    x = torch.randn(1, 1, side, side)
    even, odd, same = reduce(x)[0]
    rectified = x[0, 0].clamp(min=0)
    torch.testing.assert_close(even, rectified[::2, ::2])
    padded = torch.zeros(side + 1, side + 1)
    padded[:side, :side] = rectified
    torch.testing.assert_close(odd, padded[1::2, 1::2])
    torch.testing.assert_close(same, odd)
