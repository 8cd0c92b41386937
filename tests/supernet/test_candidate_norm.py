"""Normalised candidates against plain PyTorch, their gradients against finite differences, frozen members."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import hwnas.nn as nn
from hwnas.errors import TrainingError
from hwnas.strategies import DARTS, GumbelDARTS, Proxyless
from hwnas.supernet import (
    BinaryGates,
    GumbelSoftmax,
    MixedBatchNorm2d,
    MixedLayer,
    OneHot,
    Relaxation,
    Softmax,
    make_supernet,
    normalise_candidates,
)


class Zero(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0


def candidates() -> dict[str, torch.nn.Module]:
    return {
        "conv": torch.nn.Conv2d(3, 3, 3, padding=1),
        "conv_bn": torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)),
        "act": torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.Conv2d(3, 3, 1)),
        "pool": torch.nn.MaxPool2d(3, 1, 1),
        "skip": torch.nn.Identity(),
        "none": Zero(),
    }


class Space(nn.ModelSpace):
    def __init__(self, make: Callable[[], Any] = candidates) -> None:
        super().__init__()
        self.layer = nn.LayerChoice(make(), label="layer")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def searched(
    space: nn.ModelSpace, relaxation: type[Relaxation] = Softmax, seed: int = 0, **options: Any
) -> tuple[Any, Any]:
    """Make a super-net with normalised candidates and an uneven distribution."""
    made = relaxation(space.simplify().values(), **options)
    make_supernet(space, made)
    normalise_candidates(space)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for alpha in made.parameters():
            alpha.copy_(torch.randn(alpha.shape, generator=generator))
    made.resample({})
    return space, made


def images(channels: int = 3, size: int = 5, n: int = 4) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1)) * 3 + 1


def normalised(y: Tensor) -> Tensor:
    """Batch normalisation over dimension 1, by its definition."""
    dims = [dim for dim in range(y.dim()) if dim != 1]
    mean, variance = y.mean(dims, keepdim=True), y.var(dims, keepdim=True, unbiased=False)
    return (y - mean) / (variance + 1e-5).sqrt()


def test_the_mixture_is_the_weighted_sum_of_normalised_outputs():
    torch.manual_seed(0)
    plain = candidates()
    space, relaxation = searched(Space(lambda: copy.deepcopy(plain)))
    x = images()
    outputs = {
        "conv": normalised(plain["conv"](x)),
        "conv_bn": normalised(plain["conv_bn"][0](x)),
        "act": normalised(plain["act"][2](normalised(x).relu())),
        "pool": normalised(F.max_pool2d(x, 3, 1, 1)),
        "skip": normalised(x),
        "none": torch.zeros_like(x),
    }
    p = torch.softmax(relaxation.alpha("layer"), 0)
    expected = sum(weight * outputs[name] for weight, name in zip(p, outputs, strict=True))
    torch.testing.assert_close(space(x), expected, rtol=1e-4, atol=1e-5)
    assert outputs["pool"].std() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("where", [("conv",), ("conv_bn", 0), ("act", 2)])
def test_ten_times_the_weights_contribute_the_same(where):
    torch.manual_seed(0)
    space, _ = searched(Space())
    x = images()
    before = space(x)
    layer = space.layer[where[0]]
    conv = layer[where[1]] if len(where) > 1 else layer
    with torch.no_grad():
        conv.weight.mul_(10)
        conv.bias.mul_(10)
    torch.testing.assert_close(space(x), before, rtol=1e-3, atol=1e-3)


def test_without_normalisation_they_do_not():
    torch.manual_seed(0)
    space = Space()
    DARTS(normalise_candidates=False).mutate_model(space)
    x = images()
    before = space(x)
    with torch.no_grad():
        space.layer["conv"].weight.mul_(10)
    assert (space(x) - before).abs().max() > 1


def test_gradients_of_the_architecture_against_finite_differences():
    torch.manual_seed(0)
    space, relaxation = searched(Space())
    space.double()
    relaxation.double()
    x, target = images().double(), torch.randn(4, 3, 5, 5).double()

    def loss(alpha: Tensor) -> Tensor:
        with torch.no_grad():
            relaxation.alpha("layer").copy_(alpha)
        return ((space(x) - target) ** 2).mean()

    start = relaxation.alpha("layer").detach().clone()
    loss(start).backward()
    step = 1e-6 * torch.eye(len(start)).double()
    with torch.no_grad():
        slopes = torch.stack([loss(start + d) - loss(start - d) for d in step]) / 2e-6
    torch.testing.assert_close(relaxation.alpha("layer").grad, slopes, rtol=1e-5, atol=1e-8)


def test_nothing_trains_scale_and_shift():
    torch.manual_seed(0)
    space, _ = searched(Space())
    norms = [part for part in space.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert len(norms) == 2
    assert all(norm.weight is None and norm.bias is None and not norm.affine for norm in norms)
    optimizer = torch.optim.SGD(space.parameters(), lr=1.0, weight_decay=0.5)
    space(images()).square().sum().backward()
    optimizer.step()
    frozen = space.freeze({"layer": "conv_bn"}).layer
    assert torch.equal(frozen[1].weight, torch.ones(3))
    assert torch.equal(frozen[1].bias, torch.zeros(3))


def test_frozen_members_are_plain_and_as_in_the_space():
    def make() -> dict[str, torch.nn.Module]:
        found = candidates()
        torch.nn.init.constant_(found["conv_bn"][1].weight, 7)
        found["act"][0].requires_grad_(False)
        return found

    space, _ = searched(Space(make))
    space(images())  # training: statistics follow the batch
    trained = space.freeze({"layer": "conv_bn"})
    norm = trained.layer[1]
    assert type(norm) is torch.nn.BatchNorm2d
    assert norm.affine
    assert norm.weight.requires_grad
    assert norm.bias.requires_grad
    assert torch.equal(norm.weight, torch.ones(3))  # what the search computed
    assert torch.equal(norm.running_mean, space.layer["conv_bn"][1].running_mean)
    assert set(vars(norm)) == set(vars(torch.nn.BatchNorm2d(3)))
    assert not any(type(part).__module__.startswith("hwnas") for part in trained.modules())
    assert type(space.freeze({"layer": "skip"}).layer) is torch.nn.Identity
    fixed = space.freeze({"layer": "act"}).layer[0]
    assert not fixed.weight.requires_grad
    assert space.layer["conv_bn"][1].weight is None  # the super-net is as before
    space(images()).sum().backward()


def test_scale_and_shift_follow_device_and_type():
    space, relaxation = searched(Space())
    space.double()
    relaxation.double()
    assert space.freeze({"layer": "conv_bn"}).layer[1].weight.dtype == torch.float64
    space.to("meta")
    assert space.freeze({"layer": "conv_bn"}).layer[1].bias.is_meta


@pytest.mark.parametrize("relaxation", [Softmax, GumbelSoftmax, BinaryGates])
@pytest.mark.parametrize("name", ["conv", "conv_bn", "act", "pool", "skip", "none"])
def test_in_evaluation_mode_the_member_runs_as_it_is_frozen(relaxation, name):
    torch.manual_seed(0)
    space, made = searched(Space(), relaxation)
    with torch.no_grad():
        made.alpha("layer")[space.layer.names.index(name)] = 10
    made.eval()
    member = space.freeze({"layer": name})
    for part in (space, member):
        part.eval()
    torch.testing.assert_close(space(images()), member(images()))


def test_with_batch_statistics_too():
    torch.manual_seed(0)
    space, made = searched(Space())
    with torch.no_grad():
        made.alpha("layer")[1] = 10
    made.eval()
    member = space.freeze({"layer": "conv_bn"})
    torch.testing.assert_close(space(images()), member(images()))
    torch.testing.assert_close(space.layer["conv_bn"][1].running_var, member.layer[1].running_var)


@pytest.mark.parametrize(("relaxation", "options"), [(GumbelSoftmax, {"hard": True}), (BinaryGates, {})])
def test_both_steps_of_a_sampled_path_compute_the_same(relaxation, options):
    """Where it is asked for, the step of the architecture and that of the weights agree on what the path computes."""
    torch.manual_seed(0)
    space, made = searched(Space(), relaxation, **options)
    for seed, name in enumerate(space.layer.names):
        made.resample({"layer": name})
        mixed = space(images())
        made.requires_grad_(False)
        alone = space(images())
        made.requires_grad_(True)
        torch.testing.assert_close(mixed, alone, msg=f"{name} {seed}")


def test_which_strategies_normalise():
    for strategy, expected in [
        (DARTS(), True),
        (GumbelDARTS(), True),
        (GumbelDARTS(hard=True), False),
        (GumbelDARTS(hard=True, normalise_candidates=True), True),
        (Proxyless(), False),
        (Proxyless(normalise_candidates=True), True),
        (DARTS(normalise_candidates=False), False),
    ]:
        space = Space()
        strategy.mutate_model(space)
        assert (space.layer.norm is not None) == expected
        assert (space.layer["conv_bn"][1].weight is None) == expected


class Widths(nn.ModelSpace):
    """Masks of mixed widths behind each kind of candidate."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([2, 4], label="width")
        inner = nn.ValueChoice([1, 4], label="inner")
        self.stem = nn.Conv2d(1, width, 1)
        self.layer = nn.LayerChoice(
            {
                "act": nn.Sequential(nn.Conv2d(width, inner, 1), nn.ReLU(), nn.Conv2d(inner, width, 1)),
                "bn": nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)),
                "skip": nn.Identity(),
            },
            label="layer",
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.stem(x))


