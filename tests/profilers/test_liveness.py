"""Which parts are counted, against what an export of each member computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.export import build_onnx
from hwnas.hub import ProxylessNASSpace
from hwnas.hub.nas_bench_201 import NASBench201Space
from hwnas.profilers import liveness
from hwnas.profilers.latency_parts import LatencyParts, Members
from hwnas.profilers.profiler import domain_of
from hwnas.profilers.tables import Table, at
from hwnas.profilers.traced_space import TracedSpace
from hwnas.profilers.tracing import trace_everywhere
from hwnas.profilers.units import units_of
from hwnas.space import Sample

X = torch.zeros(1, 3, 8, 8)


def exported(space: nn.ModelSpace, sample: Sample) -> dict[str, int]:
    """Count the nodes of a member by what they are."""
    content = build_onnx(space.freeze(sample).eval(), (X,))
    assert content is not None
    graph = onnx.load_from_string(content).graph
    weights = {tensor.name for tensor in graph.initializer}
    found = {"conv": 0, "pool": 0, "add": 0, "add with a constant": 0}
    for node in graph.node:
        if node.op_type == "Conv":
            found["conv"] += 1
        elif (
            node.op_type == "AveragePool"
            and node.attribute
            and "3, 3" in str(onnx.helper.get_node_attr_value(node, "kernel_shape"))
        ):
            found["pool"] += 1
        elif node.op_type == "Add":
            constant = any(name in weights for name in node.input)
            found["add with a constant" if constant else "add"] += 1
    return found


def test_parts_are_those_of_an_export() -> None:
    space = NASBench201Space(channels=4, cells=1)
    traced = TracedSpace(space, X)
    named = Members(traced)
    parts = LatencyParts(space, traced.traces, named)
    names = [named.name(key) for key in parts.keys]
    kinds = {
        "conv": lambda name: name == "stem" or name.endswith(("candidates.2", "candidates.3")),
        "pool": lambda name: name.endswith("candidates.4"),
        "add": lambda name: name.endswith(":add"),
        "add with a constant": lambda name: name.endswith("constant"),
    }
    rng = np.random.default_rng(0)
    samples = [space.random(random_state=rng) for _ in range(60)]
    seen = set()
    for sample, counts in zip(samples, parts.counts(samples), strict=True):
        truth = exported(space, sample)
        if truth["conv"] == 0:
            assert not counts[[kind(name) for name in names for kind in [kinds["pool"]]]].any()
            continue
        truth["conv"] -= 6  # both blocks that reduce have three, and are parts as a whole
        truth["add"] -= 2
        found = {
            label: int(sum(count for name, count in zip(names, counts, strict=True) if kind(name)))
            for label, kind in kinds.items()
        }
        assert found == truth, sample
        seen.add(found["add with a constant"])
    assert seen == {0, 3, 6}


def test_a_chain_without_constants_is_left_whole() -> None:
    space = ProxylessNASSpace(classes=4, stem_width=8, widths=(8,) * 7, last_width=8)
    (trace,) = trace_everywhere(space, torch.zeros(1, 3, 32, 32))
    for _, found in liveness.operators_with(trace):
        assert found.whole.values.all()
        assert len(found.live.labels) <= 1


class Net(nn.ModelSpace):
    """Noise is made of the size of the input, but not of its values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LayerChoice({"conv": nn.Conv2d(3, 3, 1), "skip": nn.Identity()}, label="layer")
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shift = self.act(torch.ones_like(x) * 2)
        return self.layer(x) + shift


def test_what_does_not_depend_on_the_input_is_no_part() -> None:
    space = Net()
    traced = TracedSpace(space, X)
    named = Members(traced)
    names = sorted(named.name(key) for key in LatencyParts(space, traced.traces, named).keys)
    assert names == ["add", "layer.candidates.0"]
    (add,) = (unit for unit in units_of(trace_everywhere(Net(), X)[0]) if unit.name == "add")
    assert len(add.make({}).inputs) == 1


def test_conditions_that_grow_too_large_become_weaker(monkeypatch: pytest.MonkeyPatch) -> None:
    space = NASBench201Space(channels=4, cells=1)
    (trace,) = trace_everywhere(space, X)
    exact = [found.live for _, found in liveness.operators_with(trace)]
    monkeypatch.setattr(liveness, "MAX_ENTRIES", 30)
    weak = [found.live for _, found in liveness.operators_with(trace)]
    domain = domain_of(space)
    rng = np.random.default_rng(0)

    def holds(table: Table, sample: Sample) -> bool:
        return bool(at(table, sample, domain))

    weaker = 0
    for sample in [space.random(random_state=rng) for _ in range(40)]:
        for one, other in zip(exact, weak, strict=True):
            assert holds(other, sample) or not holds(one, sample)
            weaker += holds(other, sample) and not holds(one, sample)
    assert weaker > 0
    assert all(table.values.size <= 30 for table in weak)
