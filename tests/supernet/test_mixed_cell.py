"""Cells in super-nets: members are the frozen cells, mixtures are expectations, and weights belong to nodes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import hwnas.nn as nn
from hwnas.errors import UnsupportedError
from hwnas.evaluators import ClassificationModule, Lightning, seeded_loader
from hwnas.hub import DARTSSpace, NASNetSpace
from hwnas.space import ExpressionConstraint, Sample
from hwnas.strategies import DARTS, RandomOneShot, SubnetSearch
from hwnas.supernet import (
    BinaryGates,
    MixedCell,
    MixedFactoryChoice,
    Mixture,
    OneHot,
    Relaxation,
    Softmax,
    make_supernet,
    supernet_modules,
)


def linear(*_: int) -> torch.nn.Module:
    return torch.nn.Linear(3, 3)


def by_source(node: int, op: int, source: int) -> torch.nn.Module:
    """Has other parameters for each input."""
    return torch.nn.Sequential(*(torch.nn.Linear(3, 3, bias=source % 2 == 0) for _ in range(1 + source)))


MODULES: dict[str, Any] = {"linear": torch.nn.Linear(3, 3), "wide": torch.nn.Linear(3, 3, bias=False)}
FACTORIES: dict[str, Any] = {"linear": linear, "by_source": by_source}
NONLINEAR: dict[str, Any] = {"linear": linear, "tanh": lambda *_: torch.nn.Tanh()}


class Choosing(torch.nn.Module):
    """A preprocessor with a choice in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LayerChoice([nn.Linear(3, 3), nn.Linear(3, 3, bias=False)], label="before")

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        return [self.layer(x) for x in inputs]


