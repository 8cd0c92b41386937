"""At every sample the super-net computes what the frozen member computes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.space import MutableExpression
from hwnas.supernet import OneHot, make_supernet, supernet_modules


class Everything(nn.ModelSpace):
    """Every primitive that holds weights; 2 x 2 x 2 x 3 x 3 samples."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([4, 2], label="width")
        kernel = nn.ValueChoice([3, 1], label="kernel")
        self.stem = nn.Conv2d(2, width, kernel, padding=kernel // 2, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(width)
        shape = nn.ValueChoice([(1, 3), (3, 1)], label="shape")
        self.flat = nn.Conv2d(width, width, shape, padding="same", groups=width, bias=False)
        inner = nn.LayerChoice({"a": nn.SiLU(), "b": nn.PReLU()}, label="inner")
        self.act = nn.LayerChoice([nn.Tanh(), inner], label="act")
        self.body = nn.Repeat(
            lambda i: nn.Sequential(nn.Conv2d(width, width, 1, groups=2), nn.BatchNorm2d(width)),
            (0, 2),
            label="d",
        )
        self.head = nn.Linear(width * 3 * 3, width + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.act(self.flat(self.norm(self.stem(x))))).flatten(1))


class Wiring(nn.ModelSpace):
    """Every reduction, and a value that is read in `forward`; 3 x 2 x 3 x 2 x 2 samples."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.InputChoice(2, None, "mean", label="mean")
        self.sum = nn.InputChoice(2, 1, "sum", label="sum")
        self.concat = nn.InputChoice(3, 2, "concat", label="concat")
        self.none = nn.InputChoice(2, 1, "none", label="none")
        self.power = nn.ValueChoice([1, 2], label="power")

    def forward(self, x: Tensor) -> Tensor:
        y = self.sum([x, self.mean([x * 2, x * 3])])
        for _ in range(self.power()):
            y = y * 1.5
        (z,) = self.none([self.concat([x, y, x + y]), self.concat([y, x, x])])
        return z


@pytest.fixture(scope="module")
def base() -> Everything:
    torch.manual_seed(0)
    return Everything()


def filled(space: nn.ModelSpace) -> nn.ModelSpace:
    """Give every parameter and statistic a value of its own, so that a wrong slice shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*space.parameters(), *space.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)
    return space


def supernet_of(space: nn.ModelSpace) -> tuple[nn.ModelSpace, OneHot]:
    space = copy.deepcopy(space)
    relaxation = OneHot(space.simplify().values())
    return filled(make_supernet(space, relaxation)), relaxation


@pytest.mark.parametrize("training", [False, True])
def test_supernet_at_every_sample_is_the_frozen_member(base: Everything, training: bool) -> None:
    space, relaxation = supernet_of(base)
    space.double().train(training)
    torch.manual_seed(1)
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    checked = 0
    initial = {name: buffer.clone() for name, buffer in space.named_buffers()}
    for sample in space.grid(active_only=True):
        full = {**space.default(), **sample}
        relaxation.resample(full)
        member = space.freeze(full)
        torch.testing.assert_close(space(x), member(x), rtol=1e-6, atol=1e-8)
        if training:  # the statistics that it updates are those of the slice
            for name, buffer in space.freeze(full).named_buffers():
                torch.testing.assert_close(buffer, member.get_buffer(name), rtol=1e-6, atol=1e-8)
            for name, buffer in space.named_buffers():
                buffer.copy_(initial[name])
        checked += 1
    assert checked == space.size(active_only=True) == 2 * 2 * 2 * 3 * 3


def test_every_wiring_is_the_frozen_member() -> None:
    space, relaxation = supernet_of(Wiring())
    x = torch.randn(2, 3)
    results = []
    for sample in space.grid():
        relaxation.resample(sample)
        results.append(space(x))
        torch.testing.assert_close(results[-1], space.freeze(sample)(x))
    assert len(results) == space.size() == 3 * 2 * 3 * 2 * 2
    # By hand: mean of both, taken, times 1.5, first and last of the list.
    relaxation.resample({"mean": [0, 1], "sum": [1], "concat": [0, 2], "none": [0], "power": 1})
    torch.testing.assert_close(space(x), torch.cat([x, x + 2.5 * 1.5 * x], 1))


