"""What the functions of the compiled module say to arguments of a wrong type or number; of what they check of values
tell the tests of each operator."""

from __future__ import annotations

import math
import re
import sys
from typing import Any

import pytest
import torch

from hwnas.kernels import native

W, X, OUT = torch.tensor([2.0]), torch.tensor([1.0, 3.0]), torch.zeros(2)
GOOD: dict[str, Any] = {
    "dtype": 0,
    "weights": W.data_ptr(),
    "tensors": [X.data_ptr()],
    "out": OUT.data_ptr(),
    "size": 2,
    "threads": 1,
}
NORM: dict[str, Any] = {
    **{"dtype": 0, "weights": 64, "tensors": [64], "normalised": [True], "eps": [0.1], "gamma": 0, "beta": 0},
    **{"shape": [1, 1, 1], "low": 0.0, "high": 1.0, "out": 64, "means": 64, "variances": 64, "threads": 1},
}
NORM_GRADIENTS: dict[str, Any] = {
    **{name: value for name, value in NORM.items() if name != "out"},
    **{"tensors": [64, 64], "normalised": [True, False], "eps": [0.1, 0.1], "low": -math.inf, "high": math.inf},
    **{"grad": 64, "grad_tensors": [64, 64], "grad_weights": 64, "grad_gamma": 0, "grad_beta": 0},
}
SUM_GRADIENTS: dict[str, Any] = {
    **{"dtype": 0, "weights": 64, "tensors": [64, 64], "size": 2, "threads": 1},
    **{"grad": 64, "grad_tensors": [64, 64], "grad_weights": 64},
}
DEPTHWISE: dict[str, Any] = {
    "arguments": (0, False, False, (1, 2, 4, 4), (2, 3, 3), (3, 3), (1, 1), (0, 0), (1, 1)),
    **{"x": 64, "weight": 64, "bias": 0, "y": 64, "threads": 1},
}


@pytest.mark.parametrize("by_position", range(len(GOOD) + 1))
def test_by_position_and_by_name(by_position: int) -> None:
    assert native.CPU is not None
    OUT.zero_()
    names = list(GOOD)
    by_name = {name: GOOD[name] for name in reversed(names[by_position:])}
    native.CPU.mixed_sum(*list(GOOD.values())[:by_position], **by_name)
    assert OUT.tolist() == [2.0, 6.0]


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        (tuple(GOOD.values())[:-1], {}, "mixed_sum: threads is missing"),
        ((), {name: GOOD[name] for name in GOOD if name != "tensors"}, "mixed_sum: tensors is missing"),
        ((*GOOD.values(), 1), {}, "mixed_sum: got 7 arguments, expected 6"),
        ((), GOOD | {"thread": 1}, "mixed_sum: got 7 arguments, expected 6"),
        (tuple(GOOD.values()), {"threads": 1}, "mixed_sum: got 7 arguments, expected 6"),
    ],
)
def test_their_number(arguments: tuple[Any, ...], named: dict[str, Any], message: str) -> None:
    assert native.CPU is not None
    with pytest.raises(TypeError, match=re.escape(message)):
        native.CPU.mixed_sum(*arguments, **named)


@pytest.mark.parametrize(
    ("operator", "good", "change", "message"),
    [
        ("mixed_sum", GOOD, {"size": 2.0}, "size is or holds a float, expected an integer of 64 bits"),
        ("mixed_sum", GOOD, {"size": 1 << 63}, "size is or holds a int, expected an integer of 64 bits"),
        ("mixed_sum", GOOD, {"tensors": 64}, "tensors is or holds a int, expected a sequence"),
        ("mixed_sum", GOOD, {"tensors": [None]}, "tensors is or holds a NoneType, expected an integer"),
        ("mixed_sum", GOOD, {"out": "y"}, "out is or holds a str, expected an integer"),
        ("mixed_bn_sum", NORM, {"eps": ["a"]}, "eps is or holds a str, expected a number"),
        ("mixed_bn_sum", NORM, {"low": None}, "low is or holds a NoneType, expected a number"),
        ("dwconv2d", DEPTHWISE, {"arguments": [1]}, "arguments is or holds a list, expected a tuple"),
        ("dwconv2d", DEPTHWISE, {"arguments": DEPTHWISE["arguments"][:-1]}, "dilation is missing"),
        ("dwconv2d", DEPTHWISE, {"arguments": (*DEPTHWISE["arguments"], 1)}, "got 10 arguments, expected 9"),
        ("select_isa", {}, {"name": 3}, "name is or holds a int, expected a text"),
        ("alike", {"scalars": None}, {"tensors": [X]}, "tensors is or holds a list, expected a tuple"),
    ],
)
def test_their_types(operator: str, good: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"{operator}: {message}"):
        getattr(native.CPU, operator)(**good | change)


@pytest.mark.parametrize(
    ("operator", "good", "change", "message"),
    [
        ("mixed_sum", GOOD, {"threads": 1 << 40}, "threads is 1099511627776, out of range"),
        ("mixed_sum", GOOD, {"weights": -64}, "weights holds -64, which is no address"),
        ("mixed_sum_backward", SUM_GRADIENTS, {"tensors": [64]}, "tensors has 1 entries, expected 2"),
        ("mixed_bn_sum_backward", NORM_GRADIENTS, {"grad_tensors": [64]}, "grad_tensors has 1 entries, expected 2"),
        ("mixed_bn_sum_backward", NORM_GRADIENTS, {"tensors": [64, 0]}, r"tensors\[1\] is a null address$"),
        ("mask_scale", {"dtype": 0, "weight": 64}, {"masks": [0, 0]}, "masks has 2 entries, expected 3"),
        ("dwconv2d", DEPTHWISE, {"arguments": (0, False, False, (1, 2, 4))}, "size has 3 entries, expected 4"),
    ],
)
def test_their_values(operator: str, good: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{operator}: {message}"):
        getattr(native.CPU, operator)(**good | change)


class Unwilling:
    def __bool__(self) -> bool:
        raise LookupError("neither")

    def __index__(self) -> int:
        return 1


def test_an_error_of_an_argument_is_passed_on() -> None:
    assert native.CPU is not None
    with pytest.raises(LookupError, match="neither"):
        native.CPU.mixed_bn_sum(**NORM | {"normalised": [Unwilling()]})


def test_what_stands_for_an_integer_is_one() -> None:
    assert native.CPU is not None
    native.CPU.mixed_sum(**GOOD | {"threads": Unwilling()})


def test_nothing_is_kept_and_nothing_is_lost() -> None:
    assert native.CPU is not None
    calls = [
        lambda: native.CPU.mixed_sum(*GOOD.values()),
        lambda: native.CPU.alike((X,), None),
        lambda: native.CPU.alike((X, 1), None),
        native.CPU.supported_isas,
        native.CPU.current_isa,
        lambda: native.CPU.mixed_sum_of((X,), W, torch.empty_like, 1),
    ]
    for call in calls:
        before = [sys.getrefcount(x) for x in (X, W, None, GOOD["tensors"])]
        results = [call() for _ in range(100)]
        del results
        after = [sys.getrefcount(x) for x in (X, W, None, GOOD["tensors"])]
        assert all(abs(a - b) < 20 for a, b in zip(after, before, strict=True))
