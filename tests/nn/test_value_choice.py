from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn


def test_called_in_forward_it_is_the_default() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.times = nn.ValueChoice([2, 3], default=3, label="times")

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.times()):
                x = x * 2
            return x

    space = Net()
    assert space(torch.ones(1)) == 8
    assert space.freeze({"times": 2})(torch.ones(1)) == 4
    space.times.read_with(lambda choice: 1)
    assert space(torch.ones(1)) == 2
    space.times.read_with(None)
    assert space(torch.ones(1)) == 8


def test_the_older_interface() -> None:
    a, b = nn.ValueChoice([1, 2], label="a"), nn.ValueChoice([3, 4], prior=[0.25, 0.75], label="b")
    assert b.candidates == b.all_options() == [3, 4]
    assert b.weights == [0.25, 0.75]
    assert a.inner_choices() == [a]
    assert nn.ValueChoice.max(a, b).evaluate([2, 3]) == 3
    assert nn.ValueChoice.min([a, b, 2]).evaluate({"a": 1, "b": 3}) == 1
    assert nn.ValueChoice.condition(a < 2, b, 10).evaluate({"a": 2, "b": 3}) == 10
    assert nn.ValueChoice.to_int(a * 1.7).evaluate([2]) == 3
    assert nn.ValueChoice.to_float(a).evaluate([2]) == 2.0
    with pytest.raises(ValueError, match="both"):
        nn.ValueChoice([1, 2], weights=[0.5, 0.5], prior=[0.5, 0.5])


def test_choices_in_lists_and_dictionaries_are_dimensions() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.scales = [
                nn.ValueChoice([1.0, 2.0], label="a"),
                (nn.ValueChoice([3.0, 5.0], label="b"), 7.0),
            ]
            self.named = {"c": nn.ValueChoice([0.5, 0.25], label="c")}

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scales[0]() * self.scales[1][0]() * self.named["c"]()

    space = Net()
    assert list(space.simplify()) == ["a", "b", "c"]
    assert space(torch.ones(1)) == 1.5
    assert space.freeze({"a": 2.0, "b": 5.0, "c": 0.25})(torch.ones(1)) == 2.5