@pytest.mark.parametrize("name", ["bn", "act", "skip"])
def test_masks_of_widths_act_behind_the_normalisation(name):
    torch.manual_seed(0)
    space, relaxation = searched(Widths())
    assert isinstance(space.layer["bn"][1], MixedBatchNorm2d)
    with torch.no_grad():
        relaxation.alpha("layer")[space.layer.names.index(name)] = 100
        relaxation.alpha("width").copy_(torch.tensor([1.0, 0.2]))
    y = space(images(1))
    wide = float(torch.softmax(torch.tensor([1.0, 0.2]), 0)[1])
    deviation = y.std((0, 2, 3), unbiased=False)
    torch.testing.assert_close(deviation, torch.tensor([1, 1, wide, wide]), rtol=0.1, atol=0)


def test_chosen_widths_freeze_to_affine_slices():
    space, _ = searched(Widths())
    space(images(1))
    norm = space.freeze({"width": 2, "layer": "bn", "inner": 1}).layer[1]
    assert type(norm) is torch.nn.BatchNorm2d
    assert norm.num_features == 2
    assert torch.equal(norm.weight, torch.ones(2))
    assert norm.weight.requires_grad
    assert torch.equal(norm.running_var, space.layer["bn"][1].running_var[:2])


def test_a_width_that_no_candidate_tells_passes():
    class Pools(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, nn.ValueChoice([2, 4], label="width"), 1)
            self.layer = nn.LayerChoice([nn.MaxPool2d(3, 1, 1), nn.Identity()], label="layer")

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.stem(x))

    space, relaxation = searched(Pools())
    x = space.stem(images(1))
    p = torch.softmax(relaxation.alpha("layer"), 0)
    torch.testing.assert_close(space.layer(x), p[0] * F.max_pool2d(x, 3, 1, 1) + p[1] * x)


