from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import SampleError
from hwnas.supernet import OneHot, Softmax, make_supernet, supernet_modules


class Times(torch.nn.Module):
    """Repeat the channels and multiply: what a path has passed through can be read from the number."""

    def __init__(self, factor: float, n: int, m: int) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))
        self.n, self.m = n, m

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.n
        return self.factor * x[:, torch.arange(self.m) % self.n]


CANDIDATES = {
    "two": lambda n, m: Times(2.0, n, m),
    "three": lambda n, m: Times(3.0, n, m),
    "none": lambda n, m: Times(0.0, n, m),
}
FACTOR = {"two": 2.0, "three": 3.0, "none": 0.0}


def cell_of(**kwargs: Any) -> nn.NasBench201Cell:
    arguments = {"op_candidates": CANDIDATES, "in_features": 2, "out_features": 4, "label": "c"}
    return nn.NasBench201Cell(**{**arguments, **kwargs})


def expected(weight: dict[str, float], num_tensors: int) -> float:
    """Sum over all paths from the first to the last tensor of the product of the factors."""
    last = num_tensors - 1
    total = 0.0
    for k in range(last):
        for between in itertools.combinations(range(1, last), k):
            product = 1.0
            for i, j in itertools.pairwise([0, *between, last]):
                product *= weight[f"c/{i}_{j}"]
            total += product
    return total


def test_one_choice_for_each_edge() -> None:
    cell = cell_of()
    assert list(cell.simplify()) == ["c/0_1", "c/0_2", "c/1_2", "c/0_3", "c/1_3", "c/2_3"]
    assert all(dimension.values == ["two", "three", "none"] for dimension in cell.simplify().values())
    assert cell.size() == 3**6
    assert sum(isinstance(module, nn.LayerChoice) for module in cell.modules()) == 6


def test_candidates_of_a_list_are_chosen_by_position() -> None:
    cell = cell_of(op_candidates=list(CANDIDATES.values()), num_tensors=2)
    assert list(cell.grid()) == [{"c/0_1": 0}, {"c/0_1": 1}, {"c/0_1": 2}]


@pytest.mark.parametrize("num_tensors", [2, 3, 4, 5])
def test_members_sum_over_all_paths(num_tensors: int) -> None:
    cell = cell_of(num_tensors=num_tensors)
    x = torch.randn(3, 2)
    for seed in range(20):
        sample = cell.random(random_state=seed)
        y = cell.freeze(sample)(x)
        total = expected({label: FACTOR[value] for label, value in sample.items()}, num_tensors)
        torch.testing.assert_close(y, total * x[:, [0, 1, 0, 1]])


def test_unfrozen_it_computes_the_default() -> None:
    cell = cell_of()
    x = torch.randn(3, 2)
    torch.testing.assert_close(cell(x), cell.freeze(cell.default())(x))


def test_members_are_plain_and_share_nothing() -> None:
    cell = cell_of()
    frozen = cell.freeze(cell.random(random_state=0))
    assert not any(b.__module__.startswith("hwnas") for m in frozen.modules() for b in type(m).__mro__)
    assert not any(type(value).__module__.startswith("hwnas") for value in vars(frozen).values())
    assert not {p.data_ptr() for p in cell.parameters()} & {p.data_ptr() for p in frozen.parameters()}
    assert len(list(frozen.parameters())) == 6  # one for each edge: candidates that were not chosen are gone


class Net(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            cell_of(label="cell"), cell_of(label="cell", in_features=4), cell_of(label=None, in_features=4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_cells_of_one_label_choose_alike() -> None:
    space = Net()
    assert len(space.simplify()) == 12
    assert {label.split("/")[0] for label in space.simplify()} == {"cell", "cell_1"}
    first, second, _ = space.freeze(space.random(random_state=1)).body
    assert [p.item() for p in first.parameters()] == [p.item() for p in second.parameters()]


def test_labels_are_checked() -> None:
    cell = cell_of()
    with pytest.raises(SampleError, match="c/1_3"):
        cell.freeze({**cell.default(), "c/1_3": "four"})


def test_a_sampling_supernet_computes_what_the_member_computes() -> None:
    space = Net()
    relaxation = OneHot(space.simplify().values())
    make_supernet(space, relaxation)
    assert len(supernet_modules(space)) == 18
    x = torch.randn(3, 2)
    for seed in range(5):
        sample = Net().random(random_state=seed)
        relaxation.resample(sample)
        torch.testing.assert_close(space(x), space.freeze(sample)(x))


class Around(nn.ModelSpace):
    def __init__(self, part: torch.nn.Module) -> None:
        super().__init__()
        self.part = part


def test_a_differentiable_supernet_mixes_every_edge() -> None:
    cell = cell_of()
    relaxation = Softmax(cell.simplify().values())
    make_supernet(Around(cell), relaxation)
    torch.nn.init.normal_(relaxation.alpha("c/0_2"))
    weight = {
        label: float(relaxation.probabilities(label).detach() @ torch.tensor([2.0, 3.0, 0.0]))
        for label in cell.simplify()
    }
    x = torch.randn(3, 2)
    y = cell(x)
    torch.testing.assert_close(y, expected(weight, 4) * x[:, [0, 1, 0, 1]])
    y.sum().backward()
    assert all(relaxation.alpha(label).grad is not None for label in cell.simplify())
    exported = {label: relaxation.export(label) for label in cell.simplify()}
    assert cell.freeze(exported)(x).shape == (3, 4)


def test_candidates_may_hold_choices() -> None:
    inner = {"lin": lambda n, m: nn.LayerChoice([nn.Linear(n, m), nn.Linear(n, m, bias=False)], label="bias")}
    cell = cell_of(op_candidates=inner)
    assert cell.size() == 2
    assert len(list(cell.freeze({**cell.default(), "bias": 1}).parameters())) == 6


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_tensors": 1}, ValueError, "num_tensors is 1"),
        ({"op_candidates": []}, ValueError, "no op_candidates"),
        ({"op_candidates": {"x": lambda n, m: 5}}, TypeError, "'c/0_1': candidate 'x' is 5"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cell_of(**kwargs)
