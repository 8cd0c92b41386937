"""Operations of a cell share poolings and ReLUs of one tensor; results and gradients stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.hub import NASBench201Space
from hwnas.supernet import OneHot, Softmax, make_supernet, normalise_candidates
from hwnas.supernet.fused_sequence import run_fused
from hwnas.supernet.last_norm import run_before_norm
from hwnas.supernet.sharing import SharedResults

CHANNELS = 3


def pool(*_: int) -> torch.nn.Module:
    return torch.nn.MaxPool2d(3, 1, 1)


def average(*_: int) -> torch.nn.Module:
    return torch.nn.AvgPool2d(3, 1, 1)


def wide(*_: int) -> torch.nn.Module:
    return torch.nn.MaxPool2d(5, 1, 2)


def conv(*_: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.ReLU(), torch.nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), torch.nn.BatchNorm2d(CHANNELS)
    )


def pooled_norm(*_: int) -> torch.nn.Module:
    return torch.nn.Sequential(pool(), torch.nn.BatchNorm2d(CHANNELS))


OPERATIONS = {"max": pool, "average": average, "wide": wide, "conv": conv, "again": conv, "norm": pooled_norm}


class Cells(nn.ModelSpace):
    def __init__(self, cell: Callable[[], torch.nn.Module]) -> None:
        super().__init__()
        self.cell = cell()

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)


def of_callables() -> torch.nn.Module:
    return nn.Cell(OPERATIONS, num_nodes=2, num_ops_per_node=2, label="cell")


def of_modules() -> torch.nn.Module:
    made = {name: make() for name, make in OPERATIONS.items()}
    return nn.Cell(made, num_nodes=2, num_ops_per_node=2, label="cell")


def nas_bench_201() -> torch.nn.Module:
    return nn.NasBench201Cell(OPERATIONS, CHANNELS, CHANNELS, label="cell")


def searched(cell: Callable[[], torch.nn.Module], relaxation: Any = Softmax) -> tuple[Any, Any]:
    torch.manual_seed(0)
    space = Cells(cell)
    made = relaxation(space.simplify().values())
    make_supernet(space, made)
    if made.differentiable:
        normalise_candidates(space)
    made.resample({})
    return space, made


def images() -> Tensor:
    return torch.randn(4, CHANNELS, 6, 7, generator=torch.Generator().manual_seed(1)) * 3 + 1


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return how often a maximum of 3 x 3 and a ReLU are computed."""
    found = {"max": 0, "relu": 0}

    def count(name: str, cls: type[torch.nn.Module], counts: Callable[[Any], bool]) -> None:
        forward: Any = cls.forward

        def counted(self: Any, x: Tensor) -> Any:
            found[name] += counts(self)
            return forward(self, x)

        monkeypatch.setattr(cls, "forward", counted)

    count("max", torch.nn.MaxPool2d, lambda module: module.kernel_size == 3)
    count("relu", torch.nn.ReLU, lambda module: True)
    return found


# Tensors that are read, and operations that read them: in a `Cell` each operation reads every tensor before it.
@pytest.mark.parametrize(("cell", "tensors", "readers"), [(of_callables, 2, 6), (nas_bench_201, 3, 6)])
def test_operations_of_a_cell_share(
    cell: Callable[[], torch.nn.Module], tensors: int, readers: int, calls: dict[str, int]
) -> None:
    space, relaxation = searched(cell)
    x = images().requires_grad_()
    inputs = [x, *space.parameters(), *relaxation.parameters()]
    y = space(x)
    assert calls == {"max": tensors, "relu": tensors}
    found = torch.autograd.grad(y.square().sum(), inputs, allow_unused=True)

    for part in space.modules():  # which have to be run, then
        if isinstance(part, torch.nn.MaxPool2d | torch.nn.AvgPool2d | torch.nn.ReLU):
            part.register_forward_hook(lambda *_: None)
    again = space(x)
    assert calls == {"max": tensors + 2 * readers, "relu": tensors + 2 * readers}
    expected = torch.autograd.grad(again.square().sum(), inputs, allow_unused=True)
    torch.testing.assert_close(y, again)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cell", [of_callables, of_modules, nas_bench_201])
