"""What is measured: an operator at one shape, with the ways of computing it that compete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Contender = Callable[[], Tensor]
"""One way to compute the result, with the arguments bound."""

PHASES = ("inference", "forward", "backward", "training")
"""Without gradients; with gradients recorded; the backward pass alone; forward and backward pass together."""


@dataclass(frozen=True)
class Limit:
    """Work that no implementation can avoid, so that a time becomes a share of what the machine can do.

    Exactly one of both is given.

    Parameters
    ----------
    bytes_moved : int, optional
        Bytes of all tensors that have to be read or written, each counted once. Compared with a copy that moves
        as many.
    flops : int, optional
        Additions and multiplications. Compared with the multiplication of two large matrices.

    Raises
    ------
    ValueError
        None or both are given.
    """

    bytes_moved: int | None = None
    flops: int | None = None

    def __post_init__(self) -> None:
        if (self.bytes_moved is None) == (self.flops is None):
            raise ValueError(
                f"Limit: bytes_moved is {self.bytes_moved} and flops is {self.flops}, expected exactly one of both"
            )


@dataclass(frozen=True)
class Problem:
    """Data of a case, made when it is measured and dropped afterwards.

    Parameters
    ----------
    contenders : mapping of str to callable
        At least ``native`` and ``eager``. All compute the same result; this is checked to rounding. What is named
        ``compiled`` is left out when nothing shall be compiled.
    inputs : sequence of Tensor
        The tensors whose gradients the backward pass computes.
    """

    contenders: Mapping[str, Contender]
    inputs: Sequence[Tensor]


@dataclass(frozen=True)
class Case:
    """An operator at one shape.

    Parameters
    ----------
    operator : str
        Name of the operator.
    shape : str
        Shape and what else describes the call, in a few words: ``32x16x32x32, k5 d2``.
    layout : str
        How tensors lie in memory: ``contiguous``, ``channels_last``.
    dtype : str
        Element type: ``float32``.
    prepare : callable
        Makes the data and binds the contenders to it.
    phases : mapping of str to Limit or None
        The phases to measure (see `PHASES`) and the least work of each, where it can be told.
    """

    operator: str
    shape: str
    layout: str
    dtype: str
    prepare: Callable[[], Problem]
    phases: Mapping[str, Limit | None]

    def __str__(self) -> str:
        return f"{self.operator} {self.shape}, {self.layout}, {self.dtype}"
