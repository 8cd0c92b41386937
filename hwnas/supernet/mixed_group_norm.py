"""`GroupNorm` in a super-net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.supernet.mixed_operation import MixedExpectation, filled_up


class MixedGroupNorm(MixedExpectation, torch.nn.GroupNorm):
    """Prefixes of the channels of one group normalisation.

    Which channels form a group depends on the width as well as on the number of groups. Each member therefore
    normalises its own prefix of the channels, and among several active values the output is the exact expectation
    over these members, given the input.
    """

    _search_machinery = True
    mixable = ("num_groups", "num_channels", "eps", "affine")
    widths_of_input = ("num_channels",)
    sizes = ("num_channels",)
    switches = ("affine",)

    @classmethod
    def maximal_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the largest number of channels; the parameters do not depend on the number of groups."""
        return super().maximal_arguments(arguments) | {"num_groups": 1}

    def sliced_state(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return the weight and the bias of the member."""
        if not values.get("affine", True):
            return {}
        return {name: parameter[: values["num_channels"]] for name, parameter in self.named_parameters()}

    def forward_sliced(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Normalise with the slice."""
        state = self.sliced_state(values)
        return F.group_norm(
            x, values["num_groups"], state.get("weight"), state.get("bias"), values.get("eps", self.eps)
        )

    def forward_member(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Normalise the first channels of the input."""
        return filled_up(self.forward_sliced(x[:, : values["num_channels"]], values), x.shape)