class Pair(torch.nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, 2 * x


@pytest.mark.parametrize(
    ("make", "shape", "is_normalised"),
    [
        (lambda: [torch.nn.Linear(4, 4), torch.nn.Identity()], (6, 4), False),
        (lambda: [torch.nn.Linear(4, 4), torch.nn.Identity()], (2, 5, 4), False),
        (lambda: [torch.nn.LayerNorm(4), torch.nn.Identity()], (2, 5, 4), False),
        (lambda: [torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)], (6, 4), True),
        (lambda: [torch.nn.Conv1d(4, 4, 1), torch.nn.Identity()], (3, 4, 5), True),
        (lambda: [torch.nn.AvgPool1d(3, 1, 1), torch.nn.Identity()], (3, 4, 5), True),
        (lambda: [torch.nn.Conv3d(4, 4, 1), torch.nn.Identity()], (2, 4, 3, 3, 3), True),
        (lambda: [torch.nn.Identity(), torch.nn.Identity()], (2, 4, 3, 3), True),
        (lambda: [Pair(), Pair()], (2, 4, 3, 3), False),
    ],
)
def test_what_is_normalised(make, shape, is_normalised):
    torch.manual_seed(0)
    plain = make()
    space, relaxation = searched(Space(lambda: copy.deepcopy(plain)))
    x = torch.randn(shape) * 2 + 1
    outputs = [candidate(x) for candidate in plain]
    if isinstance(outputs[0], tuple):
        torch.testing.assert_close(space(x), outputs[0])
        return
    p = torch.softmax(relaxation.alpha("layer"), 0)
    parts = [normalised(y) if is_normalised else y for y in outputs]
    torch.testing.assert_close(space(x), sum(w * y for w, y in zip(p, parts, strict=True)), rtol=1e-3, atol=1e-4)


def test_integers_pass():
    space, _ = searched(Space(lambda: [torch.nn.Identity()]))
    x = torch.arange(16).reshape(1, 4, 2, 2)
    assert torch.equal(space(x), x)


def test_one_value_for_each_channel():
    space, _ = searched(Space(lambda: [torch.nn.Identity(), torch.nn.Conv2d(4, 4, 1)]))
    with pytest.raises(TrainingError, match=r"layer: .* shape \(1, 4, 1, 1\)"):
        space(torch.randn(1, 4, 1, 1))


