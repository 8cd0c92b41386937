from __future__ import annotations

from typing import Any

import pytest
import torch

import hwnas.nn as nn
from hwnas.errors import SampleError


def block() -> nn.Module:
    return nn.Sequential(torch.nn.Linear(3, 3), nn.LayerChoice([nn.ReLU(), nn.Tanh()], label="act"))


def test_a_module_is_copied_and_its_choices_are_shared() -> None:
    body = nn.Repeat(block(), (1, 3), label="depth")
    assert list(body.simplify()) == ["depth", "act"]
    assert len({p.data_ptr() for p in body.parameters()}) == 6  # three weights, three biases
    frozen = body.freeze({"depth": 2, "act": 1})
    assert [type(b[1]) for b in frozen] == [torch.nn.Tanh] * 2
    assert not torch.equal(frozen[0][0].weight, torch.zeros(3, 3))


def test_a_callable_receives_the_position() -> None:
    body = nn.Repeat(lambda i: torch.nn.Linear(3 if i == 0 else 2 * i, 2 * (i + 1)), 3)
    assert [b.out_features for b in body] == [2, 4, 6]
    assert body(torch.zeros(1, 3)).shape == (1, 6)


def test_a_sequence_gives_every_block() -> None:
    blocks = [nn.ReLU(), lambda i: torch.nn.Linear(i + 1, 2)]
    body = nn.Repeat(blocks, (1, 2), label="depth")
    assert [type(b) for b in body.freeze({"depth": 2})] == [torch.nn.ReLU, torch.nn.Linear]
    with pytest.raises(ValueError, match="2 blocks for a largest depth of 3"):
        nn.Repeat(blocks, (1, 3))


def test_the_sample_is_the_real_depth() -> None:
    body = nn.Repeat(nn.ReLU(), (2, 4), label="depth")
    assert [body.freeze({"depth": d}).__len__() for d in (2, 3, 4)] == [2, 3, 4]
    assert body.default() == {"depth": 2}
    with pytest.raises(SampleError, match=r"depth.*5 is not one of"):
        body.freeze({"depth": 5})


def test_depth_zero_is_the_identity() -> None:
    body = nn.Repeat(torch.nn.Linear(3, 3), (0, 2), label="depth")
    x = torch.randn(2, 3)
    torch.testing.assert_close(body.freeze({"depth": 0})(x), x)
    torch.testing.assert_close(body(x), x)  # zero is the default


@pytest.mark.parametrize(
    ("depth", "given", "expected"),
    [
        (2, {}, 2),
        (nn.ValueChoice([1, 3, 5], label="d"), {"d": 5}, 5),
        (nn.ValueChoice([1, 2], label="d") * 2 + 1, {"d": 2}, 5),
        (nn.ValueChoice([1, 2], label="d") + nn.ValueChoice([0, 3], label="e"), {"d": 1, "e": 3}, 4),
    ],
)
def test_every_kind_of_depth(depth: Any, given: dict[str, int], expected: int) -> None:
    body = nn.Repeat(nn.ReLU(), depth)
    assert len(body.freeze(given)) == expected
    assert len(body) == body.max_depth >= expected


def test_only_the_first_blocks_are_active() -> None:
    body = nn.Repeat(lambda i: nn.LayerChoice([nn.ReLU(), nn.Tanh()], label=f"act{i}"), (0, 2), label="depth")
    assert body.contains({"depth": 0})
    assert body.contains({"depth": 1, "act0": 1})
    with pytest.raises(SampleError, match="act1"):
        body.freeze({"depth": 2, "act0": 1})
    assert body.size(active_only=True) == 1 + 2 + 4


@pytest.mark.parametrize(
    "depth", [-1, (2, 1), (-1, 2), nn.ValueChoice([1, -1], label="d"), nn.ValueChoice([0.5], label="d")]
)
def test_bad_depths(depth: Any) -> None:
    with pytest.raises(ValueError, match="depth"):
        nn.Repeat(nn.ReLU(), depth)


def test_indexing() -> None:
    body = nn.Repeat(lambda i: torch.nn.Linear(1, i + 1), 2)
    assert body[1].out_features == 2
    assert body[-1] is list(body)[1]
