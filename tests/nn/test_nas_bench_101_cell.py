from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import SampleError, UnsupportedError
from hwnas.space import Sample, space_from_json, space_to_json

OPERATIONS = {"linear": lambda n: torch.nn.Linear(n, n), "relu": lambda n: torch.nn.ReLU()}


def cell_of(label: str = "c", **kwargs: Any) -> nn.NasBench101Cell:
    arguments = {"op_candidates": OPERATIONS, "in_features": 5, "out_features": 8, "projection": torch.nn.Linear}
    return nn.NasBench101Cell(**{**arguments, "label": label, **kwargs})


def sample_of(operations: list[Any], *inputs: list[int]) -> Sample:
    return nn.NasBench101Graph(tuple(operations), tuple(map(tuple, inputs))).to_sample("c")


def number_of_wirings(num_nodes: int, max_edges: int) -> int:
    """Coefficients of the product of ((1 + z)^i - 1), summed up to the power of the limit."""
    product = np.array([1], dtype=object)
    for node in range(1, num_nodes):
        product = np.convolve(product, [0, *(math.comb(node, k) for k in range(1, node + 1))])
    return int(sum(product[: max_edges + 1]))


def test_the_labels() -> None:
    cell = cell_of(max_num_nodes=5)
    dimensions = cell.simplify()
    assert list(dimensions) == [
        "c/num_nodes",
        "c/op1",
        "c/input1",
        "c/op2",
        "c/input2",
        "c/op3",
        "c/input3",
        "c/input4",
    ]
    assert dimensions["c/num_nodes"].values == [2, 3, 4, 5]
    assert dimensions["c/op2"].values == ["linear", "relu"]
    assert dimensions["c/input3"].values == [0, 1, 2]
    assert dimensions["c/input3"].n_chosen is None


def test_the_number_of_nodes_is_drawn_in_proportion_to_powers_of_two() -> None:
    weights = cell_of().simplify()["c/num_nodes"].weights
    assert sum(weights) == pytest.approx(1)
    assert [weight / weights[0] for weight in weights] == pytest.approx([1, 2, 4, 8, 16, 32])


def test_candidates_of_a_list_are_chosen_by_position() -> None:
    cell = cell_of(op_candidates=list(OPERATIONS.values()))
    assert cell.simplify()["c/op1"].values == [0, 1]
    assert isinstance(cell.freeze(sample_of([1], [0], [1])).operations[0], torch.nn.ReLU)


@pytest.mark.parametrize(("nodes", "edges", "chosen"), [(7, 9, 7), (3, 9, 3), (2, 1, 2), (7, 3, 4)])
def test_the_default_is_the_longest_chain_within_the_limit(nodes: int, edges: int, chosen: int) -> None:
    cell = cell_of(max_num_nodes=nodes, max_num_edges=edges)
    default = cell.default()
    assert default["c/num_nodes"] == chosen
    assert cell.contains(default)
    assert cell.robust_default() == default
    graph = cell.graph(default)
    assert graph.inputs == tuple((node,) for node in range(chosen - 1))
    assert set(graph.operations) <= {"linear"}


def test_unfrozen_it_computes_the_default() -> None:
    cell = cell_of()
    x = torch.randn(3, 5)
    frozen = cell.freeze(cell.default())
    torch.testing.assert_close(cell(x), frozen(x))
    assert frozen(x).shape == (3, 8)


def test_only_edges_of_active_nodes_count() -> None:
    cell = cell_of()
    full = {f"c/input{node}": list(range(node)) for node in range(1, 7)}
    operations = {f"c/op{node}": "relu" for node in range(1, 6)}
    for nodes in (2, 3, 4):
        assert cell.contains({"c/num_nodes": nodes, **operations, **full})
    for nodes in (5, 6, 7):  # 10, 15 and 21 edges
        assert not cell.contains({"c/num_nodes": nodes, **operations, **full})
    nine = sample_of(["relu"] * 5, [0], [1], [2], [3], [1, 4], [0, 1, 5])
    assert cell.contains(nine)
    ten = {**nine, "c/input6": [0, 1, 2, 5]}
    with pytest.raises(SampleError, match=r"10 edges.*expected at most 9"):
        cell.validate(ten)


def test_labels_of_nodes_beyond_the_number_are_inactive() -> None:
    cell = cell_of()
    assert cell.contains(sample_of(["relu"], [0], [0, 1]))
    with pytest.raises(SampleError, match="c/op1"):
        cell.validate({"c/num_nodes": 3, "c/input1": [0], "c/input2": [1]})
    with pytest.raises(SampleError, match="c/input2"):
        cell.validate({"c/num_nodes": 3, "c/op1": "relu", "c/input1": [0]})


