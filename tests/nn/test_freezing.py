"""A frozen model is plain PyTorch: nothing of the library, nothing of the space, everything of the user."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import SampleError
from hwnas.space import ExpressionConstraint


class Head(nn.ModelSpace):
    """A space inside a space, with a width that it is given."""

    def __init__(self, width: Any) -> None:
        super().__init__()
        self.norm = nn.LayerChoice({"norm": nn.Identity(), "tanh": nn.Tanh()}, label="norm")
        self.linear = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class Scaled(nn.Module):
    """A user's module that reads choices in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.ValueChoice([1.0, 2.5], label="factor")
        self.register_buffer("shift", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor() + self.shift


class Base(nn.ModelSpace):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Net(Base, label_prefix="net"):
    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([4, 6], label="width")
        self.kernels = [nn.ValueChoice([1, 3], label="kernel"), {"pad": (width, 3)}]
        self.stem = nn.Conv2d(3, width, self.kernels[0], padding=self.kernels[0] // 2)
        self.act = nn.LayerChoice([nn.ReLU(), nn.LayerChoice([nn.SiLU(), nn.ELU()], label="inner")], label="act")
        self.scaled = Scaled()
        self.body = nn.Repeat(
            lambda i: nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)), (0, 2), label="d"
        )
        self.join = nn.InputChoice(2, n_chosen=None, reduction="mean", label="join")
        self.head = Head(width)
        self.tied = torch.nn.Linear(5, 5, bias=False)
        self.again = torch.nn.Linear(5, 5, bias=False)
        self.again.weight = self.tied.weight
        self.add_mutable(ExpressionConstraint(width >= 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.scaled(self.act(self.stem(super().forward(x))))
        x = self.join([x, self.body(x)]).mean((2, 3))
        return self.again(self.tied(self.head(x)))


def sample(**changes: Any) -> dict[str, Any]:
    base = {
        "width": 6,
        "kernel": 3,
        "act": 1,
        "inner": 1,
        "factor": 2.5,
        "d": 2,
        "join": [0, 1],
        "norm": "tanh",
    }
    return {f"net/{label}": value for label, value in {**base, **changes}.items()}


@pytest.fixture(scope="module")
def space() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def frozen(space: Net) -> torch.nn.Module:
    return space.freeze(sample())


def of_hwnas(value: Any, seen: set[int]) -> list[Any]:
    """List whatever of the library can be reached through attributes, containers and closures."""
    if id(value) in seen:
        return []
    seen.add(id(value))
    found = [value] if any(cls.__module__.startswith("hwnas") for cls in type(value).__mro__) else []
    if (getattr(value, "__module__", None) or "").startswith("hwnas"):
        found.append(value)
    inside: list[Any] = []
    if isinstance(value, dict):
        inside = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set):
        inside = list(value)
    elif isinstance(value, functools.partial):
        inside = [value.func, value.args, value.keywords]
    elif isinstance(value, torch.nn.Module):
        inside = [vars(value), *type(value).__mro__]
    return found + [item for part in inside for item in of_hwnas(part, seen)]


@pytest.mark.parametrize("changes", [{}, {"act": 0, "d": 0}, {"width": 4, "kernel": 1, "join": [1], "norm": "norm"}])
def test_frozen_model_holds_nothing_of_the_library(space: Net, changes: dict[str, Any]) -> None:
    model = space.freeze(sample(**changes))
    assert of_hwnas(model, set()) == []
    assert type(model).__name__ == "Net"
    assert model(torch.randn(2, 3, 5, 5)).shape == (2, 5)


def test_freeze_shares_no_tensor_with_the_space(space: Net) -> None:
    """The chosen candidate is copied, also where it needs no change."""
    ours = {t.data_ptr() for t in [*space.parameters(), *space.buffers()] if t.numel()}
    for changes in ({}, {"act": 0}, {"width": 4, "kernel": 1}):
        model = space.freeze(sample(**changes))
        theirs = {t.data_ptr() for t in [*model.parameters(), *model.buffers()] if t.numel()}
        assert not ours & theirs


def test_two_members_share_no_tensor(space: Net) -> None:
    a, b = space.freeze(sample()), space.freeze(sample())
    assert not {p.data_ptr() for p in a.parameters()} & {p.data_ptr() for p in b.parameters()}


def test_tied_weights_stay_tied(frozen: Any) -> None:
    assert frozen.tied.weight is frozen.again.weight


def test_weights_tied_to_a_candidate_and_a_twin_stay_tied() -> None:
    class Tied(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.LayerChoice([torch.nn.Linear(4, 4), torch.nn.Identity()], label="first")
            self.twin = nn.Linear(nn.ValueChoice([4, 8], label="w"), 4)
            self.plain = torch.nn.Linear(4, 4)
            self.plain.weight = self.first[0].weight
            self.other = torch.nn.Linear(4, 4)
            self.other.weight = self.twin.weight

    model = Tied().freeze({"first": 0, "w": 4})
    assert model.plain.weight is model.first.weight
    assert model.other.weight is model.twin.weight


def test_a_module_held_twice_is_frozen_once() -> None:
    class Twice(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.LayerChoice([torch.nn.Linear(2, 2), torch.nn.Identity()], label="a")
            self.b = self.a
            self.c = torch.nn.ModuleList([self.a[0]])

    model = Twice().freeze({"a": 0})
    assert model.a is model.b
    assert model.a is model.c[0]


def test_code_of_the_user_runs_unchanged(frozen: Any) -> None:
    x = torch.randn(2, 3, 5, 5)
    y = frozen.stem(x + 1)  # Base.forward
    y = torch.nn.functional.elu(y) * 2.5 + 1
    z = frozen.body[1](frozen.body[0](y))
    y = ((y + z) / 2).mean((2, 3))
    y = frozen.tied(frozen.tied(frozen.head.linear(y.tanh())))
    torch.testing.assert_close(frozen(x), y)
    assert len(frozen.body) == 2
    assert frozen.scaled.factor() == 2.5


def test_super_in_every_kind_of_method() -> None:
    class Parent(nn.ModelSpace):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

        def helper(self) -> str:
            return "parent"

        @property
        def size(self) -> int:
            return 1

        @classmethod
        def made(cls) -> str:
            return "parent"

    class Child(Parent):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.LayerChoice([torch.nn.Identity(), torch.nn.ReLU()], label="act")

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.act(super().forward(x))

        def helper(self) -> str:
            return f"child of {super().helper()} {__class__.__name__}"  # type: ignore[name-defined]

        @property
        def size(self) -> int:
            return super().size + 1

        @classmethod
        def made(cls) -> str:
            return f"child of {super().made()}"

        @staticmethod
        def plain() -> int:
            return 7

    model = Child().freeze({"act": 1})
    torch.testing.assert_close(model(torch.tensor([-1.0, 3.0])), torch.tensor([0.0, 6.0]))
    assert model.helper() == "child of parent Child"
    assert (model.size, model.made(), model.plain()) == (2, "child of parent", 7)
    assert Child().helper() == "child of parent Child"


def test_training_flag_device_dtype_and_requires_grad_are_kept() -> None:
    space = Net().double().eval()
    space.stem.weight.requires_grad_(False)
    space.body.blocks[0][1].requires_grad_(False)
    space.act[1].train()
    for changes in ({}, {"width": 4, "kernel": 1}):  # other widths than the default, and the default
        model = space.freeze(sample(**changes))
        assert {p.dtype for p in model.parameters()} == {torch.float64}
        assert not model.stem.weight.requires_grad
        assert model.stem.bias.requires_grad
        assert not model.body[0][1].weight.requires_grad
        assert not any(part.training for name, part in model.named_modules() if not name.startswith("act"))
        meta = copy.deepcopy(space).to("meta").freeze(sample(**changes))
        assert {t.device.type for t in [*meta.parameters(), *meta.buffers()]} == {"meta"}


def test_weights_of_the_default_member_are_those_of_the_space(space: Net) -> None:
    model = space.freeze({**space.default(), "net/d": 1, "net/width": 4})
    torch.testing.assert_close(model.stem.weight, space.stem.weight)
    torch.testing.assert_close(model.head.linear.bias, space.head.linear.bias)


def test_freezing_does_not_touch_the_space(space: Net) -> None:
    before = {name: tensor.clone() for name, tensor in space.state_dict().items()}
    kinds = [type(module) for module in space.modules()]
    model = space.freeze(sample())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert [type(module) for module in space.modules()] == kinds
    assert all(torch.equal(before[name], tensor) for name, tensor in space.state_dict().items())
    assert space.contains(sample())


def test_extra_and_inactive_labels_are_ignored(space: Net) -> None:
    given = sample(act=0)
    del given["net/inner"]
    assert isinstance(space.freeze({**given, "other": 3}).act, torch.nn.ReLU)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"net/width": 5}, r"net/width.*5 is not one of the values \[4, 6\]"),
        ({"net/act": "relu"}, "net/act"),
        ({"net/inner": 2}, "net/inner"),
        ({"net/d": 3}, "net/d"),
        ({"net/join": 1}, "net/join.*not a list"),
        ({"net/norm": None}, "net/norm"),
        ({"net/width": ...}, "net/width.*no value"),
    ],
)
def test_a_bad_sample_names_the_path(space: Net, changes: dict[str, Any], expected: str) -> None:
    given = {k: v for k, v in {**sample(), **changes}.items() if v is not ...}
    with pytest.raises(SampleError, match=expected):
        space.freeze(given)


