"""Normalising and mixing in one operation against doing it one by one, and when it is not done."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

import hwnas.nn as nn
from hwnas.hub import DARTSSpace, NASBench201Space
from hwnas.kernels import native
from hwnas.supernet import OneHot, Relaxation, Softmax, make_supernet, normalise_candidates
from hwnas.supernet.candidate_norm import CandidateNorm
from hwnas.supernet.last_norm import last_layer, whole_reason
from hwnas.supernet.mixed_candidates import MixedCandidates


def conv_bn(**options: Any) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3, **options))


class Zero(torch.nn.Module):
    always_zero = True

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.zeros_like(x)


def candidates() -> dict[str, torch.nn.Module]:
    return {
        "first": conv_bn(),
        "zero": Zero(),
        "nested": torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), conv_bn(momentum=0.3, eps=1e-3)),
        "norm": torch.nn.BatchNorm2d(3),
        "conv": torch.nn.Conv2d(3, 3, 1),
        "pool": torch.nn.AvgPool2d(3, 1, 1),
        "skip": torch.nn.Identity(),
    }


class Space(nn.ModelSpace):
    def __init__(self, make: Callable[[], Any] = candidates) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 3, 1)
        self.layer = nn.LayerChoice(make(), label="layer")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.stem(x))


def searched(space: nn.ModelSpace, relaxation: type[Relaxation] = Softmax) -> tuple[Any, Any]:
    made = relaxation(space.simplify().values())
    make_supernet(space, made)
    normalise_candidates(space)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for alpha in made.parameters():
            alpha.copy_(torch.randn(alpha.shape, generator=generator))
    made.resample({})
    return space, made


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(1)) * 3 + 1).to(dtype)


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CandidateNorm, "takes_over", lambda *_: False)
    monkeypatch.setattr(CandidateNorm, "_unfused_reason", lambda *_: "the test says so")
    monkeypatch.setattr(Zero, "always_zero", False)


def trained(space: Any, relaxation: Any, x: Tensor, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """Train weights and architecture, and return the losses and everything that changed."""
    parameters = [*space.parameters(), *relaxation.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        y = space(x)
        loss = (
            (y - x.mean((0, 2, 3), keepdim=True)[:, : y.shape[1]]).square().mean()
            if y.dim() == 4
            else y.square().mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {**space.state_dict(), **{f"alpha{k}": v.detach() for k, v in enumerate(relaxation.parameters())}}


def compare(make: Callable[[], nn.ModelSpace], x: Tensor, monkeypatch: pytest.MonkeyPatch, steps: int = 4) -> None:
    torch.manual_seed(0)
    fused = searched(make())
    other = copy.deepcopy(fused)
    for part in other[0].modules():
        if hasattr(part, "attach"):
            part.attach(other[1])
    for space, relaxation in (fused, other):
        space.to(x.dtype)
        relaxation.to(x.dtype)
    losses, state = trained(*fused, x, steps)
    one_by_one(monkeypatch)
    expected_losses, expected = trained(*other, x, steps)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert state.keys() == expected.keys()
    for name in state:
        torch.testing.assert_close(state[name], expected[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_training_is_the_same(
    memory_format: torch.memory_format, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(Space, images(dtype).to(memory_format=memory_format), monkeypatch)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: DARTSSpace(width=2, num_cells=3), marks=pytest.mark.slow),
        lambda: NASBench201Space(channels=4, cells=1),
    ],
)
def test_training_of_published_spaces_is_the_same(
    make: Callable[[], nn.ModelSpace], monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(make, torch.randn(4, 3, 8, 8), monkeypatch, steps=2)


def test_training_without_kernels_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with native.disabled():
        compare(Space, images(), monkeypatch)


def test_running_statistics_are_those_of_pytorch() -> None:
    torch.manual_seed(0)
    space, _ = searched(Space())
    twins = {name: torch.nn.BatchNorm2d(3, affine=False, momentum=m) for name, m in (("first", 0.1), ("nested", 0.3))}
    for step in range(3):
        x = images() * (step + 1)
        y = space.stem(x)
        with torch.no_grad():
            twins["first"](space.layer["first"][:-1](y))
            nested = space.layer["nested"]
            twins["nested"](nested[1][:-1](nested[0](y)))
        space(x)
    for name, twin in twins.items():
        norm = last_layer(space.layer[name])
        for buffer in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(getattr(norm, buffer), getattr(twin, buffer))


def reason_of(space: Any, x: Tensor) -> str | None:
    """Return why the layer of a space is not fused, given what it reads."""
    layer = space.layer
    assert isinstance(layer, MixedCandidates)
    assert layer.norm is not None
    mixture = layer.relaxation.mixture(layer.choice)
    active = [layer.candidate(name) for name in mixture.values]
    outputs = [layer.run_one(mixture, candidate, x) for candidate in active]
    return layer.norm.unfused_reason(mixture, active, outputs)


class Pair(torch.nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Half(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.half()


def shared() -> list[torch.nn.Module]:
    norm = torch.nn.BatchNorm2d(3)
    return [torch.nn.Sequential(torch.nn.ReLU(), norm), torch.nn.Sequential(torch.nn.Tanh(), norm)]


@pytest.mark.parametrize(
    ("make", "relaxation", "x", "word"),
    [
        (candidates, Softmax, images(), None),
        (candidates, OneHot, images(), "one candidate is active"),
        (lambda: [Pair(), Pair()], Softmax, images(), "a tuple that is no tensor"),
        (lambda: [torch.nn.Identity(), Half()], Softmax, images(), "differ in type"),
        (lambda: [torch.nn.Identity(), torch.nn.AvgPool2d(1, 2)], Softmax, images(), "shape"),
        (lambda: [torch.nn.Identity(), torch.nn.ReLU()], Softmax, torch.randn(4, 3), "no output is to be normalised"),
        (lambda: [torch.nn.Identity(), torch.nn.ReLU()], Softmax, torch.randn(1, 3, 1, 1), "two values"),
        (shared, Softmax, images(), "share a batch normalisation"),
        (lambda: [torch.nn.BatchNorm2d(4), torch.nn.Identity()], Softmax, images(), "4 channels meets shape"),
    ],
)
def test_the_predicate_explains_itself(
    make: Callable[[], Any], relaxation: type[Relaxation], x: Tensor, word: str | None
) -> None:
    space, _ = searched(Space(make), relaxation)
    reason = reason_of(space, x)
    if word is None:
        assert reason is None
    else:
        assert reason is not None
        assert word in reason


def test_statistics_of_another_type() -> None:
    space, _ = searched(Space())
    space.layer["norm"].double()
    assert "float64" in (reason_of(space, images()) or "")


def test_candidates_that_share_a_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    compare(lambda: Space(shared), images(), monkeypatch)


class Own(torch.nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def hooked(name: str, part: int | None) -> Callable[[torch.nn.Module], None]:
    def change(candidate: Any) -> None:
        getattr(candidate if part is None else candidate[part], name)(lambda *_: None)

    return change


def changed(**options: Any) -> Callable[[torch.nn.Module], None]:
    def change(candidate: Any) -> None:
        for name, value in options.items():
            setattr(candidate[-1], name, value)

    return change


# PyTorch's compiler says so of every module of one's own that reads a tensor which is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda candidate: None, None),
        *((hooked(f"register_{kind}", None), "hooks on it") for kind in ("forward_hook", "forward_pre_hook")),
        *((hooked(f"register_full_{kind}", None), "hooks on it") for kind in ("backward_hook", "backward_pre_hook")),
        (hooked("register_forward_hook", -1), "hooks on its batch normalisation"),
        (hooked("register_full_backward_hook", -1), "hooks on its batch normalisation"),
        (hooked("register_forward_hook", 0), None),
        (lambda candidate: candidate.eval(), "evaluation mode"),
        (changed(momentum=None), "cumulative"),
        (changed(running_mean=None, running_var=None, track_running_stats=False), "no running statistics"),
        (changed(forward=lambda x: x), "hooks on its batch normalisation"),
        (lambda candidate: candidate.compile(backend="eager"), "hooks on it"),
    ],
)
def test_what_runs_as_a_whole(
    change: Callable[[torch.nn.Module], None], word: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    space, _ = searched(Space(lambda: {"conv": conv_bn(), "skip": torch.nn.Identity()}))
    candidate = space.layer["conv"]
    other = copy.deepcopy(space)
    for part in other.modules():
        if hasattr(part, "attach"):
            part.attach(space.layer.relaxation)
    change(candidate)
    change(other.layer["conv"])
    reason = whole_reason(candidate)
    assert (reason is None) == (word is None)
    assert (word or "") in (reason or "")
    y = space(images())
    one_by_one(monkeypatch)
    torch.testing.assert_close(y, other(images()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(space.state_dict(), other.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "word"), [(Own(3), "forward pass of its own"), (torch.nn.SyncBatchNorm(3), "forward pass of its own")]
)
def test_other_kinds_of_batch_normalisation_run_themselves(norm: torch.nn.Module, word: str) -> None:
    space, _ = searched(Space(lambda: [torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), norm), torch.nn.Identity()]))
    assert word in (whole_reason(space.layer[0]) or "")


def test_hooks_on_all_modules() -> None:
    handle = torch_module.register_module_forward_hook(lambda *_: None)  # type: ignore[no-untyped-call]
    try:
        assert "all modules" in (whole_reason(searched(Space())[0].layer["first"]) or "")
    finally:
        handle.remove()
    assert whole_reason(searched(Space())[0].layer["first"]) is None


def test_hooks_see_what_they_always_saw() -> None:
    space, _ = searched(Space())
    seen = []
    last_layer(space.layer["first"]).register_forward_hook(lambda _, __, y: seen.append(y))
    space(images())
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)


def test_gradients_of_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    space, relaxation = searched(Space())
    space.double()
    relaxation.double()
    (alpha,) = relaxation.parameters()

    def second_order() -> Tensor:
        weights = list(space.parameters())
        first = torch.autograd.grad(space(images(torch.float64)).pow(3).sum(), weights, create_graph=True)
        (found,) = torch.autograd.grad(sum(grad.square().sum() for grad in first), [alpha])
        return found

    fused = second_order()
    one_by_one(monkeypatch)
    torch.testing.assert_close(fused, second_order(), rtol=1e-6, atol=1e-6)


def test_zeros_are_left_out_but_where_they_are_seen() -> None:
    space, relaxation = searched(Space())
    zero = space.layer["zero"]
    space(images()).square().sum().backward()
    assert zero.calls == 0
    (alpha,) = relaxation.parameters()
    assert alpha.grad.abs().min() > 0  # of the softmax, to which the weight of zero belongs
    zero.register_forward_hook(lambda *_: None)
    space(images())
    assert zero.calls == 1


def test_nothing_but_zeros() -> None:
    space, _ = searched(Space(lambda: [Zero(), Zero()]))
    assert space(images()).abs().max() == 0


def test_zeros_of_a_mixture_that_is_not_normalised() -> None:
    torch.manual_seed(0)
    space = Space(lambda: {"zero": Zero(), "skip": torch.nn.Identity(), "last": Zero()})
    relaxation = Softmax(space.simplify().values())
    make_supernet(space, relaxation)
    p = torch.softmax(relaxation.alpha("layer"), 0)
    torch.testing.assert_close(space(images()), p[1] * space.stem(images()))
    assert space.layer["zero"].calls == space.layer["last"].calls == 0


def test_an_autocast_region_keeps_its_type() -> None:
    space, _ = searched(Space(lambda: {"zero": Zero(), "conv": torch.nn.Conv2d(3, 3, 1)}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert space(images()).dtype == torch.bfloat16
    assert space.layer["zero"].calls == 1


@pytest.mark.parametrize("zeros", [lambda source: True, lambda source: source == 0])
def test_zeros_are_left_out_of_a_node_where_they_are_zeros_on_every_input(
    zeros: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cells(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Cell(
                {
                    "none": lambda node, op, source: Zero() if zeros(source) else conv_bn(),
                    "conv": lambda *_: conv_bn(),
                    "pool": lambda *_: torch.nn.AvgPool2d(3, 1, 1),
                },
                num_nodes=2,
                num_ops_per_node=1,
                label="cell",
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x)

    torch.manual_seed(0)
    space, relaxation = searched(Cells())
    x, found = images(), []
    for left_out in (True, False):
        monkeypatch.setattr(Zero, "always_zero", left_out)
        y = space(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), list(relaxation.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
