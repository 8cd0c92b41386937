from __future__ import annotations

import pytest
import torch

import hwnas.nn as nn


class Net(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.gap = nn.Placeholder("act", width=3)


def test_a_gap_neither_runs_nor_freezes_until_it_is_filled() -> None:
    space = Net()
    assert (space.gap.args, space.gap.kwargs) == (("act",), {"width": 3})
    for use in (lambda: space.gap(torch.zeros(1)), lambda: space.freeze({})):
        with pytest.raises(RuntimeError, match=r"Placeholder\('act', width=3\) cannot be .*: put a module"):
            use()
    space.gap = nn.ReLU()
    assert isinstance(space.freeze({}).gap, torch.nn.ReLU)