@pytest.mark.parametrize(("nodes", "edges"), [(2, 1), (4, 4), (5, 9), (6, 8), (5, 3)])
def test_the_number_of_members(nodes: int, edges: int) -> None:
    cell = cell_of(max_num_nodes=nodes, max_num_edges=edges)
    expected = sum(2 ** (n - 2) * number_of_wirings(n, edges) for n in range(2, nodes + 1))
    assert cell.size(active_only=True) == expected


def test_the_grid_is_brute_force() -> None:
    cell = cell_of(max_num_nodes=4, max_num_edges=4)
    seen = {cell.graph(sample) for sample in cell.grid(active_only=True)}
    listed = list(cell.grid(active_only=True))
    assert len(listed) == cell.size(active_only=True)
    found = {
        (n, inputs, operations)
        for n in (2, 3, 4)
        for inputs in itertools.product(
            *[[c for k in range(1, i + 1) for c in itertools.combinations(range(i), k)] for i in range(1, n)]
        )
        if sum(map(len, inputs)) <= 4
        for operations in itertools.product(OPERATIONS, repeat=n - 2)
    }
    assert found == {
        (g.num_nodes, g.inputs, g.operations) for g in (nn.NasBench101Graph.from_sample(s, "c") for s in listed)
    }
    assert seen == {nn.NasBench101Graph(operations, inputs).pruned() for _, inputs, operations in found}


def test_draws_keep_the_limit_and_the_weights() -> None:
    cell = cell_of()
    rng = np.random.default_rng(0)
    drawn = [cell.random(random_state=rng) for _ in range(3000)]
    assert all(cell.contains(sample) for sample in drawn)
    # A wiring of n nodes has probability 1 / prod(2^i - 1) before the limit, so n has that of its valid wirings.
    mass = {n: 2**n * number_of_wirings(n, 9) / math.prod(2**i - 1 for i in range(1, n)) for n in range(2, 8)}
    counts = Counter(sample["c/num_nodes"] for sample in drawn)
    for n, weight in mass.items():
        expected = weight / sum(mass.values())
        assert counts[n] / 3000 == pytest.approx(expected, abs=4 * math.sqrt(expected / 3000))
    assert cell.random(random_state=3) == cell.random(random_state=3)
    assert cell.random({"c/num_nodes": 7}, random_state=3)["c/num_nodes"] == 7


def independent(frozen: torch.nn.Module, sample: Sample, x: Tensor) -> Tensor:
    """Compute a frozen cell from OUT backwards, only with its leaves and the sample."""
    graph = nn.NasBench101Graph.from_sample(sample, "c").pruned()
    last = graph.num_nodes - 1
    operations = iter(frozen.operations)
    operation_of = {node: next(operations) for node in range(1, last)}

    def width(node: int) -> int:
        joined = [n for n in graph.inputs[-1] if n]
        if node in joined:
            share, rest = divmod(8, len(joined))
            return share + 1 if joined.index(node) < rest else share
        return max(width(reader) for reader in range(1, last) if node in graph.inputs[reader - 1])

    def value(node: int) -> Tensor:
        total = torch.zeros(len(x), width(node))
        for source in graph.inputs[node - 1]:
            term = frozen.projections[str(node)](x) if source == 0 else value(source)
            total = total + term[:, : width(node)]
        return operation_of[node](total)

    out = torch.zeros(len(x), 8)
    joined = [value(node) for node in graph.inputs[-1] if node]
    if joined:
        out = torch.cat(joined, 1)
        assert out.shape == (len(x), 8)
    return out + frozen.projections[str(last)](x) if 0 in graph.inputs[-1] else out


def test_members_compute_what_the_paper_says() -> None:
    cell = cell_of()
    x = torch.randn(3, 5)
    rng = np.random.default_rng(1)
    for _ in range(100):
        sample = cell.random(random_state=rng)
        frozen = cell.freeze(sample)
        torch.testing.assert_close(frozen(x), independent(frozen, sample, x))


@pytest.mark.parametrize(
    ("graph", "channels"),
    [
        (((0,),), [5, 8]),
        (((0,), (0, 1)), [5, 8, 8]),
        (((0,), (0,), (0,), (1, 2, 3)), [5, 3, 3, 2, 8]),  # 8 divided by three
        (((0,), (1,), (1, 2), (2, 3)), [5, 4, 4, 4, 8]),
        (((0,), (0, 1), (0, 2), (1,), (2, 3, 4)), [5, 3, 3, 3, 2, 8]),  # node 1 is as wide as the wider of 2 and 4
        (((0,), (1,), (2,), (0, 3)), [5, 8, 8, 8, 8]),
    ],
)
def test_channels_by_hand(graph: tuple[tuple[int, ...], ...], channels: list[int]) -> None:
    assert nn.NasBench101Graph(("relu",) * (len(graph) - 1), graph).channels(5, 8) == channels


