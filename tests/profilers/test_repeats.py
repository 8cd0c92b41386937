"""What is written down again is what PyTorch would have run again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import hwnas.nn as nn
from hwnas.profilers import NumParamsProfiler, TracedSpace
from hwnas.profilers.repeats import Repeats
from hwnas.profilers.trace import OpCall, Trace, storage_of
from hwnas.profilers.units import units_of

X = torch.zeros(2, 4, 6, 6)


class Candidate(torch.nn.Module):
    """Runs a function, and counts how often."""

    runs = 0

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        Candidate.runs += 1
        return self.function(x)


def halves(x: Tensor) -> Tensor:
    one, other = x.chunk(2, 1)  # two views of one memory
    return torch.cat([other, one], 1)


def written_through_a_view(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:3].mul_(2)
    return y.transpose(0, 1).transpose(0, 1)


def columns_first(x: Tensor) -> Tensor:
    return (x.transpose(2, 3).contiguous() * 2).transpose(2, 3)


def of_bits(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype) + x.contiguous().view(torch.uint8).view(x.dtype)


class Scaled(torch.nn.Module):
    """Changes a part of a buffer in place, and has a weight twice."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(6))
        self.conv, self.tied = torch.nn.Conv2d(4, 4, 1, bias=False), torch.nn.Conv2d(4, 4, 1, bias=False)
        self.tied.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.tied(self.conv(x * self.scale[:4].mul_(2)[:, None, None]))
        return y


def conv(channels: int, node: int, op: int, source: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.ReLU(inplace=True), torch.nn.Conv2d(channels, channels, 1), torch.nn.BatchNorm2d(channels)
    )


def of(function: Callable[[Tensor], Tensor], node: int, op: int, source: int) -> torch.nn.Module:
    return Candidate(function)


def tied(node: int, op: int, source: int) -> torch.nn.Module:
    return Scaled()


FUNCTIONS = {
    function.__name__: partial(of, function) for function in (halves, written_through_a_view, columns_first, of_bits)
} | {"in place": lambda *_: torch.nn.ReLU(inplace=True), "itself": lambda *_: torch.nn.Identity()}


