from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hwnas.supernet.coverage import centres, coverage


def test_channels_belong_to_the_widths_that_reach_them() -> None:
    found = coverage((1, 3, 4), 4, torch.zeros(()))
    assert found.tolist() == [[1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1]]


def test_kernels_share_a_centre() -> None:
    found = centres(([3], [2], [1]), [4], torch.zeros(()))
    assert found.tolist() == [[1, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0]]
    found = centres([(1, 3), (3, 1)], (3, 3), torch.zeros(()))
    assert found[0].tolist() == [[0, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert torch.equal(found[1], found[0].T)


def test_they_are_made_once_for_each_type() -> None:
    like = torch.zeros(())
    assert coverage((2, 4), 4, like) is coverage([2, 4], 4, like)
    assert centres([(1, 1)], (3, 3), like) is centres([[1, 1]], [3, 3], like)
    for dtype in (torch.float64, torch.bfloat16):
        found = coverage((2, 4), 4, like.to(dtype))
        assert found.dtype == dtype
        assert torch.equal(found.float(), coverage((2, 4), 4, like))
    assert coverage((2, 4), 5, like).shape == (5, 2)


def test_what_inference_made_can_be_trained_with() -> None:
    with torch.inference_mode():
        coverage((5, 7), 7, torch.zeros(()))
    weights = torch.rand(2, requires_grad=True)
    (coverage((5, 7), 7, torch.zeros(())) @ weights).sum().backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [5, 7]


@pytest.mark.parametrize("make", [lambda x: coverage((9, 11), 11, x), lambda x: centres([(1,), (3,)], (5,), x)])
def test_no_tensor_of_a_tracer_stays_behind(make: Callable[[Tensor], Tensor]) -> None:
    with FakeTensorMode():
        assert isinstance(make(torch.zeros(())), FakeTensor)
    assert not isinstance(make(torch.zeros(())), FakeTensor)
