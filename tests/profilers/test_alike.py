"""Modules that compute the same, and those that may not."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from hwnas.profilers.alike import arguments_of, structure_of


def changed(change: Callable[[nn.Sequential], Any]) -> nn.Sequential:
    """Give a network after a change."""
    net = network()
    change(net)
    return net


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=(1, 1)), nn.BatchNorm2d(8), nn.Dropout(0.5))


class Other(nn.Dropout):
    """Has all that `nn.Dropout` has."""


def nothing(*_: Any) -> None:
    """Hook that changes nothing."""


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "training": lambda net: net[2].eval(),
    "a plain value": lambda net: setattr(net[2], "p", 0.4),
    "inside a tuple": lambda net: setattr(net[0], "padding", (1, 2)),
    "a list for a tuple": lambda net: setattr(net[0], "padding", [1, 1]),
    "a new attribute": lambda net: setattr(net[0], "extra", None),
    "a dictionary": lambda net: setattr(net[0], "extra", {"a": 1}),
    "a forward of its own": lambda net: setattr(net[0], "forward", lambda x: x),
    "a shape": lambda net: net[0].register_parameter("bias", nn.Parameter(torch.zeros(1))),
    "the type of a parameter": lambda net: net[0].double(),
    "whether a parameter learns": lambda net: net[0].requires_grad_(False),
    "a parameter that is missing": lambda net: net[0].register_parameter("bias", None),
    "a buffer that is missing": lambda net: net[1].register_buffer("running_mean", None),
    "a class": lambda net: net.__setitem__(2, Other(0.5)),
    "a module more": lambda net: net.append(nn.ReLU()),
    "the name of a module": lambda net: net.register_module("3", net._modules.pop("2")),
    "a hook before": lambda net: net[0].register_forward_pre_hook(nothing),
    "a hook behind": lambda net: net[0].register_forward_hook(nothing),
}


def test_equal_modules_have_equal_structures() -> None:
    assert structure_of(network()) == structure_of(network())
    assert hash(structure_of(network())) == hash(structure_of(network()))
    values = changed(lambda net: net[0].weight.data.zero_())
    assert structure_of(values) == structure_of(network())


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_may_change_the_result_makes_a_difference(name: str) -> None:
    assert structure_of(changed(CHANGES[name])) != structure_of(network())


def test_one_hook_on_two_modules_is_the_same() -> None:
    one, other = (changed(lambda net: net[0].register_forward_hook(nothing)) for _ in range(2))
    assert structure_of(one) == structure_of(other)


def test_numbers_that_are_equal_but_of_other_types_differ() -> None:
    kinds = {structure_of(changed(lambda net, value=value: setattr(net[2], "p", value))) for value in (1, 1.0, True)}
    assert len(kinds) == 3


def test_objects_are_equal_to_themselves_only() -> None:
    shared = object()

    def holding(value: Any) -> Any:
        return structure_of(changed(lambda net: setattr(net[0], "extra", value)))

    kept = [object(), object()]  # both alive, so that they are not at one address
    assert holding(shared) == holding(shared)
    assert holding([shared]) == holding([shared])
    assert holding(kept[0]) != holding(kept[1])
    assert holding({"a": 1}) == holding({"a": 1})
    assert holding({"a": 1}) != holding({"b": 1})
    assert holding({"a": 1}) != holding((("a", 1),))
    assert holding({}) != holding(())
    assert holding(torch.Size([1])) != holding((1,))


def test_functions_with_the_same_arguments_filled_in() -> None:
    def make(*_: Any, **__: Any) -> None:
        """Make nothing."""

    assert arguments_of(make) == arguments_of(make)
    assert arguments_of(partial(make, 1, a=[2])) == arguments_of(partial(make, 1, a=[2]))
    found = {
        arguments_of(each)
        for each in (make, math.sin, partial(make), partial(make, 1), partial(make, a=1), partial(math.sin, 1))
    }
    assert len(found) == 6
