"""Batch normalisation in a super-net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.supernet.clamped_norm import Bounds, clamped, clamped_batch_norm
from hwnas.supernet.mixed_operation import MixedOperation, holds_mixture, width_mask


class _MixedBatchNorm(MixedOperation, torch.nn.modules.batchnorm._BatchNorm):
    """Prefixes of the channels of one batch normalisation, running statistics included."""

    _search_machinery = True
    mixable = ("num_features",)
    widths_of_input = ("num_features",)
    sizes = ("num_features",)
    switches = ("affine", "track_running_stats")

    def sliced_state(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return the parameters and the running statistics of the member."""
        tensors: dict[str, Tensor] = {}
        if values.get("affine", True):
            tensors |= dict(self.named_parameters())
        if values.get("track_running_stats", True):
            tensors |= dict(self.named_buffers())
        # The number of batches has no channels.
        return {name: tensor[: values["num_features"]] if tensor.dim() else tensor for name, tensor in tensors.items()}

    def forward_sliced(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Normalise with the slice; its running statistics are updated in place."""
        return self._normalise(x, self.sliced_state(values), values)

    def forward_mixed(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Normalise all channels, then mask them: behind the normalisation a mask has an effect."""
        widest = values | {"num_features": x.shape[1]}
        y = self._normalise(x, self.sliced_state(widest), widest)
        mask = width_mask(values["num_features"], x.shape[1], y)
        return y if mask is None else y * mask.view(-1, *[1] * (y.dim() - 2))

    def forward_clamped(self, x: Tensor, bounds: Bounds) -> Tensor:
        """Run, and clamp the output: together with the activation behind it.

        Parameters
        ----------
        x : Tensor, shape (N, C, ...)
            What to normalise.
        bounds : Bounds
            Of the activation.
        """
        values = self.present_values()
        if holds_mixture(values):
            return clamped(self.forward_mixed(x, values), bounds)
        return self._normalise(x, self.sliced_state(values), values, bounds)

    def _normalise(
        self, x: Tensor, state: dict[str, Tensor], values: dict[str, Any], bounds: Bounds | None = None
    ) -> Tensor:
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        mean, variance = state.get("running_mean"), state.get("running_var")
        # The momentum of the module where there is none: re-estimating the statistics sets it to None, which stands
        # for a cumulative average.
        momentum = 0.0 if self.momentum is None else values.get("momentum", self.momentum)
        if self.training and "num_batches_tracked" in state:
            state["num_batches_tracked"].add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(state["num_batches_tracked"])
        affine, eps = (state.get("weight"), state.get("bias")), values.get("eps", self.eps)
        training = self.training or mean is None
        if bounds is not None and training:
            return clamped_batch_norm(x, (mean, variance), affine, momentum, eps, bounds)
        y = F.batch_norm(x, mean, variance, *affine, training, momentum, eps)
        return y if bounds is None else clamped(y, bounds)


class MixedBatchNorm1d(_MixedBatchNorm, torch.nn.BatchNorm1d):
    """`BatchNorm1d` in a super-net: prefixes of the channels, running statistics included."""

    _search_machinery = True


class MixedBatchNorm2d(_MixedBatchNorm, torch.nn.BatchNorm2d):
    """`BatchNorm2d` in a super-net: prefixes of the channels, running statistics included."""

    _search_machinery = True


class MixedBatchNorm3d(_MixedBatchNorm, torch.nn.BatchNorm3d):
    """`BatchNorm3d` in a super-net: prefixes of the channels, running statistics included."""

    _search_machinery = True
