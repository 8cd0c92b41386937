"""`Linear` in a super-net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.supernet.mixed_operation import MixedOperation, for_training, width_mask


class MixedLinear(MixedOperation, torch.nn.Linear):
    """Prefixes of the rows and columns of one weight matrix."""

    _search_machinery = True
    mixable = ("in_features", "out_features")
    widths_of_input = ("in_features",)
    sizes = ("in_features", "out_features")
    switches = ("bias",)

    def sliced_state(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return the weight and the bias of the member."""
        out = values["out_features"]
        state = {"weight": self.weight[:out, : values["in_features"]]}
        if self.bias is not None and values.get("bias", True):
            state["bias"] = self.bias[:out]
        return state

    def forward_sliced(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Apply the slice."""
        state = self.sliced_state(values)
        return F.linear(x, for_training(state["weight"], self.weight), state.get("bias"))

    def forward_mixed(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Apply the whole and mask the output."""
        y = F.linear(x, self.weight, self.bias)
        mask = width_mask(values["out_features"], self.weight.shape[0], y)
        return y if mask is None else y * mask
