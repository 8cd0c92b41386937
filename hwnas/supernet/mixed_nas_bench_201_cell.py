"""`NasBench201Cell` in a super-net."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hwnas.nn.nas_bench_201_cell import NasBench201Cell
from hwnas.supernet.sharing import sharing


class MixedNasBench201Cell(NasBench201Cell):
    """A `NasBench201Cell` of which the operations share poolings and ReLUs of one tensor.

    It decides nothing itself: its operations are `MixedLayer`.
    """

    _search_machinery = True  # a frozen member has a NasBench201Cell

    def forward(self, x: Tensor) -> Tensor:
        """Compute the last tensor; see `NasBench201Cell.forward`."""
        with sharing(self.edges.values()):
            return super().forward(x)


def take_over_nas_bench_201_cell(
    module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
) -> bool:
    """Make a `NasBench201Cell` a `MixedNasBench201Cell`, in place; a mutation hook.

    Classes derived from it have code of their own and are left alone.

    Returns
    -------
    bool
        False: later hooks see the module, too.
    """
    if type(module) is NasBench201Cell:
        module.__class__ = MixedNasBench201Cell
    return False
