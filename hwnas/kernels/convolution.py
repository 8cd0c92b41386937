"""How to convolve: the options of `dwconv2d`, checked against the tensors that they are for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hwnas.errors import UnsupportedError

Pair = tuple[int, int]

_Size = int | Sequence[int]
_Shape = tuple[int, ...]


class Options(NamedTuple):
    """How to convolve; in this order they are arguments of the operator."""

    kernel_size: Pair
    stride: Pair
    padding: Any  # a pair, or "same" where that is more on the right than on the left
    dilation: Pair
    pre_relu: bool

    def out_size(self, x: Sequence[int]) -> Pair:
        """Return height and width of the output for the shape of an input."""
        # Not in a loop over both: of a small image this would take as long as the work.
        (kh, kw), (sh, sw), (ph, pw), (dh, dw), _ = self
        height, width = x[-2:]
        return (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1

    def start(self, weight: Tensor) -> Pair:
        """Return where the kernel begins inside the full one."""
        full = weight.shape[2:]
        return (full[0] - self.kernel_size[0]) // 2, (full[1] - self.kernel_size[1]) // 2


def checked_options(x: Tensor, weight: Tensor, bias: Tensor | None, *given: Any) -> Options:
    """Return the options of a convolution. Raises an error that names the argument at fault.

    Parameters
    ----------
    x : Tensor, shape (N, C, H, W) or (C, H, W)
        The images.
    weight : Tensor, shape (at least C, 1, height, width)
        The kernels.
    bias : Tensor, shape (weight.shape[0],), optional
        Added to the output.
    *given
        Kernel size, stride, padding, dilation and whether there is a ReLU, as users give them.

    Returns
    -------
    Options
        Pairs of numbers.

    Raises
    ------
    UnsupportedError
        An argument is no tensor of floating-point numbers.
    ValueError
        A shape or an option does not fit.
    """
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor):
            raise UnsupportedError(f"dwconv2d: {name} is a {type(tensor).__name__}, expected a Tensor")
        if not tensor.is_floating_point():
            raise UnsupportedError(f"dwconv2d: {name} is {tensor.dtype}, expected a floating-point type")
    shapes = x.shape, weight.shape, None if bias is None else bias.shape
    if torch.compiler.is_compiling():
        return _options(*shapes, *given)
    try:
        return _known_options(*shapes, *given)
    except TypeError:  # lists, and sizes that are symbols, have no hash
        return _options(*shapes, *given)


def _options(
    x: _Shape,
    weight: _Shape,
    bias: _Shape | None,
    kernel_size: _Size | None,
    stride: _Size,
    padding: _Size | str,
    dilation: _Size,
    pre_relu: bool,
) -> Options:
    _check_shapes(x, weight, bias)
    full = (weight[2], weight[3])
    kernel = full if kernel_size is None else _pair("kernel_size", kernel_size, 1)
    if kernel[0] > full[0] or kernel[1] > full[1]:
        raise ValueError(f"dwconv2d: kernel_size is {kernel}, but those in weight are {full}")
    spacing = _pair("dilation", dilation, 1)
    if not isinstance(padding, str):
        around: Any = _pair("padding", padding, 0)
    elif padding == "valid":
        around = (0, 0)
    elif padding == "same":
        spread = [d * (k - 1) for d, k in zip(spacing, kernel, strict=True)]
        symmetric = all(s % 2 == 0 for s in spread) and stride in (1, (1, 1), [1, 1])
        around = (spread[0] // 2, spread[1] // 2) if symmetric else padding
    else:
        raise ValueError(f"dwconv2d: padding is {padding!r}, expected numbers, 'same' or 'valid'")
    return Options(kernel, _pair("stride", stride, 1), around, spacing, pre_relu)


# A net asks for the same few convolutions again and again.
_known_options = functools.lru_cache(maxsize=1024)(_options)


def _check_shapes(x: _Shape, weight: _Shape, bias: _Shape | None) -> None:
    if len(x) not in (3, 4):
        raise ValueError(f"dwconv2d: x has shape {tuple(x)}, expected (N, C, H, W)")
    if len(weight) != 4 or weight[1] != 1:
        raise ValueError(
            f"dwconv2d: weight has shape {tuple(weight)}, expected (channels, 1, height, width): one input channel "
            "for each output channel"
        )
    if x[-3] > weight[0]:
        raise ValueError(f"dwconv2d: x has {x[-3]} channels, weight has kernels for {weight[0]} only")
    if bias is not None and tuple(bias) != (weight[0],):
        raise ValueError(f"dwconv2d: bias has shape {tuple(bias)}, expected ({weight[0]},), as weight has")


def _pair(name: str, value: _Size, least: int) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"dwconv2d: {name} is {value!r}, expected one or two integers of at least {least}")
    return pair[0], pair[1]
