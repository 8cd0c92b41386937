from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import SampleError, UnsupportedError
from hwnas.space import Label
from hwnas.supernet import OneHot, make_supernet


class Net(nn.ModelSpace):
    def __init__(self, features: int = 4) -> None:
        super().__init__()
        self.has_auxiliary_head = nn.ModelParameterChoice([False, True], label="aux")
        if self.has_auxiliary_head is True:
            self.auxiliary_head = nn.LayerChoice([nn.ReLU(), nn.SiLU()], label="head")
            size = nn.ModelParameterChoice([1, 2, 3], default=nn.ModelParameterChoice.LAST(), label="size")
            self.token = nn.Parameter(torch.zeros(size))
        else:
            self.auxiliary_head = None
        depth = nn.ModelParameterChoice(list(range(1, 4)), label="depth")
        self.blocks = nn.Sequential(
            *(nn.LayerChoice([nn.Linear(features, features), nn.Identity()]) for _ in range(depth))
        )
        self.out = nn.Linear(features, nn.ValueChoice([2, 5], label="out"))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(x))


def test_it_gives_a_plain_value() -> None:
    space = Net()
    assert space.has_auxiliary_head is False
    assert space.auxiliary_head is None
    assert len(space.blocks) == 1
    assert space(torch.zeros(3, 4)).shape == (3, 2)


def test_all_dimensions_of_all_variants_are_known() -> None:
    space = Net()
    assert set(space.simplify()) == {"aux", "head", "size", "depth", "layer_1", "layer_2", "layer_3", "out"}
    assert space.default() == {
        "aux": False, "head": 0, "size": 3, "depth": 1, "layer_1": 0, "layer_2": 0, "layer_3": 0, "out": 2,
    }  # fmt: skip
    # Without the head 2 + 4 + 8 ways to fill one to three blocks, with it 2 * 3 times as many; two widths.
    points = list(space.grid(active_only=True))
    assert space.size(active_only=True) == len(points) == (2 + 4 + 8) * (1 + 2 * 3) * 2
    assert space.size() == 2 * 2 * 3 * 3 * 8 * 2


def test_freezing_constructs_the_model_of_the_sample() -> None:
    space = Net()
    for seed in range(20):
        sample = space.random(random_state=seed)
        model = space.freeze(sample)
        assert type(model).__module__ == "frozen"
        assert model(torch.zeros(1, 4)).shape == (1, sample["out"])
        assert len(model.blocks) == sample["depth"]
        kinds = [torch.nn.Linear, torch.nn.Identity]
        assert [type(block) for block in model.blocks] == [
            kinds[sample[f"layer_{i + 1}"]] for i in range(sample["depth"])
        ]
        assert (model.auxiliary_head is not None) == sample["aux"]
        assert not sample["aux"] or model.token.shape == (sample["size"],)
        assert not any(p.is_meta for p in model.parameters())
        assert "_variants" not in vars(model)


def test_the_default_variant_keeps_its_weights_and_others_the_mode() -> None:
    space = Net().eval()
    same = space.freeze(space.default())
    assert torch.equal(same.blocks[0].weight, space.blocks[0][0].weight)
    assert same.blocks[0].weight is not space.blocks[0][0].weight
    other = space.freeze({**space.default(), "depth": 2})
    assert not other.training
    assert not other.blocks[1].training


def test_only_active_labels_are_asked_for() -> None:
    space = Net()
    space.validate({"aux": False, "depth": 1, "layer_1": 0, "out": 2})
    with pytest.raises(SampleError, match="layer_2: the sample has no value"):
        space.validate({"aux": False, "depth": 2, "layer_1": 0, "out": 2})
    with pytest.raises(SampleError, match=r"depth: 7 is not one of the values"):
        space.freeze({"aux": False, "depth": 7, "layer_1": 0, "out": 2})


def test_arguments_of_the_constructor_are_used_again() -> None:
    model = Net(features=6).freeze({"aux": False, "depth": 2, "layer_1": 1, "layer_2": 0, "out": 5})
    assert model.blocks[1].in_features == 6