def test_gradients_outside_of_the_slice_are_exactly_zero(base: Everything) -> None:
    space, relaxation = supernet_of(base)
    sample = {**space.default(), "width": 2, "kernel": 1, "shape": (1, 3), "act": 0, "inner": "a", "d": 1}
    relaxation.resample(sample)
    space(torch.randn(3, 2, 3, 3)).square().sum().backward()
    stem = space.stem.weight.grad
    assert stem.shape == (4, 2, 3, 3)
    inside = torch.zeros_like(stem, dtype=torch.bool)
    inside[:2, :, 1:2, 1:2] = True
    assert (stem[~inside] == 0).all()
    assert (stem[inside] != 0).all()
    flat = space.flat.weight.grad
    inside = torch.zeros_like(flat, dtype=torch.bool)
    inside[:2, :, 1:2, :] = True
    assert (flat[~inside] == 0).all()
    assert (flat[inside] != 0).any()
    head = space.head.weight.grad
    assert (head[3:] == 0).all()
    assert (head[:, 18:] == 0).all()
    assert (head[:3, :18] != 0).any()
    assert (space.norm.bias.grad[2:] == 0).all()
    assert all(p.grad is None for p in space.body.blocks[1].parameters())
    assert all(p.grad is None for p in space.act[1].parameters())


@pytest.mark.parametrize("values", [[(1, 3), (3, 1)], [(5, 1), (1, 3), (3, 3)], [(2, 2), (3, 3)]])
def test_maximal_kernel_of_tuples_holds_all_of_them(values: list[tuple[int, int]]) -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, nn.ValueChoice(values, label="k"), bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    space, relaxation = supernet_of(Net())
    full = (max(h for h, _ in values), max(w for _, w in values))
    assert space.conv.weight.shape == (1, 1, *full)
    for height, width in values:
        relaxation.resample({"k": (height, width)})
        top, left = (full[0] - height) // 2, (full[1] - width) // 2
        expected = space.conv.weight[:, :, top : top + height, left : left + width]
        assert torch.equal(space.freeze({"k": (height, width)}).conv.weight, expected)
        x = torch.randn(1, 1, 6, 6)
        torch.testing.assert_close(space(x), torch.nn.functional.conv2d(x, expected))


def choice(values: list[Any], label: str) -> nn.ValueChoice:
    return nn.ValueChoice(values, label=label)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(4, 4, 3, bias=choice([True, False], "a")),
        lambda: nn.Conv2d(4, 4, 3, bias=choice([False, True], "a")),
        lambda: nn.Conv2d(4, 8, 3, groups=choice([1, 2, 4], "a"), stride=choice([1, 2], "b")),
        lambda: nn.Conv2d(4, 4, 3, dilation=choice([1, 2], "a"), padding=choice([(1, 0), (0, 2)], "b")),
        lambda: nn.Conv2d(
            4,
            4,
            choice([1, 3], "a"),
            padding=choice(["same", "valid"], "b"),
            padding_mode=choice(["zeros", "circular"], "c"),
        ),
        lambda: nn.Conv2d(4, 4, (choice([1, 3], "a"), 3)),
        lambda: nn.BatchNorm2d(4, eps=choice([1e-5, 0.5], "a"), momentum=choice([0.1, 0.5], "b")),
        lambda: nn.BatchNorm2d(4, affine=choice([True, False], "a")),
        lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False, eps=choice([1e-5, 0.5], "a")),
        lambda: nn.BatchNorm2d(4, track_running_stats=choice([True, False], "a")),
        lambda: nn.Linear(5, 3, bias=choice([True, False], "a")),
        lambda: nn.Linear(5, choice([3, 1], "a"), False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("training", [False, True])
def test_sampled_mode_takes_every_argument(layer: Any, training: bool) -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    space, relaxation = supernet_of(Net())
    space.train(training)
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 5)
    for sample in space.grid():
        relaxation.resample(sample)
        member = space.freeze(sample)
        state = copy.deepcopy(space.state_dict())
        torch.testing.assert_close(space(x), member(x))
        updated = member.state_dict()
        for name, tensor in space.freeze(sample).state_dict().items():
            torch.testing.assert_close(tensor, updated[name])
        space.load_state_dict(state)


