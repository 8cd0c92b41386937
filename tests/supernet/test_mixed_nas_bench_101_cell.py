"""`NasBench101Cell` in super-nets that sample: one graph at a time, on slices of the weights of the widest nodes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import UnsupportedError
from hwnas.evaluators import recalibrate_batch_norm
from hwnas.strategies import ENAS, RandomOneShot
from hwnas.strategies.feasible import FeasibleSampler
from hwnas.supernet import MixedNasBench101Cell, OneHot, Softmax, make_supernet


def conv(inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> torch.nn.Module:
    layer = torch.nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return torch.nn.Sequential(layer, torch.nn.BatchNorm2d(outputs), torch.nn.ReLU())


OPERATIONS = {
    "conv": lambda n: conv(n, n, 3),
    "depthwise": lambda n: conv(n, n, 3, n),
    "pool": lambda n: torch.nn.MaxPool2d(3, 1, 1),
}


class Net(nn.ModelSpace):
    """Two cells of one label, of different widths; 7 channels are divided with a rest."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        sizes = {"max_num_nodes": 5, "max_num_edges": 6, **options}
        self.first = nn.NasBench101Cell(OPERATIONS, 3, 7, conv, label="cell", **sizes)
        self.second = nn.NasBench101Cell(OPERATIONS, 7, 10, conv, label="cell", **sizes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


def supernet_of(**options: Any) -> tuple[Net, OneHot]:
    space = Net(**options)
    relaxation = OneHot(space.simplify().values())
    make_supernet(space, relaxation).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*space.parameters(), *space.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)
    return space, relaxation


def graph(num_nodes: int, operations: list[str], *inputs: list[int]) -> dict[str, Any]:
    return {
        "cell/num_nodes": num_nodes,
        **{f"cell/op{i}": operation for i, operation in enumerate(operations, 1)},
        **{f"cell/input{i}": sources for i, sources in enumerate(inputs, 1)},
    }


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_default_graph_keeps_its_modules() -> None:
    torch.manual_seed(0)
    space = Net()
    expected = space.double()(X)
    relaxation = OneHot(space.simplify().values())
    default = space.default()
    make_supernet(space, relaxation)
    relaxation.resample(default)
    assert isinstance(space.first, MixedNasBench101Cell)
    assert torch.equal(space(X), expected)
    assert all(parameter.dtype == torch.float64 for parameter in space.parameters())