class Values(nn.ModelSpace):
    """Computes with the values of its tensors while it is constructed."""

    def __init__(self) -> None:
        super().__init__()
        n = nn.ModelParameterChoice([1, 2], label="n")
        self.length = int(torch.ones(n).sum().item())
        self.pick = nn.LayerChoice([nn.Identity() for _ in range(self.length)], label=f"pick{n}")


def test_constructors_that_read_their_tensors_work() -> None:
    space = Values()
    assert set(space.simplify()) == {"n", "pick1", "pick2"}
    assert space.freeze({"n": 2, "pick2": 1}).length == 2


class Outer(nn.ModelSpace, label_prefix="outer"):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Net()
        self.width = nn.ModelParameterChoice((8, 16), default=lambda values: values[1])


def test_a_space_inside_a_space_is_constructed_with_it() -> None:
    space = Outer()
    assert space.width == 16
    assert not space.inner.has_model_parameters
    sample = {**space.default(), "outer/depth": 3, "outer/parameter_1": 8}
    model = space.freeze(sample)
    assert (model.width, len(model.inner.blocks)) == (8, 3)


class Holder(nn.ModelSpace):
    def __init__(self, inner: Net) -> None:
        super().__init__()
        self.inner = inner


def test_a_space_given_to_another_one_keeps_its_own_parameters() -> None:
    space = Holder(Net())
    assert len(space.freeze({**space.default(), "depth": 3}).inner.blocks) == 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda space: pickle.loads(pickle.dumps(space))])
def test_copies_can_be_frozen(copied: Any) -> None:
    assert len(copied(Net()).freeze({**Net().default(), "depth": 2}).blocks) == 2


def build(**options: Any) -> nn.ModelSpace:
    class Small(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.ModelParameterChoice(label="value", **options)

    return Small()


def test_defaults_and_weights() -> None:
    assert build(candidates=["a", "b"], default="b").value == "b"
    assert build(candidates=[None, 1]).value is None
    assert build(candidates=[3, 4], default=nn.ModelParameterChoice.LAST).value == 4
    assert build(candidates=[3, 4], default=nn.ModelParameterChoice.FIRST()).value == 3
    assert {build(candidates=[3, 4], prior=[0, 1]).random(random_state=i)["value"] for i in range(9)} == {4}
    with pytest.raises(ValueError, match="default of categorical 'value': 5 is not one of"):
        build(candidates=[3, 4], default=5)
    with pytest.raises(ValueError, match="has no values"):
        build(candidates=[])


def test_one_label_is_one_parameter() -> None:
    class Twice(nn.ModelSpace):
        def __init__(self, other: list[int]) -> None:
            super().__init__()
            self.values = [nn.ModelParameterChoice([1, 2], label="n"), nn.ModelParameterChoice(other, label=Label("n"))]

    assert Twice([1, 2]).freeze({"n": 2}).values == [2, 2]
    with pytest.raises(ValueError, match="two different model parameters have the label 'n'"):
        Twice([1, 3])


def test_outside_a_space_it_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no space is under construction"):
        nn.ModelParameterChoice([1, 2])


def test_too_many_variants_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.nn.model_parameter_choice.MAX_VARIANTS", 5)
    with pytest.raises(ValueError, match="more than 5 combinations"):
        Net().simplify()


def test_super_nets_refuse_it() -> None:
    for space in (Net(), Holder(Net())):
        relaxation = OneHot(space.simplify().values())
        with pytest.raises(UnsupportedError, match="ModelParameterChoice"):
            make_supernet(space, relaxation)


def test_finding_the_dimensions_takes_no_memory_for_weights() -> None:
    devices = []

    class Wide(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, nn.ModelParameterChoice([2, 4, 8], label="width"))
            devices.append(self.linear.weight.device.type)

    space = Wide()
    assert space.size() == 3
    assert devices == ["cpu", "meta", "meta"]
    assert space.freeze({"width": 8}).linear.weight.device.type == "cpu"
