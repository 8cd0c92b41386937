"""A cell computes the graph that the sample describes, whatever it is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import SampleError, UnsupportedError
from hwnas.space import MutableExpression, Sample
from hwnas.supernet import OneHot, Softmax, make_supernet


class Scale(torch.nn.Module):
    """Multiplies by a parameter, so that every copy can be told from every other."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(float(factor)))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def candidates() -> dict[str, torch.nn.Module]:
    return {"linear": torch.nn.Linear(3, 3), "tanh": torch.nn.Tanh(), "scale": Scale(2)}


def inputs_for(cell: nn.Cell, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, generator=generator) for _ in range(cell.num_predecessors)]


def edges_of(sample: Sample, label: str) -> list[tuple[int, int, Any]]:
    """Return (from, to, operation) for every operation, read off the keys alone."""
    found = []
    for key, value in sample.items():
        kind, _, place = key.removeprefix(f"{label}/").partition("_")
        if key.startswith(f"{label}/") and kind == "input":
            (source,) = value
            found.append((source, int(place.split("_")[0]), sample[f"{label}/op_{place}"]))
    return found


def loose_ends(sample: Sample, label: str, predecessors: int) -> list[int]:
    graph = networkx.MultiDiGraph((source, node) for source, node, _ in edges_of(sample, label))
    return sorted(node for node in graph if graph.out_degree(node) == 0 and node >= predecessors)


def by_hand(
    cell: nn.Cell, sample: Sample, inputs: list[Tensor], operation: Callable[[int, int, Any], torch.nn.Module]
) -> Tensor:
    """Compute the cell recursively, from the output to the inputs, with the operations of the space."""
    label, first = cell.label, cell.num_predecessors

    def value(node: int) -> Tensor:
        if node < first:
            return inputs[node]
        total = torch.zeros(())
        for k in range(cell.num_ops_per_node):
            (source,) = sample[f"{label}/input_{node}_{k}"]
            total = total + operation(node, k, sample[f"{label}/op_{node}_{k}"])(value(source))
        return total

    outputs = range(first, first + cell.num_nodes)
    if cell.merge_op == "loose_end":
        outputs = loose_ends(sample, label, first)  # type: ignore[assignment]
    return torch.cat([value(node) for node in outputs], cell.concat_dim)


def of_space(cell: nn.Cell) -> Callable[[int, int, Any], torch.nn.Module]:
    return lambda node, k, name: cell.ops[node - cell.num_predecessors][k][name]  # type: ignore[index]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.sampled_from(["all", "loose_end"]), st.data())
def test_frozen_cell_is_the_graph_computed_by_hand(
    num_nodes: int, num_ops: int, num_predecessors: int, merge_op: Any, data: Any
) -> None:
    by_name = data.draw(st.booleans())
    given_candidates = candidates() if by_name else list(candidates().values())
    dim = data.draw(st.sampled_from([0, 1, -1]))
    cell = nn.Cell(given_candidates, num_nodes, num_ops, num_predecessors, merge_op, concat_dim=dim, label="cell")
    sample = cell.random(random_state=data.draw(st.integers(0, 10**6)))
    frozen = cell.freeze(sample)
    inputs = inputs_for(cell)
    torch.testing.assert_close(frozen(inputs), by_hand(cell, sample, inputs, of_space(cell)))
    default = cell.default()
    torch.testing.assert_close(cell(inputs), by_hand(cell, default, inputs, of_space(cell)))
    torch.testing.assert_close(cell(inputs), cell.freeze(default)(inputs))


def test_labels_and_values() -> None:
    cell = nn.Cell(list(candidates().values()), 2, 2, 2, label="cell")
    keys = {f"cell/{what}_{node}_{k}" for what in ("op", "input") for node in (2, 3) for k in (0, 1)}
    space = cell.simplify()
    assert set(space) == keys
    assert space["cell/op_2_0"].values == [0, 1, 2]
    assert space["cell/input_2_1"].values == [0, 1]
    assert space["cell/input_3_0"].values == [0, 1, 2]
    assert cell.default() == {key: 0 if "/op_" in key else [0] for key in keys}
    assert cell.size() == 3**4 * 2**2 * 3**2
    named = nn.Cell(candidates(), 1, label="named")
    assert named.simplify()["named/op_1_0"].values == ["linear", "tanh", "scale"]


