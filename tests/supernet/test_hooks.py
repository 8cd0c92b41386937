from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import UnsupportedError
from hwnas.space import Mutable
from hwnas.supernet import (
    DEFAULT_HOOKS,
    BaseSuperNetModule,
    MixedLayer,
    OneHot,
    Softmax,
    is_supernet,
    make_supernet,
    supernet_modules,
)


class Net(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.LayerChoice([nn.ReLU(), nn.LayerChoice([nn.Tanh(), nn.ELU()], label="inner")], label="act")
        self.same = self.act
        self.inside = nn.Sequential(self.act, nn.Linear(nn.ValueChoice([2, 3], label="w"), 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.same(self.act(x))


def relaxation_of(space: nn.ModelSpace) -> OneHot:
    return OneHot(space.simplify().values())


def test_a_module_held_twice_is_replaced_once() -> None:
    space = Net()
    make_supernet(space, relaxation_of(space))
    assert isinstance(space.act, MixedLayer)
    assert space.act is space.same is space.inside[0]
    assert len(supernet_modules(space)) == 3


def test_the_root_is_never_replaced() -> None:
    space, seen = Net(), []

    def hook(module: nn.Module, name: str, memo: dict[str, Any], kwargs: dict[str, Any]) -> bool:
        seen.append(name)
        return False

    assert make_supernet(space, relaxation_of(space), [hook, *DEFAULT_HOOKS]) is space
    assert type(space) is Net
    assert "" not in seen
    assert seen == ["act", "act.candidates", "act.candidates.0", "act.candidates.1",
                    "act.candidates.1.candidates", "act.candidates.1.candidates.0",
                    "act.candidates.1.candidates.1", "inside", "inside.1"]  # fmt: skip


class Replacement(MixedLayer):
    pass


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (lambda m, r: Replacement.adopt(m, r), Replacement),
        (lambda m, r: (Replacement.adopt(m, r), True), Replacement),
        (lambda m, r: (Replacement.adopt(m, r), False), Replacement),  # later hooks leave it alone
        (lambda m, r: False, MixedLayer),
        (lambda m, r: None, MixedLayer),
        (lambda m, r: (None, False), MixedLayer),
        (lambda m, r: True, nn.LayerChoice),
        (lambda m, r: (None, True), nn.LayerChoice),
    ],
)
def test_every_result_of_a_hook(result: Any, kind: type) -> None:
    space = Net()

    def hook(module: nn.Module, name: str, memo: dict[str, Any], kwargs: dict[str, Any]) -> Any:
        memo["shared"] = memo.get("shared", 0) + 1
        assert kwargs["extra"] == 5
        return result(module, kwargs["relaxation"]) if type(module) is nn.LayerChoice else False

    make_supernet(space, relaxation_of(space), [hook, *DEFAULT_HOOKS], extra=5)
    assert type(space.act) is kind


def test_a_result_that_is_none() -> None:
    space = Net()
    with pytest.raises(TypeError, match=r"act: mutation hook .* returned 'yes'"):
        make_supernet(space, relaxation_of(space), [lambda *_: "yes", *DEFAULT_HOOKS])  # type: ignore[list-item]


def test_a_replacement_outside_of_the_hierarchy_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    def identity(module: nn.Module, *_: Any) -> nn.Module | None:
        return torch.nn.Identity() if isinstance(module, nn.LayerChoice) else None

    space = Net()
    with caplog.at_level(logging.WARNING):
        make_supernet(space, relaxation_of(space), [identity, *DEFAULT_HOOKS])
    assert "act: the replacement Identity is no BaseSuperNetModule" in caplog.text


class Gate(nn.MutableModule):
    """A primitive that no hook knows."""

    def __init__(self) -> None:
        super().__init__()
        self.on = nn.ValueChoice([True, False], label="on")

    def forward(self, x: Tensor) -> Tensor:
        return x if self.on() else 0 * x


class Gated(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Gate())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class MixedGate(BaseSuperNetModule, Gate):
    def own_mutables(self) -> Iterator[Mutable]:
        yield self.on

    def forward(self, x: Tensor) -> Tensor:
        mixture = self.relaxation.mixture(self.on)
        return mixture.combine([x if value else 0 * x for value in mixture.values])

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        return cls.adopt(module, mutate_kwargs["relaxation"]) if type(module) is Gate else False


@pytest.mark.parametrize("kind", [OneHot, Softmax])
def test_whatever_is_left_is_refused(kind: Any) -> None:
    space = Gated()
    with pytest.raises(UnsupportedError, match=r"body\.0: Gate decides on.*mutation_hooks"):
        make_supernet(space, kind(space.simplify().values()))


def test_an_own_primitive_becomes_searchable_and_can_be_frozen() -> None:
    space = Gated()
    relaxation = Softmax(space.simplify().values())
    make_supernet(space, relaxation, [MixedGate.mutate, *DEFAULT_HOOKS])
    x = torch.ones(2)
    torch.testing.assert_close(space(x), relaxation.probabilities("on")[0] * x)
    assert space.freeze({"on": False})(x).sum() == 0
    assert not any(
        b.__module__.startswith("hwnas") for m in space.freeze({"on": True}).modules() for b in type(m).__mro__
    )


def test_a_class_derived_from_a_twin_is_not_replaced_by_stealth() -> None:
    class Conv(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    class Derived(nn.ModelSpace):
        def __init__(self, width: Any) -> None:
            super().__init__()
            self.conv = Conv(1, width, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    space = Derived(nn.ValueChoice([2, 3], label="w"))
    with pytest.raises(UnsupportedError, match=r"conv: Conv decides w"):
        make_supernet(space, relaxation_of(space))
    plain = Derived(2)
    make_supernet(plain, relaxation_of(plain))
    assert type(plain.conv) is Conv


def test_is_supernet() -> None:
    space = Net()
    assert not is_supernet(space)
    make_supernet(space, relaxation_of(space))
    assert is_supernet(space)


def test_the_spec_of_each_module_is_its_own() -> None:
    space = Net()
    make_supernet(space, relaxation_of(space))
    assert list(space.act.search_space_spec()) == ["act"]
    assert list(space.inside[1].search_space_spec()) == ["w"]
    assert list(space.act.simplify()) == ["act", "inner"]


def test_the_relaxation_is_no_part_of_the_state() -> None:
    space = Net()
    relaxation = Softmax(space.simplify().values())
    make_supernet(space, relaxation)
    assert not any("alpha" in name for name in space.state_dict())
    assert not any(parameter is alpha for parameter in space.parameters() for alpha in relaxation.parameters())


def test_the_base_class_says_what_is_missing() -> None:
    class Empty(BaseSuperNetModule):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty.*own_mutables"):
        Empty().search_space_spec()
    with pytest.raises(NotImplementedError, match=r"Empty.*mutate"):
        Empty.mutate(nn.ReLU(), "", {}, {})
