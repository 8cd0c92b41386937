"""The parts of a space: which there are, when they run, what they compute, and when two are the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import hwnas.nn as nn
from hwnas.profilers import units
from hwnas.profilers.profiler import domain_of
from hwnas.profilers.tables import at, place_of
from hwnas.profilers.tracing import trace_everywhere
from hwnas.profilers.units import Unit, Workpiece, canonical_operators, members, units_of
from hwnas.space import Sample

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def choice(values: list[Any], label: str) -> nn.ValueChoice:
    return nn.ValueChoice(values, label=label)


class Net(nn.ModelSpace):
    """Every primitive, and operators in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        width = choice([4, 6], "width")
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

        def block(index: int) -> nn.Module:
            conv = nn.Sequential(nn.Conv2d(width, width, choice([1, 3], "kernel"), padding="same"), nn.ReLU())
            return nn.LayerChoice({"conv": conv, "skip": nn.Identity()}, label=f"block{index}")

        self.body = nn.Repeat(block, (1, 2), label="depth")
        self.left = nn.Conv2d(width, width, 1)
        self.right = nn.Conv2d(width, width, 3, padding=1)
        self.join = nn.InputChoice(2, 1, label="join")
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        x = self.join([self.left(x), self.right(x)])
        return self.head((x * 2).mean((2, 3)))


CONV = "body.blocks.{}.candidates.0"
EXPECTED: dict[str, tuple[set[str], Callable[[Sample], bool]]] = {
    "stem": ({"width"}, lambda s: True),
    CONV.format(0): ({"width", "kernel"}, lambda s: s["block0"] == "conv"),
    CONV.format(1): ({"width", "kernel"}, lambda s: s["depth"] == 2 and s["block1"] == "conv"),
    "left": ({"width"}, lambda s: s["join"] == [0]),
    "right": ({"width"}, lambda s: s["join"] == [1]),
    "head": ({"width"}, lambda s: True),
    "mul": ({"width"}, lambda s: True),
    "mean": ({"width"}, lambda s: True),
}
# Where a member has the module of a unit.
IN_MEMBER = {CONV.format(0): "body.0", CONV.format(1): "body.1", "stem": "stem", "left": "left", "right": "right"}


def cut(space: nn.ModelSpace, x: Tensor = X) -> list[Unit]:
    return [unit for trace in trace_everywhere(space, x) for unit in units_of(trace)]


def runs(unit: Unit, sample: Sample, domain: dict[str, Any]) -> bool:
    return all(at(condition, sample, domain) for condition in unit.conditions)


def part_of(unit: Unit, sample: Sample) -> Workpiece:
    return unit.make({label: sample[label] for label in unit.labels})


def macs_of(model: torch.nn.Module, *inputs: Tensor) -> float:
    """Multiply-adds of the convolutions and linear layers whose result reaches the output."""
    counted: list[tuple[torch.nn.Parameter, float]] = []

    def count(module: Any, args: Any, output: Tensor) -> None:
        counted.append((module.weight, float(output.numel() * module.weight[0].numel())))

    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    output = model(*inputs)
    for handle in handles:
        handle.remove()
    if output.requires_grad:
        output.sum().backward()
    return sum(macs for weight, macs in counted if weight.grad is not None)


def parts_add_up(space: nn.ModelSpace, x: Tensor = X) -> list[Unit]:
    """Check for every member that its parts do the arithmetic of the whole, no more and no less."""
    found, domain = cut(space, x), domain_of(space)
    for sample in space.grid():
        parts = [part_of(unit, sample) for unit in found if runs(unit, sample, domain)]
        whole = macs_of(space.freeze(sample).eval(), x)
        assert sum(macs_of(part.module, *part.inputs) for part in parts) == whole, sample
    return found