@pytest.mark.parametrize("training", [False, True])
def test_every_graph_is_the_frozen_member(training: bool) -> None:
    space, relaxation = supernet_of()
    space.train(training)
    initial = copy.deepcopy(space.state_dict())
    sampler = FeasibleSampler(space, seed=0)
    widths = set()
    for number in range(30):
        sample = sampler.sample(number)
        assert space.contains(sample)
        relaxation.resample(sample)
        member = space.freeze(sample)
        widths.update(member.first.channels[1:-1])
        assert not any(base.__module__.startswith("hwnas") for m in member.modules() for base in type(m).__mro__)
        y, expected = space(X), member(X)
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-8)
        space.zero_grad()
        for output in (y, expected):
            (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
        np.testing.assert_allclose(nonzero(space), nonzero(member), rtol=1e-6, atol=1e-9)
        for name, tensor in space.freeze(sample).state_dict().items():  # the statistics that were updated are its own
            torch.testing.assert_close(tensor, member.state_dict()[name], rtol=1e-6, atol=1e-8)
        space.load_state_dict(initial)
    assert widths >= {2, 3, 4, 7}  # 7 // 3, its rest, 7 // 2 + 1, 7


def nonzero(module: torch.nn.Module) -> Any:
    gradients = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    return np.sort(gradients[gradients.abs() > 1e-8].numpy())


def test_slices_are_prefixes_at_the_place_of_the_node_without_dead_ones() -> None:
    space, relaxation = supernet_of()
    # OUT reads nodes 2 and 3; nothing reads node 1, so they are the first two that are left.
    sample = graph(5, ["pool", "conv", "depthwise"], [0], [0], [0], [0, 2, 3])
    member = space.freeze(sample).first
    assert member.channels == [3, 4, 3, 7]
    shared = space.first.shared_operations
    assert torch.equal(member.operations[0][0].weight, shared[0][0].largest[0].weight[:4, :4])
    assert torch.equal(member.operations[1][0].weight, shared[1][1].largest[0].weight[:3])
    assert torch.equal(member.projections["2"][0].weight, space.first.shared_projections[1].largest[0].weight[:3])
    assert torch.equal(member.projections["3"][0].weight, space.first.shared_projections[-1].largest[0].weight)
    same = graph(4, ["conv", "depthwise"], [0], [0], [0, 1, 2])
    outputs = []
    for one in (sample, same):  # one graph, one model
        relaxation.resample({**space.default(), **one})
        outputs.append(space.eval()(X))
    assert torch.equal(*outputs)
    space.zero_grad()
    space(X).square().sum().backward()
    gradient = shared[0][0].largest[0].weight.grad
    assert (gradient[4:] == 0).all()
    assert (gradient[:, 4:] == 0).all()
    assert (gradient[:4, :4] != 0).any()
    assert all(parameter.grad is None for parameter in shared[2].parameters())


def test_statistics_can_be_estimated_anew() -> None:
    space, relaxation = supernet_of()
    sample = graph(4, ["conv", "depthwise"], [0], [0], [0, 1, 2])
    relaxation.resample({**space.default(), **sample})
    member = space.freeze(sample)
    batches = [torch.randn(4, 3, 4, 4, dtype=torch.float64) for _ in range(3)]
    for model in (space.eval(), member.eval()):
        recalibrate_batch_norm(model, batches)
    for name, tensor in space.freeze(sample).state_dict().items():
        torch.testing.assert_close(tensor, member.state_dict()[name], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(space(X), member(X), rtol=1e-6, atol=1e-8)
    modes = [module.momentum for module in space.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert set(modes) == {0.1}


@pytest.mark.parametrize("kind", [RandomOneShot, ENAS])
def test_strategies_draw_within_the_limit_of_edges(kind: Any) -> None:
    space = Net(max_num_edges=5)
    strategy = kind()
    strategy.mutate_model(space)
    sampler = FeasibleSampler(space, seed=0)
    samples = (
        strategy.controller.draw(20, torch.Generator().manual_seed(0), sampler.accepts)
        if kind is ENAS
        else [sampler.sample(number) for number in range(20)]
    )
    for sample in samples:
        nodes = range(1, sample["cell/num_nodes"])
        assert sum(len(sample[f"cell/input{node}"]) for node in nodes) <= 5
    strategy.relaxation.resample(samples[0])
    assert space(X.float()).shape == (2, 10, 4, 4)


def test_what_the_cell_decides() -> None:
    space, relaxation = supernet_of()
    assert set(space.first.search_space_spec()) == set(space.simplify())
    memo = {"cell/num_nodes": 3, "cell/input2": [0]}
    new = space.first.resample(memo, np.random.default_rng(0))
    assert relaxation.sample == {**memo, **new}
    assert space.first.export({}) == relaxation.sample


def test_two_nodes_are_a_projection() -> None:
    space, relaxation = supernet_of(max_num_nodes=2)
    relaxation.resample(space.default())
    member = space.freeze(space.default())
    assert len(space.first.shared_operations) == 0
    torch.testing.assert_close(space(X), member(X))


def test_several_graphs_at_once_are_refused() -> None:
    space = Net()
    with pytest.raises(UnsupportedError, match=r"NasBench101Cell 'cell' \(at first\).*RandomOneShot"):
        make_supernet(space, Softmax(space.simplify().values()))


def test_parameters_that_are_no_slices_are_refused() -> None:
    class Outer(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(12 // width))

    class Bad(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.NasBench101Cell([Outer], 4, 4, torch.nn.Linear, max_num_nodes=4, label="cell")

    space = Bad()
    with pytest.raises(UnsupportedError, match=r"'cell', op_candidates\[0\]: for 2 channels 'weight' has the shape"):
        make_supernet(space, OneHot(space.simplify().values()))


def test_making_and_freezing_leave_the_random_state_alone() -> None:
    space, _ = supernet_of()
    before = torch.random.get_rng_state()
    space.freeze(space.default())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_frozen_parameters_stay_frozen() -> None:
    space, _ = supernet_of()
    space.first.shared_operations[0][0].largest[0].weight.requires_grad_(False)
    with torch.no_grad():
        member = space.freeze(graph(4, ["conv", "conv"], [0], [0], [1, 2]))
    assert not member.first.operations[0][0].weight.requires_grad
    assert member.second.operations[0][0].weight.requires_grad