class After(torch.nn.Module):
    """A postprocessor with a choice in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LayerChoice([nn.Linear(3, 3), nn.Linear(3, 3, bias=False)], label="after")

    def forward(self, output: Tensor, inputs: list[Tensor]) -> Tensor:
        return torch.cat([output, self.layer(inputs[0])], -1)


class Net(nn.ModelSpace):
    """A cell and what reads it."""

    def __init__(self, candidates: Any = MODULES, nodes: int = 2, label: str = "c", head: bool = True, **options: Any):
        super().__init__()
        options = {"num_predecessors": 2, "merge_op": "loose_end", **options}
        self.cell = nn.Cell(candidates, nodes, label=label, **options)
        more = 1 if options.get("postprocessor") is not None else 0
        self.head = nn.Linear(3 * (self.cell.num_output_nodes + more), 2) if head else nn.Identity()

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.head(self.cell(*inputs))


OPTIONS: dict[str, dict[str, Any]] = {
    "modules": {"nodes": 4},
    "factories": {"candidates": FACTORIES, "nodes": 4},
    "one callable for all": {"candidates": lambda *place: [linear(), by_source(*place)], "nodes": 3},
    "all nodes": {"candidates": FACTORIES, "merge_op": "all", "nodes": 3},
    "two operations": {"candidates": FACTORIES, "num_ops_per_node": 2, "nodes": 3},
    "one predecessor": {"candidates": FACTORIES, "num_predecessors": 1, "nodes": 3},
    "always": {"candidates": FACTORIES, "always_output": (1, 3), "nodes": 4},
    "always of modules": {"always_output": (0, 2), "nodes": 3, "merge_op": "all"},
    "processors": {"candidates": FACTORIES, "preprocessor": Choosing(), "postprocessor": After(), "nodes": 3},
    "other dimension": {"candidates": FACTORIES, "concat_dim": 0, "head": False, "nodes": 3},
}


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter a value of its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def made(space: nn.ModelSpace, relaxation: Callable[..., Any] = OneHot) -> tuple[nn.ModelSpace, Any]:
    space = copy.deepcopy(space).double()
    relaxed = relaxation(space.simplify().values()).double()
    filled(make_supernet(space, relaxed))
    filled(relaxed)
    return space, relaxed


def inputs_of(space: Any, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(space.cell.num_predecessors)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_supernet_at_a_sample_is_the_frozen_member(options: dict[str, Any]) -> None:
    space, relaxation = made(Net(**options))
    assert isinstance(space.cell, MixedCell)
    x, outputs = inputs_of(space), []
    for seed in range(25):
        sample = space.random(random_state=seed)
        relaxation.resample(sample)
        member = space.freeze(sample)
        outputs.append(space(*x))
        torch.testing.assert_close(outputs[-1], member(*x), rtol=1e-6, atol=1e-9)
        assert not any(type(part).__module__.startswith("hwnas.supernet") for part in member.modules())
        assert {p.data_ptr() for p in member.parameters()}.isdisjoint(p.data_ptr() for p in space.parameters())
    assert len({round(float(output.detach().sum()), 9) for output in outputs}) > 10


def by_hand(space: Any, sample: Sample, x: list[Tensor]) -> Tensor:
    """Compute the net from the modules of the super-net: each node times the columns of that node."""
    states, read = list(x), set()
    for node in range(2, 2 + space.cell.num_nodes):
        (source,) = sample[f"c/input_{node}_0"]
        read.add(source)
        operation = space.cell.ops[node - 2][0]
        module = operation.candidate(sample[f"c/op_{node}_0"], *([source] if hasattr(operation, "made") else []))
        states.append(module(states[source]))
    weight = space.head.weight
    return space.head.bias + sum(
        states[node] @ weight[:, 3 * (node - 2) : 3 * (node - 1)].T
        for node in range(2, len(states))
        if node not in read
    )


@pytest.mark.parametrize("candidates", [MODULES, FACTORIES], ids=["modules", "factories"])
def test_weights_behind_loose_ends_belong_to_nodes(candidates: Any) -> None:
    space, relaxation = made(Net(candidates, 3))
    x, loose = inputs_of(space), set()
    assert space.head.weight.shape == (2, 9)
    for sample in space.grid():
        relaxation.resample(sample)
        torch.testing.assert_close(space(*x), by_hand(space, sample, x))
        loose.add(tuple(space.cell.output_nodes(sample)))
    assert loose == {(2, 3, 4), (2, 4), (3, 4), (4,)}


def test_convolutions_behind_loose_ends_with_a_width_of_their_own() -> None:
    class Wide(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            width = nn.ValueChoice([4, 2], label="width")
            self.stem = nn.Conv2d(1, width, 1)
            self.cell = nn.Cell([nn.ReLU(), nn.Tanh()], 3, merge_op="loose_end", label="c")
            self.conv = nn.Conv2d(self.cell.num_output_nodes * width, 3, 3, padding=1, padding_mode="reflect")
            self.norm = nn.BatchNorm2d(self.cell.num_output_nodes * width)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.cell(self.stem(x))
            return self.conv(y), self.norm(y)

    space, relaxation = made(Wide())
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    assert space.conv.weight.shape == (3, 12, 3, 3)
    for seed in range(30):
        sample = space.random(random_state=seed)
        relaxation.resample(sample)
        member = space.freeze(sample)
        for found, expected in zip(space(x), member(x), strict=True):
            torch.testing.assert_close(found, expected)
        blocks = [range(4 * (i - 1), 4 * (i - 1) + sample["width"]) for i in space.cell.output_nodes(sample)]
        columns = [column for block in blocks for column in block]
        assert torch.equal(member.conv.weight, space.conv.weight[:, columns])


def test_strides_that_depend_on_the_input() -> None:
    def halve(node: int, op: int, source: int) -> torch.nn.Module:
        return torch.nn.Conv2d(2, 2, 3, stride=2 if source < 2 else 1, padding=1)

    def pool(node: int, op: int, source: int) -> torch.nn.Module:
        return torch.nn.AvgPool2d(3, 2 if source < 2 else 1, 1)

    class Halving(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Cell({"conv": halve, "pool": pool}, 3, 2, 2, merge_op="loose_end", label="c")
            self.head = nn.Conv2d(2 * self.cell.num_output_nodes, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x, 2 * x))

    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    space, relaxation = made(Halving())
    for seed in range(10):
        sample = space.random(random_state=seed)
        relaxation.resample(sample)
        assert space(x).shape == (2, 3, 4, 4)
        torch.testing.assert_close(space(x), space.freeze(sample)(x))
    mixed, _ = made(Halving(), Softmax)
    assert mixed(x).shape == (2, 3, 4, 4)


def expectation(space: nn.ModelSpace, relaxation: Softmax, x: list[Tensor]) -> Any:
    """Weigh every member by its probability."""
    total: Any = 0
    for sample in space.grid():
        probability = math.prod(
            relaxation.probabilities(label)[value[0] if isinstance(value, list) else mutable.values.index(value)]
            for (label, mutable), value in zip(space.simplify().items(), sample.values(), strict=True)
        )
        total = total + probability * space.freeze(sample)(*x)
    return total


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"candidates": FACTORIES},
        {"candidates": FACTORIES, "merge_op": "all"},
        {"candidates": FACTORIES, "num_ops_per_node": 2, "num_predecessors": 1},
        {"candidates": FACTORIES, "always_output": (0, 2)},
        {"candidates": [linear], "nodes": 4, "num_predecessors": 1},
        {"candidates": FACTORIES, "preprocessor": Choosing()},
    ],
)
def test_a_mixture_of_linear_operations_is_the_expectation(options: dict[str, Any]) -> None:
    space, relaxation = made(Net(**options), Softmax)
    x = inputs_of(space)
    torch.testing.assert_close(space(*x), expectation(space, relaxation, x), rtol=1e-9, atol=1e-9)


def test_a_mixture_weighs_operations_by_input_and_candidate() -> None:
    space, relaxation = made(Net(NONLINEAR, 1, merge_op="all"), Softmax)
    x = inputs_of(space)  # one node: exact for any operation
    torch.testing.assert_close(space(*x), expectation(space, relaxation, x))


@pytest.mark.parametrize("merge_op", ["all", "loose_end"])
def test_gradients_of_the_architecture(merge_op: str) -> None:
    space, relaxation = made(Net(NONLINEAR, 3, merge_op=merge_op), Softmax)
    x = inputs_of(space)
    alphas = list(relaxation.alphas)

    def loss(*_: Tensor) -> Tensor:
        return space(*x).square().mean()

    assert torch.autograd.gradcheck(loss, alphas)
    loss().backward()
    assert all(alpha.grad.abs().sum() > 0 for alpha in alphas)


def test_a_decided_mixture_is_the_frozen_member() -> None:
    space, relaxation = made(Net(NONLINEAR, 3), Softmax)
    x = inputs_of(space)
    for seed in range(5):
        sample = space.random(random_state=seed)
        with torch.no_grad():
            for label, mutable in space.simplify().items():
                value = sample[label]
                place = value[0] if isinstance(value, list) else mutable.values.index(value)
                relaxation.alpha(label).fill_(-60.0)[place] = 0.0
        torch.testing.assert_close(space(*x), space.freeze(sample)(*x))


def test_binary_gates_run_one_path_or_weigh_several() -> None:
    space, relaxation = made(Net(NONLINEAR, 3), BinaryGates)
    x = inputs_of(space)
    for seed in range(5):
        sample = space.random(random_state=seed)
        relaxation.resample(sample)
        for trains in (False, True):
            relaxation.requires_grad_(trains)
            torch.testing.assert_close(space(*x), space.freeze(sample)(*x))


def test_layers_behind_a_decided_cell_may_be_mixed_themselves() -> None:
    decided = {f"c/op_{node}_0": 0 for node in (2, 3, 4)}
    decided |= {"c/input_2_0": [0], "c/input_3_0": [2], "c/input_4_0": [1], "out": 2}

    class CellDecided(Softmax):
        def mixture(self, decision: Any) -> Any:
            if any(leaf.label == "out" for leaf in decision.leaves()):
                return super().mixture(decision)
            return Mixture((decision.evaluate(decided),))

        def subset(self, decision: Any) -> Any:
            return Mixture((decided[decision.label],))

    class Mixed(Net):
        def __init__(self) -> None:
            super().__init__([linear], 3)
            self.head = nn.Linear(3 * self.cell.num_output_nodes, nn.ValueChoice([2, 1], label="out"))

    space, relaxation = made(Mixed(), CellDecided)
    x = inputs_of(space)
    whole = space.freeze(decided)(*x)  # nodes 3 and 4
    wide = relaxation.probabilities("out")[0]
    torch.testing.assert_close(space(*x), whole * torch.stack([torch.ones_like(wide), wide]))


def test_only_the_chosen_operation_runs_and_learns() -> None:
    space, relaxation = made(Net(FACTORIES, 2))
    sample = space.default() | {"c/input_3_0": [2], "c/op_3_0": "by_source"}
    relaxation.resample(sample)
    space(*inputs_of(space)).sum().backward()
    trained = {name for name, parameter in space.cell.named_parameters() if parameter.grad is not None}
    assert trained == {
        *(f"ops.0.0.made.0.0.{kind}" for kind in ("weight", "bias")),
        *(f"ops.1.0.made.2.1.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")),
    }
    columns = space.head.weight.grad.abs().sum(0)
    assert (columns[:3] == 0).all()  # node 2 is read
    assert (columns[3:] > 0).all()


def test_frozen_cells_of_factories_have_the_weights_of_the_supernet() -> None:
    before = Net(FACTORIES, 2)
    default = before.cell.ops[0][0].default_operation
    space = make_supernet(before, OneHot(before.simplify().values()))
    choice = space.cell.ops[1][0]
    assert isinstance(choice, MixedFactoryChoice)
    assert space.cell.ops[0][0].candidate("linear", 0) is default
    for source in range(3):
        for name in FACTORIES:
            sample = space.default() | {"c/input_3_0": [source], "c/op_3_0": name}
            frozen = space.freeze(sample).cell.ops[1][0].state_dict()
            inherited = choice.candidate(name, source).state_dict()
            assert frozen.keys() == inherited.keys()
            assert all(torch.equal(frozen[key], inherited[key]) for key in frozen)
            assert all(frozen[key].data_ptr() != inherited[key].data_ptr() for key in frozen)
    assert len({id(parameter) for parameter in space.parameters()}) == len(space.state_dict())


def test_cells_of_one_label_choose_alike_with_weights_of_their_own() -> None:
    class Two(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Net(FACTORIES), Net(FACTORIES)

        def forward(self, *x: Tensor) -> Tensor:
            return self.first(*x) - self.second(*x)

    space, relaxation = made(Two())
    assert set(relaxation.dimensions) == {f"c/{kind}_{node}_0" for kind in ("op", "input") for node in (2, 3)}
    cells = [module for module in supernet_modules(space) if isinstance(module, MixedCell)]
    memo: Sample = {"c/input_3_0": [2]}
    for module in supernet_modules(space):
        memo |= module.resample(memo)
    assert memo.keys() == relaxation.dimensions.keys()
    assert relaxation.sample["c/input_3_0"] == [2]
    assert [cell.output_nodes(relaxation.sample) for cell in cells] == [[3], [3]]
    x = inputs_of(space.first)
    torch.testing.assert_close(space(*x), space.freeze(memo)(*x))
    assert space(*x).abs().max() > 1e-3
    space.second.load_state_dict(space.first.state_dict())
    assert space(*x).abs().max() == 0


def test_labels_are_those_of_the_space() -> None:
    space = Net(FACTORIES, 3)
    labels = list(space.simplify())
    relaxation = OneHot(space.simplify().values())
    make_supernet(space, relaxation)
    assert list(space.simplify()) == labels
    exported: Sample = {}
    for module in supernet_modules(space):
        exported |= module.export(exported)
    assert exported == space.default()


def test_the_seed_of_the_strategy_decides_the_new_operations() -> None:
    def weights(seed: int, before: int) -> list[Tensor]:
        torch.manual_seed(0)
        space = Net(FACTORIES)
        torch.manual_seed(before)
        RandomOneShot(seed=seed).mutate_model(space)
        return list(space.parameters())

    first, again, other = weights(1, 1), weights(1, 2), weights(2, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_what_cannot_be_mixed_is_named() -> None:
    class Normalised(Net):
        def __init__(self) -> None:
            super().__init__([linear])
            self.head = nn.BatchNorm2d(3 * self.cell.num_output_nodes)

    space = Normalised()
    with pytest.raises(UnsupportedError, match=r"BatchNorm2d at head: argument 'num_features' \(labels c/input_3_0\)"):
        make_supernet(space, Softmax(space.simplify().values()))
    for name, head in [
        ("out_features", lambda n: nn.Linear(3 * n, 3 * n)),
        ("out_channels", lambda n: nn.Conv1d(3, n, 1)),
        ("in_channels", lambda n: nn.Conv2d(3 * (n - 1), 3, 1)),
        ("in_channels", lambda n: nn.Conv2d(2 * n, 2, 1, groups=2)),
    ]:
        space = Net()
        space.head = head(space.cell.num_output_nodes)
        with pytest.raises(UnsupportedError, match=rf"at head: argument {name!r} .*which nodes they are"):
            make_supernet(space, Softmax(space.simplify().values()))
    moody = Net(lambda node, op, source: [linear()] * (1 + source), 1, merge_op="all")
    with pytest.raises(ValueError, match=r"'c/op_2_0': for input 1 the factory makes the candidates \[0, 1\]"):
        make_supernet(moody, OneHot(moody.simplify().values()))


# -- whole searches --------------------------------------------------------------------------------------------


def evaluator(side: int = 8) -> Lightning:
    generator = torch.Generator().manual_seed(0)
    data = [TensorDataset(torch.randn(4, 3, side, side, generator=generator), torch.arange(4) % 3) for _ in range(2)]
    return Lightning(
        ClassificationModule(learning_rate=0.01, optimizer="sgd", schedule=None),
        train_dataloaders=seeded_loader(data[0], 2, shuffle=True),
        val_dataloaders=seeded_loader(data[1], 2, shuffle=False),
        max_epochs=1,
        accelerator="cpu",
        log_every_n_steps=1,
    )


class Noting(L.Callback):
    """Keeps the samples on which the super-net was trained."""

    def __init__(self, samples: list[Sample], strategy: RandomOneShot) -> None:
        self.samples, self.strategy = samples, strategy

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        relaxation = self.strategy.relaxation
        assert isinstance(relaxation, OneHot)
        self.samples.append(dict(relaxation.sample))


class Loose(NASNetSpace):
    """As published, but with fewer operators."""

    operator_names = ("skip_connect", "conv_3x1_1x3", "sep_conv_3x3", "max_pool_3x3")
    num_nodes = 4


class Factories(DARTSSpace):
    """As published, but with fewer operators and nodes."""

    operator_names = ("skip_connect", "sep_conv_3x3", "avg_pool_3x3", "none")
    num_nodes = 3


def test_random_one_shot_searches_a_cell_space_of_loose_ends_and_keeps_constraints() -> None:
    space = Loose(width=2, num_cells=3, classes=3)
    cell = space.cells[0]
    space.add_mutable(ExpressionConstraint(cell.inputs[0][0].choice[0] != cell.inputs[0][1].choice[0]))
    strategy = RandomOneShot(search=SubnetSearch(evaluations=2))
    drawn: list[Sample] = []
    strategy.run(space, evaluator(), callbacks=[Noting(drawn, strategy)])
    assert len(drawn) == 2
    for sample in [*drawn, *(member.sample for member in strategy.ranking())]:
        assert space.contains(sample)
        assert sample["normal/input_2_0"] != sample["normal/input_2_1"]
    (model,) = strategy.list_models(1)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    head = model.head.weight.detach()
    columns = [
        c
        for node in space.cells[-1].output_nodes(strategy.best_sample())
        for c in range(8 * (node - 2), 8 * (node - 1))
    ]
    assert torch.equal(head, space.head.weight[:, columns])


def test_darts_searches_a_cell_space_of_factories() -> None:
    space = Factories(width=2, num_cells=3, classes=3)
    strategy = DARTS(arc_learning_rate=0.1)
    strategy.run(space, evaluator())
    relaxation: Relaxation = strategy.relaxation
    sample = strategy.best_sample()
    assert space.contains(sample)
    for label in ("normal/op_2_0", "reduce/input_4_1"):
        probabilities = relaxation.probabilities(label)
        assert probabilities.max() > 1 / len(probabilities) + 1e-2  # it has learnt something
        index = int(probabilities.argmax())
        value = relaxation.dimension(label).values[index]
        assert sample[label] == ([value] if "input" in label else value)
    (model,) = strategy.list_models(1)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 3)