def shapes_seen(member: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of the input of every module."""
    seen: dict[str, tuple[int, ...]] = {}
    names = {module: name for name, module in member.named_modules() if name in IN_MEMBER.values()}

    def see(module: torch.nn.Module, args: Any) -> None:
        seen[names[module]] = tuple(args[0].shape)

    for module in names:
        module.register_forward_pre_hook(see)
    member(X)
    return seen


@pytest.fixture(scope="module")
def net() -> tuple[Net, list[Unit]]:
    torch.manual_seed(0)
    space = Net()
    return space, cut(space)


def test_a_space_is_cut_at_its_choices_of_structure(net: tuple[Net, list[Unit]]) -> None:
    _, found = net
    assert [unit.name for unit in found] == list(EXPECTED)
    assert {unit.name: set(unit.labels) for unit in found} == {name: labels for name, (labels, _) in EXPECTED.items()}


def test_parts_run_where_a_member_runs_them(net: tuple[Net, list[Unit]]) -> None:
    space, found = net
    domain = domain_of(space)
    for sample in space.grid():
        for unit in found:
            assert runs(unit, sample, domain) == EXPECTED[unit.name][1](sample), (unit.name, sample)


def test_a_part_computes_what_it_computes_in_a_member() -> None:
    (trace,) = trace_everywhere(Net(), X)
    found = list(units_of(trace))
    for sample in trace.space.grid():
        member = trace.space.freeze(sample).eval()  # with the weights of the parts
        seen = shapes_seen(member)
        for unit in found:
            if unit.name not in IN_MEMBER or not EXPECTED[unit.name][1](sample):
                continue
            piece, path = part_of(unit, sample), IN_MEMBER[unit.name]
            assert [tuple(tensor.shape) for tensor in piece.inputs] == [seen[path]]
            torch.testing.assert_close(piece.module(*piece.inputs), member.get_submodule(path)(*piece.inputs))


def test_an_operator_of_forward_is_a_part_with_its_arguments(net: tuple[Net, list[Unit]]) -> None:
    _, found = net
    piece = {unit.name: unit for unit in found}["mul"].make({"width": 6})
    (x,) = piece.inputs
    assert x.shape == (2, 6, 8, 8)
    torch.testing.assert_close(piece.module(x), 2 * x)


def test_members_are_every_combination_of_the_labels(net: tuple[Net, list[Unit]]) -> None:
    space, found = net
    unit = {unit.name: unit for unit in found}[CONV.format(0)]
    listed = list(members(unit, domain_of(space)))
    assert len(listed) == 4
    assert {places for places, _, _ in listed} == set(itertools.product(range(2), range(2)))
    for _, sample, piece in listed:
        conv = piece.module[0]  # type: ignore[index]
        assert (conv.out_channels, conv.kernel_size) == (sample["width"], (sample["kernel"],) * 2)


def test_sizes_that_many_labels_decide_are_looked_at_once_each() -> None:
    """Each of 6,561 combinations of widths gives the convolution behind them one of 25 sums, or the other of 9."""

    class Dense(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            widths = [choice([1, 2, 4], f"width{i}") for i in range(8)]
            self.branches = torch.nn.ModuleList(nn.Conv2d(1, width, 1) for width in widths)
            self.behind = nn.Conv2d(sum(widths[1:], widths[0]), choice([2, 3], "out"), 1)
            self.some = nn.Conv2d(sum(widths[1:3], widths[0]), 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            made = [branch(x) for branch in self.branches]
            return self.behind(torch.cat(made, 1)).mean(1) + self.some(torch.cat(made[:3], 1)).mean(1)

    space = Dense()
    domain = domain_of(space)
    found = {unit.name: unit for unit in cut(space)}
    pieces = {name: list(members(unit, domain)) for name, unit in found.items()}
    sums = {sum(widths) for widths in itertools.product([1, 2, 4], repeat=8)}
    assert len(pieces["behind"]) == 2 * len(sums)
    assert {piece.module.in_channels for _, _, piece in pieces["behind"]} == sums
    assert len(pieces["some"]) == 27  # few enough combinations to take them as they are
    unit = found["behind"]
    keys = {places: piece.identify().key for places, _, piece in pieces["behind"]}
    for seed in range(20):
        sample = space.random(random_state=seed)
        frozen = space.freeze(sample).behind
        x = torch.zeros(2, frozen.in_channels, 8, 8)
        places = tuple(place_of(label, sample, domain) for label in unit.labels)
        assert keys[places] == Workpiece(frozen.eval(), (x,)).identify().key


def test_parts_add_up_to_every_member() -> None:
    parts_add_up(Net())


def test_without_choices_of_structure_the_space_is_one_part() -> None:
    class Widths(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.width = choice([4, 6], "width")
            self.conv, self.head = nn.Conv2d(1, self.width, 3), nn.Linear(self.width, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).relu().mean((2, 3)))

    (unit,) = parts_add_up(Widths())
    assert unit.labels == ("width",)


def test_a_part_with_too_many_members_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "MAX_UNIT", 3)
    names = [unit.name for unit in parts_add_up(Net())]
    assert CONV.format(0) not in names  # four members
    assert f"{CONV.format(0)}.0" in names  # a layer cannot be taken apart
    assert "stem" in names


def test_a_value_that_is_read_by_a_plain_module() -> None:
    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = choice([0.5, 2.0], "factor")
            self.conv = nn.Conv2d(1, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x * self.factor())

    class Scaled(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.scale = Scale()
            self.act = nn.LayerChoice([nn.ReLU(), nn.Tanh()], label="act")

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.scale(x))

    found = {unit.name: unit for unit in parts_add_up(Scaled())}
    assert found["scale"].labels == ("factor",)
    keys = {piece.identify().key for _, _, piece in members(found["scale"], {"factor": [0.5, 2.0]})}
    assert len(keys) == 2  # an attribute of an operator


def test_a_module_that_is_called_twice_is_two_parts() -> None:
    class Twice(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)
            self.act = nn.LayerChoice([nn.ReLU(), nn.Tanh()], label="act")

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.act(self.conv(x)))

    found = [unit for unit in parts_add_up(Twice()) if unit.name == "conv"]
    assert len(found) == 2
    assert len({part_of(unit, {}).identify().key for unit in found}) == 1


def test_several_tensors_and_arguments_by_name() -> None:
    class Blend(torch.nn.Module):
        def forward(self, x: Tensor, share: float, *, other: Tensor) -> Tensor:
            return share * x - other

    class Blended(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, choice([2, 3], "width"), 1)
            self.blend = Blend()
            self.act = nn.LayerChoice([nn.ReLU(), nn.Tanh()], label="act")

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.act(self.blend(y, 0.25, other=y + 1))

    found = {unit.name: unit for unit in parts_add_up(Blended())}
    piece = found["blend"].make({"width": 3})
    x, other = piece.inputs
    assert x.shape == other.shape == (2, 3, 8, 8)
    torch.testing.assert_close(piece.module(x, other), x / 4 - other)


@pytest.mark.parametrize("values", [[2, 8], [8, 2]])
def test_where_forward_branches_each_branch_has_its_parts(values: list[int]) -> None:
    class Branching(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, choice(values, "width"), 1)
            self.large, self.small = nn.Conv2d(1, 5, 3), nn.Conv2d(1, 5, 1)
            self.act = nn.LayerChoice([nn.ReLU(), nn.Tanh()], label="act")

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            z = y.mean(1, keepdim=True)
            return self.act(self.large(z)) if y.shape[1] > 4 else self.act(self.small(z))

    space = Branching()
    found, domain = parts_add_up(space), domain_of(space)
    for width in values:
        names = [unit.name for unit in found if runs(unit, {"width": width, "act": 0}, domain)]
        assert ("large" in names, "small" in names) == (width > 4, width <= 4)


# -- when two parts are the same -----------------------------------------------------------------------------


def key(module: torch.nn.Module, *shape: int, inputs: tuple[Tensor, ...] = ()) -> str:
    return Workpiece(module.eval(), inputs or (torch.randn(shape or (1, 4, 6, 6)),)).identify().key


class Named(torch.nn.Module):
    """The same as a sequence of a convolution and a rectifier, under other names."""

    def __init__(self) -> None:
        super().__init__()
        self.extract, self.bend = torch.nn.Conv2d(4, 4, 3), torch.nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.bend(self.extract(x))


class Function(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def conv(**options: Any) -> torch.nn.Module:
    return torch.nn.Conv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **options})


def test_weights_and_names_do_not_matter() -> None:
    plain = torch.nn.Sequential(conv(), torch.nn.ReLU())
    assert key(plain) == key(torch.nn.Sequential(conv(), torch.nn.ReLU())) == key(Named())


def test_what_is_made_of_weights_alone_is_a_weight() -> None:
    weight = torch.randn(4, 4, 3, 3)
    assert key(Function(lambda x: F.conv2d(x, weight))) == key(Function(lambda x: F.conv2d(x, (weight * 2).tanh())))


BASE = conv
DIFFERENT: dict[str, Callable[[], torch.nn.Module]] = {
    "width": lambda: conv(out_channels=5),
    "kernel": lambda: conv(kernel_size=1),
    "stride": lambda: conv(stride=2),
    "padding": lambda: conv(padding=1),
    "dilation": lambda: conv(dilation=2),
    "groups": lambda: conv(groups=4),
    "bias": lambda: conv(bias=False),
    "behind": lambda: torch.nn.Sequential(conv(), torch.nn.ReLU()),
    "another behind": lambda: torch.nn.Sequential(conv(), torch.nn.SiLU()),
    "slope": lambda: torch.nn.Sequential(conv(), torch.nn.LeakyReLU(0.1)),
    "another slope": lambda: torch.nn.Sequential(conv(), torch.nn.LeakyReLU(0.2)),
    "before": lambda: torch.nn.Sequential(torch.nn.ReLU(), conv()),
    "normalisation": lambda: torch.nn.Sequential(conv(), torch.nn.BatchNorm2d(4)),
    "unused result": lambda: Function(lambda x: (F.conv2d(x, torch.ones(4, 4, 3, 3)), x)),
}


def test_operators_attributes_and_shapes_do() -> None:
    keys = {name: key(make()) for name, make in DIFFERENT.items()}
    keys["base"] = key(BASE())
    keys["batch"], keys["height"] = key(BASE(), 2, 4, 6, 6), key(BASE(), 1, 4, 7, 6)
    keys["type"] = key(BASE().double(), inputs=(torch.randn(1, 4, 6, 6).double(),))
    assert len(set(keys.values())) == len(keys), keys


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x.relu() + x, lambda x: x.relu() + x.relu()),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x.mean(2), lambda x: x.mean(3)),
        (lambda x: torch.cat([x, x.relu()], 1), lambda x: torch.cat([x.relu(), x], 1)),
        (lambda x: (x.relu(), x.tanh()), lambda x: (x.tanh(), x.relu())),
    ],
    ids=["wiring", "scalar", "dimension", "order", "results"],
)
def test_the_way_tensors_take_matters(one: Callable[[Tensor], Any], other: Callable[[Tensor], Any]) -> None:
    assert key(Function(one)) != key(Function(other))
    assert key(Function(one)) == key(Function(one))


def test_which_input_goes_where_matters() -> None:
    pair = (torch.randn(2, 2), torch.randn(2, 2))
    assert key(Function(lambda a, b: a - b), inputs=pair) != key(Function(lambda a, b: b - a), inputs=pair)


def test_traffic_is_what_enters_and_leaves_and_the_rest_are_weights() -> None:
    _, traffic, weights, macs = canonical_operators(conv().eval(), (torch.randn(2, 4, 6, 6),))
    assert macs == 2 * 4 * 4 * 4 * conv().weight[0].numel()
    assert weights == sum(parameter.numel() for parameter in conv().parameters())
    assert traffic == 2 * 4 * 6 * 6 + 2 * 4 * 4 * 4
    pair = (torch.randn(3), torch.randn(3))
    assert Workpiece(Function(lambda a, b: (a + b, [a - b])), pair).identify().traffic == 4 * 3


def test_the_same_structure_at_several_places_is_measured_once(net: tuple[Net, list[Unit]]) -> None:
    space, found = net
    domain = domain_of(space)
    keys = {unit.name: [piece.identify().key for _, _, piece in members(unit, domain)] for unit in found}
    assert keys[CONV.format(0)] == keys[CONV.format(1)]
    everything = list(itertools.chain(*keys.values()))
    assert len(set(everything)) == len(everything) - 4
