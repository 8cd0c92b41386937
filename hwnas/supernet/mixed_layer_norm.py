"""`LayerNorm` in a super-net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.supernet.mixed_operation import MixedExpectation, filled_up, prefix


def normalized_sizes(values: dict[str, Any]) -> tuple[int, ...]:
    """Return the sizes of the dimensions over which a member normalises."""
    shape = values["normalized_shape"]
    return tuple(shape) if isinstance(shape, tuple | list) else (shape,)


class MixedLayerNorm(MixedExpectation, torch.nn.LayerNorm):
    """Prefixes of the normalised dimensions of one layer normalisation.

    Each member takes its mean and variance over its own prefix of the input; the channels that it does not have do
    not enter. Among several active widths the output is the exact expectation over these members, given the input.
    The input itself is what the layers in front gave: where those mask a width, a channel that is improbable arrives
    small in every member.
    """

    _search_machinery = True
    mixable = ("normalized_shape", "eps", "elementwise_affine", "bias")
    widths_of_input = ("normalized_shape",)
    sizes = ("normalized_shape",)
    switches = ("elementwise_affine", "bias")

    def sliced_state(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return the weight and the bias of the member."""
        if not values.get("elementwise_affine", True):
            return {}
        sizes = normalized_sizes(values)
        state = {"weight": prefix(self.weight, sizes)}
        if self.bias is not None and values.get("bias", True):
            state["bias"] = prefix(self.bias, sizes)
        return state

    def forward_sliced(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Normalise with the slice."""
        state = self.sliced_state(values)
        sizes = list(normalized_sizes(values))
        return F.layer_norm(x, sizes, state.get("weight"), state.get("bias"), values.get("eps", self.eps))

    def forward_member(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Normalise the prefix of the input."""
        return filled_up(self.forward_sliced(prefix(x, normalized_sizes(values)), values), x.shape)
