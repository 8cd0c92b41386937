from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.evaluators import recalibrate_batch_norm
from hwnas.supernet import OneHot, make_supernet
from hwnas.supernet.members import run_member, without_tensors


class Normalised(torch.nn.Module):
    def __init__(self, width: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(width, momentum=momentum)
        self.register_buffer("offset", torch.arange(width) + 1.0, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x) + self.offset
        return y


class Space(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([2, 4], label="width")
        momentum = nn.ValueChoice([0.1, 0.5], label="momentum")
        self.first = nn.Linear(3, width)
        self.layer = nn.parametrized(Normalised)(width, momentum)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(self.first(x))
        return y


@pytest.fixture
def supernet() -> tuple[Space, OneHot]:
    space = Space()
    relaxation = OneHot(space.simplify().values())
    make_supernet(space, relaxation).double()
    return space, relaxation


def test_statistics_of_a_class_of_one_s_own_can_be_estimated_anew(supernet: tuple[Space, OneHot]) -> None:
    space, relaxation = supernet
    batches = [torch.randn(5, 3, dtype=torch.float64) + 2 for _ in range(3)]
    for sample in space.grid():
        relaxation.resample(sample)
        member = space.freeze(sample)
        for model in (space.eval(), member.eval()):
            recalibrate_batch_norm(model, batches)
        width = sample["width"]
        assert member.layer.norm.running_mean.abs().min() > 0
        torch.testing.assert_close(space.layer.norm.running_mean[:width], member.layer.norm.running_mean)
        torch.testing.assert_close(space.layer.norm.running_var[:width], member.layer.norm.running_var)
        torch.testing.assert_close(space(batches[0]), member(batches[0]))


def test_the_momentum_of_a_member_is_its_own(supernet: tuple[Space, OneHot]) -> None:
    space, relaxation = supernet
    x = torch.randn(5, 3, dtype=torch.float64)
    for sample in space.grid():
        relaxation.resample(sample)
        recalibrate_batch_norm(space, [x + 1])  # with a momentum of its own meanwhile
    for sample in space.grid():
        relaxation.resample(sample)
        member = space.freeze(sample).train()
        space.train()(x)
        member(x)
        torch.testing.assert_close(space.layer.norm.running_mean[: sample["width"]], member.layer.norm.running_mean)


def test_members_hold_no_parameters() -> None:
    member = without_tensors(Normalised(3))
    assert all(tensor.is_meta for tensor in member.state_dict().values())
    assert torch.equal(member.offset, torch.tensor([1.0, 2.0, 3.0]))
    whole = Normalised(4).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    y = run_member(member, whole, (x,))
    torch.testing.assert_close(y, torch.nn.functional.batch_norm(x, None, None, training=True) + member.offset)
    assert whole.norm.running_mean[3] == 0
    assert (whole.norm.running_mean[:3] != 0).all()
    assert run_member(member, Normalised(4).bfloat16(), (x.bfloat16(),)).dtype == torch.bfloat16
    whole.norm.eval()  # a part in another mode than the whole
    before = whole.norm.running_mean.clone()
    run_member(member, whole, (x,))
    assert torch.equal(whole.norm.running_mean, before)