class Net(nn.ModelSpace):
    """Three cells whose candidates are the same modules; tensors between them are changed."""

    def __init__(self, candidates: Any, *changes: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.changes = changes
        self.cells = nn.ModuleList([nn.Cell(candidates, 2, 2, label=f"c{i}") for i in range(len(changes))])

    def forward(self, x: Tensor) -> Tensor:
        for change, cell in zip(self.changes, self.cells, strict=True):
            x = cell(change(x))[:, :4]
        return x


def written(trace: Trace) -> list[Any]:
    """All that a trace says, tensors numbered by themselves and by their memory."""
    tensors: dict[int, int] = {}
    memory: dict[int, int] = {}

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return repr(leaf)
        assert type(leaf) is not torch.Tensor
        numbers = tensors.setdefault(id(leaf), len(tensors)), memory.setdefault(storage_of(leaf), len(memory))
        sizes = tuple(leaf.shape), leaf.stride(), leaf.storage_offset(), leaf.dtype, leaf.device, leaf.requires_grad
        return *numbers, *sizes

    found: list[Any] = []
    for event in (*trace.timeline, *trace.modules):
        entries = vars(event)
        leaves, structure = pytree.tree_flatten({k: v for k, v in entries.items() if k not in ("conditions", "needed")})
        tables = [*entries.get("conditions", ()), *([entries["needed"]] if "needed" in entries else [])]
        found.append(([of(leaf) for leaf in leaves], str(structure), [(t.labels, t.values.tolist()) for t in tables]))
    return [*found, [of(tensor) for tensor in trace.outputs]]


def run_again(self: Repeats, module: torch.nn.Module, place: str, x: Any) -> Any:
    """Run a module instead of repeating what it ran."""
    self._known.clear()
    return run_once(self, module, place, x)


run_once = Repeats.run

CONVS = {"conv": partial(conv, 4), "tied": tied, "itself": FUNCTIONS["itself"]}
CHANGES = {
    "nothing": (Tensor.clone, Tensor.clone, Tensor.clone),
    "dtype": (Tensor.clone, Tensor.double, Tensor.float),
    "strides": (Tensor.clone, lambda x: x.to(memory_format=torch.channels_last), Tensor.contiguous),
    "shape": (Tensor.clone, lambda x: torch.cat([x, x], 2), lambda x: x[:, :, :6]),
    "offset": (Tensor.clone, lambda x: torch.cat([x, x])[2:], lambda x: x[:1]),
}


@pytest.mark.parametrize("candidates", [FUNCTIONS, CONVS])
@pytest.mark.parametrize("changes", CHANGES)
def test_a_trace_with_repeats_is_one_without(
    monkeypatch: pytest.MonkeyPatch, changes: str, candidates: dict[str, Any]
) -> None:
    if candidates is CONVS and changes == "dtype":
        changes = "nothing"  # weights have one type
    space = Net(candidates, *CHANGES[changes])
    repeated = TracedSpace(space, X).traces
    with monkeypatch.context() as patched:
        patched.setattr(Repeats, "run", run_again)
        (every,) = TracedSpace(space, X).traces
    (trace,) = repeated
    assert written(trace) == written(every)


def test_a_candidate_runs_once_for_every_kind_of_input() -> None:
    candidates = {"halves": FUNCTIONS["halves"]} | {"itself": FUNCTIONS["itself"]}
    for changes, kinds in ((CHANGES["nothing"], 1), (CHANGES["dtype"], 2)):
        Candidate.runs = 0
        TracedSpace(Net(candidates, *changes), X)
        assert Candidate.runs == kinds


def test_candidates_that_differ_are_different_modules() -> None:
    def scaled(factor: float, node: int, op: int, source: int) -> torch.nn.Module:
        module = torch.nn.Conv2d(4, 4, 1) if type(factor) is int else torch.nn.Conv2d(4, 4, 3, padding=1)
        return module if source < 1 else torch.nn.Sequential(module, torch.nn.ReLU())

    candidates = {"int": partial(scaled, 1), "float": partial(scaled, 1.0), "same": partial(scaled, 1)}
    (trace,) = TracedSpace(Net(candidates, Tensor.clone, Tensor.clone), X).traces
    traced: Any = trace.space
    first, second = (cell.ops[1][0] for cell in traced.cells)
    assert first.candidate("int", 0) is first.candidate("same", 0) is second.candidate("int", 0)
    assert first.candidate("int", 1) is second.candidate("same", 1)
    assert len({id(first.candidate(name, source)) for name in ("int", "float") for source in (0, 1)}) == 4


class Nested(nn.ModelSpace):
    """A net of cells of which some are chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LayerChoice([Net(CONVS, Tensor.clone, Tensor.clone), torch.nn.Identity()], label="body")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


def test_members_have_weights_of_their_own_in_every_cell() -> None:
    space = Nested()
    traced = TracedSpace(space, X)
    profiler = NumParamsProfiler(space, traced)
    for seed in range(8):
        sample = space.random(random_state=seed)
        found, expected = traced.traces[0].space.freeze(sample), space.freeze(sample)
        sizes = {name: parameter.shape for name, parameter in expected.named_parameters()}
        assert {name: parameter.shape for name, parameter in found.named_parameters()} == sizes
        assert profiler.profile(sample) == sum(shape.numel() for shape in sizes.values())


def test_parts_of_a_repeated_run_are_found_by_their_paths() -> None:
    space = Net(CONVS, Tensor.clone, Tensor.clone)
    (trace,) = TracedSpace(space, X).traces
    names = [unit.name for unit in units_of(trace)]
    for cell in range(2):
        assert f"cells.{cell}.ops.1.1.made.0.1" in names
    operators = [event for event in trace.timeline if isinstance(event, OpCall)]
    assert {trace.modules[event.caller].module for event in operators} == {event.module for event in operators}
