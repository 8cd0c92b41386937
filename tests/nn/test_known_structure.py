from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import SampleError
from hwnas.space import ExpressionConstraint
from hwnas.space.walk import Structure


class Body(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.rate = 0.5


class Leaf(torch.nn.Module):
    scale: object = 1.0


class Net(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.pick = nn.LayerChoice([nn.ReLU(), nn.Identity(), nn.SiLU()], label="pick")
        self.body = Body()
        self.leaf = Leaf()
        self.empty = nn.Sequential()
        self.out = nn.Sequential(nn.Linear(2, nn.ValueChoice([1, 2], label="out")))

    def forward(self, x: Tensor) -> Tensor:
        return x


def act(label: str = "new") -> nn.LayerChoice:
    return nn.LayerChoice([nn.ReLU(), nn.SiLU()], label=label)


def replace_child(space: Net) -> None:
    space.body.layers[1] = act()


def add_child(space: Net) -> None:
    space.extra = act()


def insert_child(space: Net) -> None:
    space.body.layers.insert(0, act())


def append_child(space: Net) -> None:
    space.out.append(act())


def append_to_an_empty_container(space: Net) -> None:
    space.empty.append(act())


def set_attribute_of_a_leaf(space: Net) -> None:
    space.leaf.scale = nn.ValueChoice([1.0, 2.0], label="scale")


def delete_child(space: Net) -> None:
    del space.out[0]


def delete_candidate(space: Net) -> None:
    del space.pick[1]


def replace_candidate(space: Net) -> None:
    space.pick[1] = act()


def set_attribute(space: Net) -> None:
    space.body.rate = nn.ValueChoice([0.1, 0.2], label="rate")


def add_constraint(space: Net) -> None:
    space.add_mutable(ExpressionConstraint(nn.ValueChoice([1, 2], label="out") > 1))


CHANGES = [
    replace_child,
    add_child,
    insert_child,
    append_child,
    append_to_an_empty_container,
    set_attribute_of_a_leaf,
    delete_child,
    delete_candidate,
    replace_candidate,
    set_attribute,
    add_constraint,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_the_space_is_noticed(change: Callable[[Net], None]) -> None:
    space = Net()
    before = space.structure()
    assert space.structure() is before
    change(space)
    now, true = space.structure(), Structure(space)
    assert now is not before
    assert {label: d.describe() for label, d in now.dimensions.items()} == {
        label: d.describe() for label, d in true.dimensions.items()
    }
    assert len(now.constraints()) == len(true.constraints())
    assert space.size() == len(list(space.grid()))
    assert all(space.contains(sample) for sample in space.grid())


def test_a_mutable_in_place_of_another_one_is_noticed() -> None:
    space = Net()
    space.body.rate = nn.ValueChoice([0.1, 0.2], label="rate")
    space.structure()
    space.body.rate = nn.ValueChoice([0.1, 0.2, 0.3], label="rate")
    assert space.contains({"pick": 0, "out": 1, "rate": 0.3})


def test_training_keeps_what_is_known() -> None:
    space = Net()
    space.structure()
    optimiser = torch.optim.SGD(space.parameters(), 0.1)
    space.body.layers[0](torch.ones(1, 2)).sum().backward()
    optimiser.step()
    before = space.structure()
    assert space.structure() is before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda space: pickle.loads(pickle.dumps(space))])
def test_copies_look_for_themselves(copied: Callable[[Net], Net]) -> None:
    space = Net()
    space.structure()
    twin = copied(space)
    del twin.pick[2]
    assert (space.size(), twin.size()) == (6, 4)
    assert not twin.contains({"pick": 2, "out": 1})
    assert all(module is not space.pick for module in twin.modules())


def test_a_frozen_model_knows_nothing_of_it() -> None:
    space = Net()
    space.structure()
    model = space.freeze(space.default())
    assert not any(name.startswith("_known") for part in model.modules() for name in vars(part))


def test_wrong_values_and_missing_labels_are_found() -> None:
    space = Net()
    space.validate({"pick": 1, "out": 2})
    with pytest.raises(SampleError, match="out: 3 is not one of the values"):
        space.validate({"pick": 1, "out": 3})
    with pytest.raises(SampleError, match="pick: the sample has no value"):
        space.validate({"out": 1})
    space.add_mutable(ExpressionConstraint(nn.ValueChoice([1, 2], label="out") > 1))
    with pytest.raises(SampleError, match="does not hold"):
        space.validate({"pick": 1, "out": 1})