def test_labels_follow_the_scope_of_the_space() -> None:
    class Net(nn.ModelSpace, label_prefix="net"):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Cell(candidates(), 1)
            self.second = nn.Cell(candidates(), 1, label="b")

    assert list(Net().simplify()) == ["net/cell_1/input_1_0", "net/cell_1/op_1_0", "net/b/input_1_0", "net/b/op_1_0"]
    assert list(Net().simplify()) == list(Net().simplify())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell/input_2_0": 1}, r"input_2_0.*1 is not a list"),
        ({"cell/input_2_0": [2]}, r"input_2_0.*2 in \[2\] is not one of"),
        ({"cell/input_2_0": [0, 1]}, r"input_2_0.*has 2 values"),
        ({"cell/op_1_0": "conv"}, r"op_1_0.*'conv' is not one of"),
    ],
)
def test_wrong_samples_are_named(change: Sample, message: str) -> None:
    cell = nn.Cell(candidates(), 2, label="cell")
    with pytest.raises(SampleError, match=message):
        cell.freeze(cell.default() | change)


def test_every_operation_has_weights_of_its_own() -> None:
    modules = [torch.nn.Linear(3, 3)]
    cell = nn.Cell(modules, 2, 2, label="cell")
    pointers = {p.data_ptr() for p in [*cell.parameters(), *modules[0].parameters()]}
    assert len(pointers) == 2 * (4 + 1)


