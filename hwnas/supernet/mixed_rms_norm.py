"""`RMSNorm` in a super-net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.supernet.mixed_layer_norm import normalized_sizes
from hwnas.supernet.mixed_operation import MixedExpectation, filled_up, prefix


class MixedRMSNorm(MixedExpectation, torch.nn.RMSNorm):
    """Prefixes of the normalised dimensions of one normalisation by the root mean square.

    As in `MixedLayerNorm` each member takes the mean square over its own prefix of the input. It cannot be had from
    the largest member by a mask: channels that are zero do not change the sum of squares, but the number by which it
    is divided.
    """

    _search_machinery = True
    mixable = ("normalized_shape", "eps", "elementwise_affine")
    widths_of_input = ("normalized_shape",)
    sizes = ("normalized_shape",)
    switches = ("elementwise_affine",)

    def sliced_state(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return the weight of the member."""
        if not values.get("elementwise_affine", True):
            return {}
        return {"weight": prefix(self.weight, normalized_sizes(values))}

    def forward_sliced(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Normalise with the slice."""
        weight = self.sliced_state(values).get("weight")
        return F.rms_norm(x, list(normalized_sizes(values)), weight, values.get("eps", self.eps))

    def forward_member(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Normalise the prefix of the input."""
        return filled_up(self.forward_sliced(prefix(x, normalized_sizes(values)), values), x.shape)
