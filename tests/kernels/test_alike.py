from __future__ import annotations

import gc
import sys

import pytest
import torch
from torch import Tensor

from hwnas.kernels import native
from hwnas.kernels.mixed_sum import unsupported_reason

x = torch.randn(2, 3, 4, 5)
last = x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "tensors",
    [
        (x,),
        (x, x.clone(), torch.nn.Parameter(x)),
        (last, last.clone()),
        (x.bfloat16(), x.bfloat16()),
        (x.double(),),
        (torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),),
        (torch.randn(()),),
        (torch.randn(1, 5, 1, 1)[:, 1:4],),
        (torch.randn(30)[7:],),
        (x.clone().requires_grad_() * 2,),
    ],
)
def test_addresses(tensors: tuple[Tensor, ...]) -> None:
    assert native.alike(tensors) == [t.data_ptr() for t in tensors]
    scalars = torch.ones(3, dtype=native.accumulator(tensors[0].dtype))
    assert native.alike(tensors, scalars) == [t.data_ptr() for t in (*tensors, scalars)]
    assert unsupported_reason(scalars, tensors) is None


class Subclass(Tensor):
    pass


def escaped() -> Tensor:
    """A tensor of torch.func whose transform has ended."""
    kept: list[Tensor] = []
    torch.func.grad(lambda v: kept.append(v * 1) or v.sum())(x)
    return kept[0]


@pytest.mark.parametrize(
    ("what", "tensors"),
    [
        ("none", ()),
        ("number", (x, 1.0)),
        ("subclass", (x, x.as_subclass(Subclass))),
        ("shape", (x, x[:1])),
        ("dimensions", (x, x[0])),
        ("type", (x, x.double())),
        ("half", (x.half(),)),
        ("integer", (x.int(),)),
        ("complex", (x.to(torch.complex64),)),
        ("order", (x, last)),
        ("transposed", (x.transpose(2, 3),)),
        ("expanded", (x[:1].expand(2, 3, 4, 5),)),
        ("gap", (torch.randn(3, 4)[:, :3],)),
        ("overlap", (torch.randn(10).as_strided((4, 3), (2, 1)),)),
        ("empty", (x[:0],)),
        ("device", (x, x.to("meta"))),
        ("meta", (x.to("meta"),)),
        ("sparse", (x.to_sparse(),)),
        ("negated", (x, torch._neg_view(x))),
        ("conjugated", (torch.randn(3, dtype=torch.complex64).conj().imag,)),
        ("zero", (torch._efficientzerotensor(3),)),
        ("escaped", (escaped(),)),
    ],
)
def test_what_needs_a_closer_look(what: str, tensors: tuple[Tensor, ...]) -> None:
    assert native.alike(tensors) is None


@pytest.mark.parametrize(
    "scalars",
    [
        torch.ones(3, dtype=torch.float64),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(3, 1),
        torch.ones(6)[::2],
        torch.ones(0),
        torch.ones(3, device="meta"),
        torch._neg_view(torch.ones(3)),
        [1.0],
    ],
)
def test_scalars_that_need_a_closer_look(scalars: Tensor) -> None:
    assert native.alike((x,), scalars) is None


def test_nothing_is_kept_alive() -> None:
    t = torch.randn(3)
    before = sys.getrefcount(t)
    for other in (t, 1.0, t.double()):
        native.alike((t, other), t)
        gc.collect()
    del other
    assert sys.getrefcount(t) == before


def test_a_torch_without_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LOOKS", False)
    assert native.alike((x,)) is None


def test_a_capsule_of_another_kind_is_an_error() -> None:
    assert native.CPU is not None
    with pytest.raises(ValueError, match="incorrect name"):
        native.CPU.use_exchange_api(torch.utils.dlpack.to_dlpack(x), (Tensor,))