def test_cells_of_one_label_choose_alike() -> None:
    class Net(nn.ModelSpace):
        def __init__(self, nodes: int) -> None:
            super().__init__()
            self.cells = nn.ModuleList(
                [nn.Cell(candidates(), 2, label="cell"), nn.Cell(candidates(), nodes, label="cell")]
            )

    assert len(Net(2).simplify()) == 4
    frozen = Net(2).freeze(
        {"cell/op_1_0": "tanh", "cell/input_1_0": [0], "cell/op_2_0": "scale", "cell/input_2_0": [1]}
    )
    assert [type(op[0]).__name__ for cell in frozen.cells for op in cell.ops] == ["Tanh", "Scale"] * 2

    class Unequal(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.ModuleList([nn.Cell(candidates(), 1, label="cell"), nn.Cell([Scale(1)], 1, label="cell")])

    with pytest.raises(ValueError, match=r"two different mutables have the label 'cell/op_1_0'"):
        Unequal().simplify()


def test_choices_inside_candidates() -> None:
    deep = torch.nn.Sequential(Scale(3), nn.LayerChoice([Scale(5), Scale(7)], label="inner"))
    cell = nn.Cell({"flat": Scale(2), "deep": deep}, 2, label="cell")
    assert set(cell.simplify()) == {*(f"cell/{w}_{n}_0" for w in ("op", "input") for n in (1, 2)), "inner"}
    sample = {"cell/op_1_0": "deep", "cell/input_1_0": [0], "cell/op_2_0": "flat", "cell/input_2_0": [1], "inner": 1}
    torch.testing.assert_close(cell.freeze(sample)(torch.ones(1, 1)), torch.tensor([[21.0, 42.0]]))
    del sample["inner"]
    with pytest.raises(SampleError, match="inner"):
        cell.freeze(sample)
    flat = sample | {"cell/op_1_0": "flat"}
    torch.testing.assert_close(cell.freeze(flat)(torch.ones(1, 1)), torch.tensor([[2.0, 4.0]]))


def test_loose_ends_and_their_number_over_a_whole_space() -> None:
    cell = nn.Cell([Scale(1)], 3, 2, 2, "loose_end", label="cell")
    number = cell.num_output_nodes
    assert isinstance(number, MutableExpression)
    assert cell.output_node_indices == [2, 3, 4]
    seen = set()
    for sample in cell.grid():
        loose = loose_ends(sample, "cell", 2)
        assert cell.output_nodes(sample) == loose
        assert number.freeze(sample) == len(loose)
        seen.add(len(loose))
    assert seen == {1, 2, 3}
    chain = cell.default() | {"cell/input_3_0": [2], "cell/input_4_1": [3]}
    assert cell.freeze(chain).output_node_indices == [4]


def test_all_nodes_are_the_output_of_the_other_kind() -> None:
    cell = nn.Cell([Scale(1)], 3, 1, 2, label="cell")
    assert cell.num_output_nodes == 3
    assert cell.output_node_indices == [2, 3, 4]
    assert cell.freeze(cell.random(random_state=1)).output_node_indices == [2, 3, 4]


def test_nodes_that_are_always_part_of_the_output() -> None:
    cell = nn.Cell([Scale(1)], 3, 1, 2, "loose_end", always_output=[3, 0, 0], label="cell")
    for seed in range(10):
        sample = cell.random(random_state=seed)
        expected = sorted({0, 3, *loose_ends(sample, "cell", 2)})
        frozen = cell.freeze(sample)
        assert frozen.output_node_indices == expected
        assert cell.num_output_nodes.freeze(sample) == len(expected)  # type: ignore[union-attr]
        assert frozen(inputs_for(cell)).shape == (2, 3 * len(expected))
    with pytest.raises(ValueError, match=r"'cell'.*always_output is \(5,\).*0 to 4"):
        nn.Cell([Scale(1)], 3, 1, 2, always_output=(5,), label="cell")


class LooseNet(nn.ModelSpace):
    """Two cells of one label and layers that fit the number of their loose ends."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList()
        self.fit = nn.ModuleList()
        channels: Any = 4
        for _ in range(2):
            self.fit.append(nn.Conv2d(channels, 4, 1))
            cell = nn.Cell(
                [torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.MaxPool2d(3, 1, 1)], 3, 2, 1, "loose_end", label="cell"
            )
            self.cells.append(cell)
            channels = cell.num_output_nodes * 4
        self.head = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        for fit, cell in zip(self.fit, self.cells, strict=True):
            x = cell(fit(x))
        return self.head(x.mean((2, 3)))


def test_layers_behind_a_cell_have_the_size_of_its_output() -> None:
    space = LooseNet()
    x = torch.randn(2, 4, 5, 5)
    assert space(x).shape == (2, 2)
    for seed in range(8):
        sample = space.random(random_state=seed)
        model = space.freeze(sample)
        assert model.head.in_features == 4 * len(loose_ends(sample, "cell", 1))
        assert model(x).shape == (2, 2)


def frozen_loose_net() -> torch.nn.Module:
    space = LooseNet()
    model: torch.nn.Module = space.freeze(space.random(random_state=3)).eval()
    return model


def test_frozen_cells_are_plain_modules() -> None:
    model = frozen_loose_net()
    for module in model.modules():
        assert not type(module).__module__.startswith("hwnas")
        assert all(base.__module__.split(".")[0] != "hwnas" for base in type(module).__mro__)
        for value in vars(module).values():
            assert not type(value).__module__.startswith("hwnas"), value
    expected = {"num_predecessors", "output_node_indices", "concat_dim", "preprocessor", "postprocessor"}
    own = {name for name in vars(model.cells[0]) if name not in vars(torch.nn.Module())}  # type: ignore[index]
    assert own == expected
    assert repr(model)


def test_frozen_cells_can_be_exported_and_compiled() -> None:
    model = frozen_loose_net()
    x = torch.randn(2, 4, 5, 5)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_copies_are_independent_and_freezing_shares_nothing() -> None:
    cell = nn.Cell(candidates(), 2, 2, 2, "loose_end", label="cell")
    sample = cell.random(random_state=0)
    before = cell.freeze(sample)
    copied = copy.deepcopy(cell)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    inputs = inputs_for(cell)
    torch.testing.assert_close(cell.freeze(sample)(inputs), before(inputs))
    assert copied.default() == cell.default()
    assert not {p.data_ptr() for p in before.parameters()} & {p.data_ptr() for p in cell.parameters()}
    torch.testing.assert_close(copy.deepcopy(before)(inputs), before(inputs))


@pytest.mark.parametrize("form", ["list", "arguments", "tuple"])
def test_inputs_as_a_list_or_as_arguments(form: str) -> None:
    cell = nn.Cell([Scale(2)], 1, 1, 3, label="cell")
    frozen = cell.freeze({"cell/op_3_0": 0, "cell/input_3_0": [2]})
    inputs = [torch.full((1, 1), float(i)) for i in (1, 10, 100)]
    out = {"list": lambda: frozen(inputs), "arguments": lambda: frozen(*inputs), "tuple": lambda: frozen(tuple(inputs))}
    assert out[form]().item() == 200
    single = nn.Cell([Scale(2)], 1, label="single")
    assert single(inputs[1]).item() == single([inputs[1]]).item() == 20


def test_a_wrong_number_of_inputs() -> None:
    cell = nn.Cell([Scale(2)], 1, 1, 2, label="cell")
    for model in (cell, cell.freeze(cell.default())):
        with pytest.raises(ValueError, match="cell: got 1 inputs, expected 2"):
            model(torch.ones(1))
        with pytest.raises(ValueError, match="cell: got 3 inputs, expected 2"):
            model([torch.ones(1)] * 3)


class Add(torch.nn.Module):
    """A preprocessor with choices."""

    def __init__(self) -> None:
        super().__init__()
        self.amount = nn.ValueChoice([1.0, 2.0], label="amount")
        self.scale = nn.LayerChoice([Scale(1), Scale(4)], label="scale")

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        return [self.scale(x) + self.amount() for x in inputs]


def test_processors_that_are_modules_may_hold_choices() -> None:
    def chained(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        return [inputs[1], output]

    cell = nn.Cell([Scale(10)], 1, 1, 2, preprocessor=Add(), postprocessor=chained, label="cell")
    assert set(cell.simplify()) == {"cell/op_2_0", "cell/input_2_0", "amount", "scale"}
    frozen = cell.freeze({"cell/op_2_0": 0, "cell/input_2_0": [1], "amount": 2.0, "scale": 1})
    first, second = frozen(torch.ones(1, 1), torch.full((1, 1), 3.0))
    assert first.item() == 3  # as it was passed
    assert second.item() == 10 * (4 * 3 + 2)


def test_a_preprocessor_that_changes_its_list_does_not_change_what_the_postprocessor_gets() -> None:
    def zero(inputs: list[Tensor]) -> list[Tensor]:
        inputs[0] = torch.zeros(1, 1)
        return inputs

    cell = nn.Cell([Scale(1)], 1, preprocessor=zero, postprocessor=lambda out, inputs: (out, inputs[0]), label="cell")
    assert [x.item() for x in cell(torch.ones(1, 1))] == [0, 1]


class Aligned:
    """No module, but it has a `forward`."""

    def __init__(self, middle: Any = None) -> None:
        self.first = torch.nn.Linear(2, 3)
        self.second = middle or torch.nn.Linear(5, 3)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        return [self.first(inputs[0]), self.second(inputs[1])]


def test_a_processor_that_is_no_module_is_trained_and_copied_too() -> None:
    aligned = Aligned()
    cell = nn.Cell([Scale(1)], 1, 1, 2, preprocessor=aligned, label="cell")
    assert {id(p) for p in aligned.first.parameters()} <= {id(p) for p in cell.parameters()}
    frozen = cell.freeze({"cell/op_2_0": 0, "cell/input_2_0": [1]})
    x, y = torch.randn(1, 2), torch.randn(1, 5)
    before = aligned.second(y).detach()
    torch.testing.assert_close(frozen(x, y), before)
    with torch.no_grad():
        for parameter in aligned.second.parameters():
            parameter.zero_()
    torch.testing.assert_close(frozen(x, y), before)
    assert frozen.double()(x.double(), y.double()).dtype == torch.float64  # what it computes with is part of it
    assert not any(type(module).__module__.startswith("hwnas") for module in frozen.modules())
    with pytest.raises(TypeError, match=r"'cell': the preprocessor holds choices"):
        nn.Cell([Scale(1)], 1, 1, 2, preprocessor=Aligned(nn.LayerChoice([Scale(1)], label="x")), label="cell")


def test_processors_that_cannot_work() -> None:
    with pytest.raises(TypeError, match=r"'cell': the postprocessor is 3; expected a callable or a module"):
        nn.Cell([Scale(1)], 1, postprocessor=3, label="cell")
    with pytest.raises(
        TypeError, match=r"'cell': the preprocessor is a method of the module Add.*pass the module itself"
    ):
        nn.Cell([Scale(1)], 1, preprocessor=Add().forward, label="cell")
    cell = nn.Cell([Scale(1)], 1, 1, 2, preprocessor=lambda inputs: inputs[:1], label="cell")
    with pytest.raises(ValueError, match="got 1 tensors from the preprocessor, expected 2"):
        cell(torch.ones(1), torch.ones(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_nodes": 0}, "num_nodes is 0; expected an int from 1 up"),
        ({"num_ops_per_node": 0}, "num_ops_per_node is 0"),
        ({"num_predecessors": 1.0}, r"num_predecessors is 1\.0"),
        ({"merge_op": "some"}, "merge_op is 'some'; expected 'all' or 'loose_end'"),
    ],
)
def test_impossible_numbers(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Cell 'cell': {message}"):
        nn.Cell([Scale(1)], **{"num_nodes": 1, **arguments}, label="cell")


@pytest.mark.parametrize("wrong", [Scale(1), 3, None])
def test_candidates_of_no_known_form(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"Cell 'cell': op_candidates is .*expected a list or dict of modules or of"):
        nn.Cell(wrong, 1, label="cell")


def test_candidates_that_are_no_modules() -> None:
    with pytest.raises(ValueError, match="has no values"):
        nn.Cell([], 1, label="cell")
    with pytest.raises(TypeError, match="Cell 'cell': candidate 1 is 3; expected a module or a callable"):
        nn.Cell([Scale(1), 3], 1, label="cell")


def documented_conv(node_index: int, op_index: int, input_index: int) -> torch.nn.Module:
    return torch.nn.Conv2d(32, 32, 3, stride=2 if input_index < 1 else 1)


def test_cells_as_they_are_documented() -> None:
    x = torch.randn(1, 32, 12, 12)
    cell = nn.Cell([nn.Conv2d(32, 32, 3, padding=1), nn.MaxPool2d(3, padding=1)], 4, 1, 2)
    assert cell([x, x]).shape == (1, 4 * 32, 12, 12)
    assert nn.Cell([nn.Conv2d(32, 32, 3)], 1)(x).shape == (1, 32, 10, 10)
    assert nn.Cell([nn.Conv2d(32, 32, 3)], 1, 1, 3)(x, x, x).shape == (1, 32, 10, 10)
    cell = nn.Cell([nn.Conv2d(32, 32, 3), nn.MaxPool2d(3)], 4, 1, 2, merge_op="loose_end")
    assert len(cell.output_node_indices) * 32 == 128
    assert cell(x, x).shape == (1, 128, 10, 10)
    cell = nn.Cell([documented_conv], 4, 1, 2)
    assert cell(x, x).shape == (1, 128, 5, 5)

    class Preprocessor:
        def __init__(self) -> None:
            self.conv1 = nn.Conv2d(16, 32, 1)
            self.conv2 = nn.Conv2d(64, 32, 1)

        def forward(self, x: list[Tensor]) -> list[Tensor]:
            return [self.conv1(x[0]), self.conv2(x[1])]

    cell = nn.Cell([nn.Conv2d(32, 32, 3), nn.MaxPool2d(3)], 4, 1, 2, preprocessor=Preprocessor())
    assert cell([torch.randn(1, 16, 48, 48), torch.randn(1, 64, 48, 48)]).shape == (1, 128, 46, 46)


class Made(torch.nn.Module):
    """Remembers for what it was made."""

    def __init__(self, *place: Any) -> None:
        super().__init__()
        self.place = place
        self.weight = torch.nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_factories_are_asked_only_for_what_is_needed() -> None:
    asked: list[tuple[Any, ...]] = []

    def maker(name: str) -> Callable[[int, int, int], torch.nn.Module]:
        def make(node: int, op: int, source: int) -> torch.nn.Module:
            asked.append((name, node, op, source))
            return Made(name, node, op, source)

        return make

    cell = nn.Cell({"a": maker("a"), "b": maker("b")}, 2, 2, 2, label="cell")
    assert asked == [("a", node, k, 0) for node in (2, 3) for k in (0, 1)]
    assert cell.op_candidates_factory is not None
    assert cell.simplify()["cell/op_3_1"].values == ["a", "b"]
    asked.clear()
    sample = cell.default() | {"cell/op_2_1": "b", "cell/input_3_0": [2]}
    frozen = cell.freeze(sample)
    assert asked == [("b", 2, 1, 0), ("a", 3, 0, 2)]
    places = [[op.place for op in node] for node in frozen.ops]
    assert places == [[("a", 2, 0, 0), ("b", 2, 1, 0)], [("a", 3, 0, 2), ("a", 3, 1, 0)]]


@pytest.mark.parametrize("seed", range(5))
def test_a_frozen_cell_of_factories_is_the_graph_computed_by_hand(seed: int) -> None:
    cell = nn.Cell(
        [lambda *place: Made("a", *place), lambda *place: Made("b", *place)], 3, 2, 2, "loose_end", label="c"
    )
    sample = cell.random(random_state=seed)
    frozen = cell.freeze(sample)
    for node in (2, 3, 4):
        for k in (0, 1):
            made = frozen.ops[node - 2][k]
            assert made.place == ("ab"[sample[f"c/op_{node}_{k}"]], node, k, *sample[f"c/input_{node}_{k}"])
    inputs = inputs_for(cell)
    torch.testing.assert_close(frozen(inputs), by_hand(cell, sample, inputs, lambda n, k, _: frozen.ops[n - 2][k]))
    default = cell.freeze(cell.default())
    torch.testing.assert_close(default(inputs), cell(inputs))  # what exists keeps its weights


@pytest.mark.parametrize("as_mapping", [True, False])
def test_one_callable_for_all_candidates(as_mapping: bool) -> None:
    def make(*place: int) -> Any:
        made = {"a": Made("a", *place), "b": Made("b", *place)}
        return made if as_mapping else list(made.values())

    cell = nn.Cell(make, 2, label="cell")
    names = ["a", "b"] if as_mapping else [0, 1]
    assert cell.simplify()["cell/op_2_0"].values == names
    sample = {"cell/op_1_0": names[1], "cell/input_1_0": [0], "cell/op_2_0": names[0], "cell/input_2_0": [1]}
    assert [node[0].place for node in cell.freeze(sample).ops] == [("b", 1, 0, 0), ("a", 2, 0, 1)]
    assert cell.op_candidates_factory is not None
    assert [made.place for made in cell.op_candidates_factory(5, 6, 7).values()] == [("a", 5, 6, 7), ("b", 5, 6, 7)]


def test_modules_among_callables_are_copied() -> None:
    module = torch.nn.Linear(3, 3)
    cell = nn.Cell({"given": module, "made": Made}, 2, label="cell")
    weights = [module.weight, *(node[0].default_operation.weight for node in cell.ops)]
    weights += [node[0].weight for node in cell.freeze(cell.default() | {"cell/input_2_0": [1]}).ops]
    assert len({weight.data_ptr() for weight in weights}) == 5
    assert all(torch.equal(weight, module.weight) for weight in weights)


def test_made_modules_follow_the_cell() -> None:
    cell = nn.Cell({"none": lambda *_: torch.nn.Identity(), "made": Made}, 1, label="cell").double().eval()
    made = cell.freeze({"cell/op_1_0": "made", "cell/input_1_0": [0]}).ops[0][0]
    assert made.weight.dtype == torch.float64
    assert not made.training
    with torch.device("meta"):
        cell = nn.Cell({"none": lambda *_: torch.nn.Identity(), "made": Made}, 1, label="cell")
    made = cell.freeze({"cell/op_1_0": "made", "cell/input_1_0": [0]}).ops[0][0]
    assert made.weight.device.type == "meta"


def test_cells_of_factories_are_copied_and_saved_like_others() -> None:
    cell = nn.Cell([Made], 2, label="cell")
    copied = copy.deepcopy(cell)
    torch.testing.assert_close(copied(inputs_for(cell)), cell(inputs_for(cell)))
    assert set(cell.state_dict()) == {f"ops.{node}.0.default_operation.weight" for node in (0, 1)}
    frozen = cell.freeze(cell.default())
    assert set(frozen.state_dict()) == {f"ops.{node}.0.weight" for node in (0, 1)}
    assert not any(type(module).__module__.startswith("hwnas") for module in frozen.modules())


class Workshop:
    """Makes modules, and cannot be copied."""

    def make(self, *place: int) -> torch.nn.Module:
        return Made(*place)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise TypeError("not to be copied")


def test_freezing_leaves_the_factory_alone() -> None:
    cell = nn.Cell([Workshop().make], 2, label="cell")
    frozen = cell.freeze(cell.default() | {"cell/input_2_0": [1]})
    assert [node[0].place for node in frozen.ops] == [(1, 0, 0), (2, 0, 1)]


def test_factories_that_cannot_work() -> None:
    def choosing(*_: int) -> torch.nn.Module:
        return torch.nn.Sequential(nn.LayerChoice([Scale(1)], label="inner"))

    with pytest.raises(UnsupportedError, match=r"'cell/op_1_0': the factory made candidate 0 with choices in it"):
        nn.Cell([choosing], 1, label="cell")
    for made in (nn.LayerChoice([Scale(1)], label="inner"), nn.MutableModule()):
        with pytest.raises(UnsupportedError, match=r"'cell/op_1_0': the factory made candidate 0 with choices in it"):
            nn.Cell(lambda *_, made=made: [made], 1, label="cell")
    later = nn.Cell({"scale": lambda *_: Scale(1), "later": choosing}, 1, label="cell")
    with pytest.raises(UnsupportedError, match=r"'cell/op_1_0': the factory made candidate 'later' with choices"):
        later.freeze({"cell/op_1_0": "later", "cell/input_1_0": [0]})
    with pytest.raises(TypeError, match=r"'cell/op_1_0': candidate 0 is 3; expected a torch\.nn\.Module"):
        nn.Cell([lambda *_: 3], 1, label="cell")
    moody = nn.Cell(lambda node, op, source: [Scale(1)] * (1 + source), 2, label="cell")
    with pytest.raises(ValueError, match=r"'cell/op_2_0': for input 1 the factory makes the candidates \[0, 1\]"):
        moody.freeze(moody.default() | {"cell/input_2_0": [1]})


class Around(nn.ModelSpace):
    def __init__(self, part: torch.nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.part(*inputs)


def test_a_cell_whose_nodes_are_all_output_is_searchable() -> None:
    candidates = {"conv": nn.Conv2d(2, 2, 3, padding=1), "pool": nn.MaxPool2d(3, 1, 1)}
    x = [torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)]
    space = Around(nn.Cell(candidates, 2, 2, 2, label="c"))
    sampled = OneHot(space.simplify().values())
    make_supernet(space, sampled)
    for seed in range(5):
        sample = space.random(random_state=seed)
        sampled.resample(sample)
        torch.testing.assert_close(space(*x), space.freeze(sample)(*x))
    linear = {"conv": nn.Conv2d(2, 2, 3, padding=1), "pool": nn.AvgPool2d(3, 1, 1)}  # so that mixing commutes
    mixed = Around(nn.Cell(linear, 1, 1, 2, label="c"))
    softmax = Softmax(mixed.simplify().values())
    make_supernet(mixed, softmax)
    torch.nn.init.normal_(softmax.alpha("c/op_2_0"))
    torch.nn.init.normal_(softmax.alpha("c/input_2_0"))
    operation, source = softmax.probabilities("c/op_2_0"), softmax.probabilities("c/input_2_0")
    expected = sum(
        operation[i] * source[j] * mixed.freeze({"c/op_2_0": name, "c/input_2_0": [j]})(*x)
        for i, name in enumerate(linear)
        for j in range(2)
    )
    torch.testing.assert_close(mixed(*x), expected)
