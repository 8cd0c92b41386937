"""`Dropout` in a super-net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.nn import ParametrizedModule
from hwnas.nn.parametrized import has_choice
from hwnas.supernet.mixed_operation import MixedOperation, refusal


class MixedDropout(MixedOperation, torch.nn.Dropout):
    """Dropout with the rate of the present member."""

    _search_machinery = True

    def sliced_state(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return nothing: there are no parameters."""
        return {}

    def make_member(self, values: dict[str, Any]) -> torch.nn.Module:
        """Make a `Dropout`."""
        return torch.nn.Dropout(**values)

    def forward_sliced(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Drop with the rate of the member."""
        return F.dropout(x, values.get("p", self.p), self.training, values.get("inplace", self.inplace))

    @classmethod
    def check_mixable(cls, module: ParametrizedModule, name: str) -> None:
        """Refuse a mixture of rates."""
        if has_choice(module.arguments.get("p", 0)):
            raise refusal(module, name, "p", "the expected output is the same for every rate, so none is preferred")
        super().check_mixable(module, name)