def test_sampled_members_compute_what_their_frozen_ones_do(cell: Callable[[], torch.nn.Module]) -> None:
    space, relaxation = searched(cell, OneHot)
    space.eval()
    for _ in range(8):
        sample = relaxation.resample({})
        torch.testing.assert_close(space(images()), space.freeze(sample)(images()))


def test_each_forward_pass_computes_its_own(calls: dict[str, int]) -> None:
    space, _ = searched(of_callables)
    x = images()
    space(x)
    x += torch.randn(x.shape)
    torch.testing.assert_close(space(x), space(x.clone()))
    assert calls["max"] == 6
    assert not any("shared" in vars(part) for part in space.modules())


def test_nothing_is_left_when_an_operation_fails() -> None:
    space, _ = searched(nas_bench_201)
    with pytest.raises(RuntimeError):
        space(images()[:, :1])
    assert not any("shared" in vars(part) for part in space.modules())


def test_a_tensor_that_changed_in_place_is_read_again() -> None:
    shared, x = SharedResults(), images()
    first = shared.run(pool(), x, None)
    assert shared.run(pool(), x, None) is first
    x += torch.randn(x.shape)
    assert torch.equal(shared.run(pool(), x, None), pool()(x))


def test_arguments_decide_what_is_equal() -> None:
    shared, x = SharedResults(), images()
    for module in (pool(), wide(), average(), torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)):
        assert torch.equal(shared.run(module, x, None), module(x))


class InPlace(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.Sequential(pool(), InPlace()),
        lambda: torch.nn.Sequential(torch.nn.Sequential(pool()), InPlace()),
        lambda: torch.nn.Sequential(torch.nn.ReLU(), InPlace()),
        lambda: torch.nn.Sequential(pool(), torch.nn.Sequential(InPlace(), torch.nn.BatchNorm2d(CHANNELS))),
    ],
)
def test_what_the_candidate_may_change_is_not_shared(make: Callable[[], torch.nn.Module]) -> None:
    shared, x, candidate = SharedResults(), images(), make()
    expected = candidate(x.clone())
    for _ in range(2):
        torch.testing.assert_close(run_fused(candidate, x, shared), expected)


def test_what_a_later_part_may_change_is_not_shared_before_a_normalisation_that_is_left_out() -> None:
    shared, x = SharedResults(), images()
    norm = torch.nn.BatchNorm2d(CHANNELS)
    candidate = torch.nn.Sequential(pool(), torch.nn.Sequential(InPlace(), norm))
    for _ in range(2):
        before = run_before_norm(candidate, x, shared)
        assert before.norm is norm
        assert torch.equal(before.y, pool()(x) + 1)


def test_results_inside_a_candidate_are_not_kept() -> None:
    shared = SharedResults()
    run_fused(torch.nn.Sequential(conv(), conv(), torch.nn.Sequential(pool())), images(), shared)
    run_before_norm(torch.nn.Sequential(torch.nn.Conv2d(CHANNELS, CHANNELS, 1), conv()), images(), shared)
    assert len(shared._done) == 1


def test_a_rectifier_that_works_in_place_is_not_shared() -> None:
    shared, x = SharedResults(), images()
    plain = shared.run(torch.nn.ReLU(), x, None)
    assert shared.run(torch.nn.ReLU(inplace=True), x, None) is x
    assert torch.equal(x, plain)


def test_empty_sequences_read_nothing() -> None:
    shared, x = SharedResults(), images()
    candidate = torch.nn.Sequential(torch.nn.Sequential(), pool(), torch.nn.Sequential())
    torch.testing.assert_close(run_fused(candidate, x, shared), pool()(x))


def test_a_frozen_cell_has_its_class_again() -> None:
    space = NASBench201Space(channels=4, cells=1)
    make_supernet(space, OneHot(space.simplify().values()))
    member: Any = space.freeze({label: choice.default_value() for label, choice in space.simplify().items()})
    assert [type(part).__name__ for part in member.modules()].count("NasBench201Cell") == 3
    assert not any("Mixed" in cls.__name__ for part in member.modules() for cls in type(part).__mro__)


@pytest.mark.parametrize("cell", [of_callables, nas_bench_201])
def test_compiled_cells_share_nothing_themselves(cell: Callable[[], torch.nn.Module]) -> None:
    space, _ = searched(cell, OneHot)
    space.eval()
    with torch.no_grad():
        expected = space(images())
        compiled = torch.compile(space, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images()), expected)