def test_a_wider_node_is_cut() -> None:
    # Node 1 has 3 channels, of which node 3, with 2 channels, reads the first ones.
    sample = sample_of(["relu", "relu", "relu"], [0], [0], [1], [1, 2, 3])
    frozen = cell_of().freeze(sample)
    y = frozen(torch.randn(4, 5))
    torch.testing.assert_close(y[:, 6:], y[:, :2])


def test_dead_nodes_have_no_modules() -> None:
    sample = sample_of(["linear", "linear", "relu"], [0], [0, 1], [0], [3])
    frozen = cell_of().freeze(sample)
    assert [type(module) for module in frozen.operations] == [torch.nn.ReLU]
    assert sum(p.numel() for p in frozen.parameters()) == 5 * 8 + 8  # one projection


def test_members_are_plain_and_share_nothing() -> None:
    cell = cell_of()
    shared = {p.data_ptr() for p in cell.parameters()}
    for sample in (cell.default(), sample_of(["linear"], [0], [0, 1])):
        frozen = cell.freeze(sample)
        assert not any(b.__module__.startswith("hwnas") for m in frozen.modules() for b in type(m).__mro__)
        assert not shared & {p.data_ptr() for p in frozen.parameters()}
        again = cell.freeze(sample)
        assert not {p.data_ptr() for p in again.parameters()} & {p.data_ptr() for p in frozen.parameters()}


def test_members_take_over_dtype_and_mode() -> None:
    cell = cell_of().double().eval()
    frozen = cell.freeze(sample_of(["linear"], [0], [0, 1]))
    assert {p.dtype for p in frozen.parameters()} == {torch.float64}
    assert not any(module.training for module in frozen.modules())
    with torch.device("meta"):  # of where the cell is, not of where it is frozen
        assert {p.device.type for p in cell.freeze(sample_of(["linear"], [0], [0, 1])).parameters()} == {"cpu"}
        assert {p.device.type for p in cell_of().parameters()} == {"meta"}


def test_images_pass_as_well() -> None:
    cell = cell_of(
        op_candidates={"pool": lambda n: torch.nn.MaxPool2d(3, 1, 1)}, projection=lambda n, m: torch.nn.Conv2d(n, m, 1)
    )
    member = cell.freeze(sample_of(["pool", "pool"], [0], [0], [0, 1, 2]))
    assert member(torch.zeros(2, 5, 6, 7)).shape == (2, 8, 6, 7)


class Net(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.first = cell_of("cell")
        self.second = cell_of("cell", in_features=8, out_features=12)
        self.apart = cell_of(None, in_features=12, out_features=6)

    def forward(self, x: Tensor) -> Tensor:
        return self.apart(self.second(self.first(x)))


def test_cells_of_one_label_have_one_graph() -> None:
    space = Net()
    assert {label.split("/")[0] for label in space.simplify()} == {"cell", "cell_1"}
    sample = space.random(random_state=4)
    member = space.freeze(sample)
    assert member.first.inputs == member.second.inputs != member.apart.inputs
    assert member(torch.randn(2, 5)).shape == space(torch.randn(2, 5)).shape == (2, 6)
    assert copy.deepcopy(space).random(random_state=4) == sample


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"op_candidates": []}, ValueError, "no op_candidates"),
        ({"max_num_nodes": 1}, ValueError, "max_num_nodes is 1"),
        ({"max_num_edges": 0}, ValueError, "max_num_edges is 0"),
        ({"out_features": 4}, ValueError, r"out_features is 4.*5 nodes"),
        ({"op_candidates": {"x": lambda n: None}}, TypeError, r"'c'.*op_candidates\['x'\] returned None"),
        ({"projection": lambda n, m: 3}, TypeError, "projection returned 3"),
        (
            {"op_candidates": {"x": lambda n: nn.Linear(n, nn.ValueChoice([4, 8], label="w"))}},
            UnsupportedError,
            r"op_candidates\['x'\] returned a module with choices",
        ),
        (
            {"projection": lambda n, m: nn.Sequential(nn.LayerChoice([nn.Linear(n, m)], label="p"))},
            UnsupportedError,
            "projection returned a module with choices",
        ),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cell_of(**kwargs)


def test_a_bad_candidate_that_is_not_in_the_default_is_named_when_it_is_needed() -> None:
    cell = cell_of(op_candidates=[*OPERATIONS.values(), lambda n: "text"])
    with pytest.raises(TypeError, match=r"op_candidates\[2\] returned 'text'"):
        cell.freeze(sample_of([2], [0], [1]))


def test_the_space_is_described_with_its_edge_limit() -> None:
    cell = nn.NasBench101Cell([lambda n: nn.Identity()], 2, 4, lambda n, m: nn.Conv2d(n, m, 1), 4, 4, label="cell")
    described = space_from_json(space_to_json(cell))
    assert list(described.grid()) == list(cell.grid())
    assert described.size(active_only=True) == cell.size(active_only=True) < described.size()