def test_a_violated_constraint_is_no_member() -> None:
    class Limited(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            a, b = nn.ValueChoice([1, 2], label="a"), nn.ValueChoice([1, 2], label="b")
            self.layer = nn.Linear(a, b)
            self.choice = nn.LayerChoice([torch.nn.Identity()], label="c")
            self.choice.add_mutable(ExpressionConstraint(a <= b))

    space = Limited()
    space.freeze({"a": 1, "b": 2, "c": 0})
    with pytest.raises(SampleError, match="constraint"):
        space.freeze({"a": 2, "b": 1, "c": 0})


def test_deepcopy_and_pickle_of_a_frozen_layer(frozen: Any) -> None:
    x = torch.randn(1, 3, 5, 5)
    frozen.eval()
    torch.testing.assert_close(copy.deepcopy(frozen)(x), frozen(x))
    assert pickle.loads(pickle.dumps(frozen.scaled.factor))() == 2.5


def test_compile_accepts_a_frozen_model(space: Net) -> None:
    model = space.freeze(sample()).eval()
    x = torch.randn(2, 3, 5, 5)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_an_exported_member_runs_without_the_library(space: Net, tmp_path: Any) -> None:
    model = space.freeze(sample()).eval()
    x = torch.randn(2, 3, 5, 5)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "member.pt2")
    torch.save({"x": x, "y": model(x).detach()}, tmp_path / "expected.pt")
    program = (
        "import sys, torch\n"
        "model = torch.export.load('member.pt2').module()\n"
        "data = torch.load('expected.pt', weights_only=True)\n"
        "torch.testing.assert_close(model(data['x']), data['y'])\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'hwnas']\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_explicit_super_in_a_method_is_refused_with_advice() -> None:
    model = ExplicitSuper()
    with pytest.raises(TypeError, match=r"ExplicitSuper\.train calls super\(ExplicitSuper, \.\.\.\).*write super\(\)"):
        model.freeze({"act": 0})


class ExplicitSuper(nn.ModelSpace):
    def __init__(self) -> None:
        super(ExplicitSuper, self).__init__()  # noqa: UP008 - the constructor is no part of a frozen model
        self.act = nn.LayerChoice([nn.ReLU()], label="act")

    def train(self, mode: bool = True) -> ExplicitSuper:
        return super(ExplicitSuper, self).train(mode)  # noqa: UP008 - what is tested