def test_freezing_a_supernet_copies_and_keeps_requires_grad(base: Everything) -> None:
    space, _ = supernet_of(base)
    space.stem.weight.requires_grad_(False)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    member = space.freeze(space.default())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not {p.data_ptr() for p in member.parameters()} & {p.data_ptr() for p in space.parameters()}
    assert not member.stem.weight.requires_grad
    assert member.flat.weight.requires_grad
    assert not any(b.__module__.startswith("hwnas") for m in member.modules() for b in type(m).__mro__)


def test_a_supernet_is_still_the_space(base: Everything) -> None:
    space, _ = supernet_of(base)
    assert list(space.simplify()) == list(base.simplify())
    assert space.size() == base.size()
    assert space.contains(base.random(random_state=0))


def test_resample_takes_the_memo_and_draws_the_rest(base: Everything) -> None:
    space, relaxation = supernet_of(base)
    drawn = relaxation.resample({"width": 2}, np.random.default_rng(0))
    assert "width" not in drawn
    assert relaxation.sample == {"width": 2, **drawn}
    assert drawn == relaxation.resample({"width": 2}, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"'width'.*3 is not one of"):
        relaxation.resample({"width": 3})
    memo: dict[str, Any] = {}
    for module in supernet_modules(space):
        new = module.resample(memo, np.random.default_rng(1))
        assert set(new) <= set(module.search_space_spec())
        memo.update(new)
    assert memo == relaxation.sample
    assert all(module.resample(memo) == {} for module in supernet_modules(space))
    assert relaxation.sample == memo


def test_a_memo_that_decides_everything_is_taken_over(base: Everything) -> None:
    space, relaxation = supernet_of(base)
    sample = {**base.default(), "act": 1, "inner": "b"}
    assert space.act.resample(sample) == {}
    assert relaxation.sample == sample


def test_export_gives_the_present_sample(base: Everything) -> None:
    space, relaxation = supernet_of(base)
    sample = space.random(random_state=5)
    relaxation.resample(sample)
    exported: dict[str, Any] = {}
    for module in supernet_modules(space):
        new = module.export(exported)
        assert not set(new) & set(exported)
        exported.update(new)
    assert exported == sample
    assert all(module.export_probs({}) == {} for module in supernet_modules(space))


def test_draws_honour_weights() -> None:
    space = nn.LayerChoice([nn.ReLU(), nn.Tanh(), nn.ELU()], weights=[0.7, 0.3, 0.0], label="a")
    relaxation = OneHot(space.simplify().values())
    rng = np.random.default_rng(0)
    counts = np.bincount([relaxation.resample({}, rng)["a"] for _ in range(2000)], minlength=3) / 2000
    np.testing.assert_allclose(counts, [0.7, 0.3, 0.0], atol=0.04)


def test_a_value_read_in_forward_is_that_of_the_sample() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.steps = [nn.ValueChoice([1, 2], label="one"), nn.ValueChoice([10, 20], label="two")]

        def forward(self, x: Tensor) -> Tensor:
            assert not isinstance(self.steps[0](), MutableExpression)
            return x * self.steps[0]() * self.steps[1]()

    space, relaxation = supernet_of(Net())
    relaxation.resample({"one": 2, "two": 20})
    assert space(torch.ones(1)) == 40