def test_nested_choices():
    torch.manual_seed(0)
    inner = {"a": torch.nn.Conv2d(3, 3, 1), "b": torch.nn.Conv2d(3, 3, 1)}

    def make() -> list[Any]:
        return [nn.LayerChoice(copy.deepcopy(inner), label="inner"), torch.nn.Identity()]

    space, relaxation = searched(Space(make))
    x = images()
    p, q = (torch.softmax(relaxation.alpha(label), 0) for label in ("layer", "inner"))
    mixed = normalised(q[0] * normalised(inner["a"](x)) + q[1] * normalised(inner["b"](x)))
    torch.testing.assert_close(space(x), p[0] * mixed + p[1] * normalised(x), rtol=1e-4, atol=1e-5)


def test_a_repeat_in_a_candidate():
    torch.manual_seed(0)

    def make() -> list[Any]:
        block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
        return [nn.Repeat(block, (1, 2), label="depth"), nn.Identity()]

    space, relaxation = searched(Space(make))
    x = images()
    first, second = (block[0] for block in space.layer[0].blocks)
    one = normalised(first(x)).relu()
    two = normalised(second(one)).relu()
    p, q = (torch.softmax(relaxation.alpha(label), 0) for label in ("layer", "depth"))
    expected = p[0] * normalised(q[0] * one + q[1] * two) + p[1] * normalised(x)
    torch.testing.assert_close(space(x), expected, rtol=1e-4, atol=1e-5)
    norms = [part for part in space.freeze({"layer": 0, "depth": 2}).modules() if isinstance(part, nn.BatchNorm2d)]
    assert [type(norm) for norm in norms] == [torch.nn.BatchNorm2d] * 2
    assert all(norm.affine for norm in norms)


def test_shared_modules_stay_shared():
    class Shared(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
            self.first = nn.LayerChoice([block, nn.Identity()], label="first")
            self.second = nn.LayerChoice([block, nn.Identity()], label="second")

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    space, _ = searched(Shared())
    space(images()).sum().backward()
    assert space.first[0] is space.second[0]
    member = space.freeze({"first": 0, "second": 0})
    assert member.first is member.second
    assert member.first[1].affine


@pytest.mark.parametrize("factory", [False, True])
def test_cells(factory):
    torch.manual_seed(0)

    def conv(*place: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3))

    def skip(*place: int) -> torch.nn.Module:
        return torch.nn.Identity()

    class Cells(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            operations = {"conv": conv, "skip": skip}
            made = operations if factory else {name: make() for name, make in operations.items()}
            self.cell = nn.Cell(made, num_nodes=1, num_predecessors=2, label="cell")

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x, 2 * x)

    space, relaxation = searched(Cells())
    x = images()
    p = torch.softmax(relaxation.alpha("cell/op_2_0"), 0)
    q = torch.softmax(relaxation.alpha("cell/input_2_0"), 0)
    (operation,) = space.cell.ops[0]
    if factory:
        convs = [operation.candidate("conv", source)[0] for source in (0, 1)]
        parts = [p[0] * normalised(c(y)) + p[1] * normalised(y) for c, y in zip(convs, (x, 2 * x), strict=True)]
        expected = q[0] * parts[0] + q[1] * parts[1]
    else:
        y = q[0] * x + q[1] * 2 * x
        expected = p[0] * normalised(operation["conv"][0](y)) + p[1] * normalised(y)
    torch.testing.assert_close(space(x), expected, rtol=1e-4, atol=1e-5)
    member = space.freeze({"cell/op_2_0": "conv", "cell/input_2_0": [1]})
    assert [norm.affine for norm in member.modules() if isinstance(norm, torch.nn.BatchNorm2d)] == [True]
    assert not any(type(part).__module__.startswith("hwnas") for part in member.modules())


def test_copies_are_independent():
    space, relaxation = searched(Space())
    copied = copy.deepcopy(space)
    for part in copied.modules():
        if hasattr(part, "attach"):
            part.attach(relaxation)
    torch.testing.assert_close(copied(images()), space(images()))
    assert copied.freeze({"layer": "conv_bn"}).layer[1].affine
    assert copied.layer["conv_bn"][1].weight is None


def test_a_super_net_that_samples_is_as_before():
    space = Space()
    made = OneHot(space.simplify().values())
    make_supernet(space, made)
    assert isinstance(space.layer, MixedLayer)
    assert space.layer.norm is None
    made.resample({"layer": "skip"})
    assert torch.equal(space(images()), images())
