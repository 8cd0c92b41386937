from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import SampleError


@pytest.fixture
def inputs() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3) for _ in range(4)]


@pytest.mark.parametrize("chosen", [[0], [3], [0, 2], [1, 2, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("reduction", ["sum", "mean", "concat", "none"])
def test_frozen_reduces_what_was_chosen(inputs: list[Tensor], chosen: list[int], reduction: Any) -> None:
    frozen = nn.InputChoice(4, None, reduction, label="in").freeze({"in": chosen})
    taken = [inputs[i] for i in chosen]
    stacked = torch.stack(taken)
    expected = {"sum": stacked.sum(0), "mean": stacked.mean(0), "concat": torch.cat(taken, 1), "none": taken}[reduction]
    torch.testing.assert_close(frozen(inputs), expected)
    assert isinstance(frozen, torch.nn.Module)
    assert not any(base.__module__.startswith("hwnas") for base in type(frozen).__mro__)


def test_the_sample_is_always_a_list() -> None:
    choice = nn.InputChoice(3, label="in")
    assert choice.default() == {"in": [0]}
    assert isinstance(choice.random(random_state=0)["in"], list)
    with pytest.raises(SampleError, match="not a list"):
        choice.freeze({"in": 1})
    with pytest.raises(SampleError, match="in"):
        choice.freeze({"in": [0, 1]})


def test_any_subset_when_the_number_is_open() -> None:
    choice = nn.InputChoice(3, n_chosen=None, label="in")
    assert choice.size() == 7  # all but the empty one
    assert choice.default() == {"in": [0, 1, 2]}


def test_unfrozen_forward_runs_the_default(inputs: list[Tensor]) -> None:
    torch.testing.assert_close(nn.InputChoice(4, 2, label="in")(inputs), inputs[0] + inputs[1])
    torch.testing.assert_close(nn.InputChoice(4, None, "mean", label="in")(inputs), torch.stack(inputs).mean(0))


def test_weights_and_errors(inputs: list[Tensor]) -> None:
    choice = nn.InputChoice(3, 1, prior=[0, 1, 0], label="in")
    assert choice.random(random_state=0) == {"in": [1]}
    with pytest.raises(ValueError, match="both"):
        nn.InputChoice(2, prior=[0.5, 0.5], weights=[0.5, 0.5])
    with pytest.raises(ValueError, match=r"reduction is 'max'; expected one of sum, mean, concat, none"):
        nn.InputChoice(2, reduction="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_chosen"):
        nn.InputChoice(2, 3)
    with pytest.raises(ValueError, match=r"'in': got 4 tensors, expected 3"):
        choice(inputs)


def test_the_number_of_tensors_may_be_left_to_the_first_run() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.switch = nn.InputChoice(n_chosen=1, label="switch")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.switch([x, 10 * x, 100 * x])

    space = Net()
    with pytest.raises(ValueError, match="'switch': it is not known from how many tensors"):
        space.simplify()
    assert space(torch.ones(1)) == 1
    assert space.simplify()["switch"].values == [0, 1, 2]
    assert space.freeze({"switch": [2]})(torch.ones(1)) == 100
    with pytest.raises(ValueError, match="got 2 tensors, expected 3"):
        space.switch([torch.ones(1)] * 2)
    assert nn.InputChoice(prior=[0.5, 0.5], label="w").n_candidates == 2
