"""Transposed convolutions in a super-net."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from hwnas.nn import ParametrizedModule
from hwnas.supernet.mixed_conv import MixedConvolution
from hwnas.supernet.mixed_operation import ever, joint_values, largest
from hwnas.supernet.relaxation import Relaxation


class _MixedConvTranspose(MixedConvolution):
    """A transposed convolution; its weight has the shape (in, out / groups, *kernel)."""

    _search_machinery = True

    @classmethod
    def convert(cls, module: ParametrizedModule, relaxation: Relaxation) -> Self:
        """Make the mixed operation of a module with choices among its arguments; see `MixedOperation.convert`."""
        mixed = super().convert(module, relaxation)
        if ever(module.arguments.get("bias", True)):
            # One for each output channel, of which the weight holds only those of one group.
            bound = 1 / math.sqrt(mixed.weight[0].numel())  # as PyTorch initialises it
            size = largest(module.arguments["out_channels"])
            mixed.bias = nn.Parameter(mixed.weight.new_empty(size).uniform_(-bound, bound))
        return mixed

    @classmethod
    def maximal_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return arguments for the smallest weight that holds the weight of every member."""
        joint = joint_values([arguments["out_channels"], arguments.get("groups", 1)])
        return {
            "in_channels": largest(arguments["in_channels"]),
            "out_channels": max(channels // groups for channels, groups in joint),
            "kernel_size": cls.largest_kernel(arguments["kernel_size"]),
            "bias": False,
        }

    def sliced_channels(self, values: dict[str, Any]) -> tuple[slice, slice]:
        """Return which part of the first two dimensions of the weight the member has."""
        return slice(values["in_channels"]), slice(values["out_channels"] // values.get("groups", 1))

    def convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: dict[str, Any],
        output_size: list[int] | None = None,
        **options: Any,
    ) -> Tensor:
        """Run the transposed convolution of PyTorch, as large as it is asked for."""
        stride, padding, extra, dilation = (
            list(self.per_axis(values.get(name, default)))
            for name, default in (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1))
        )
        if output_size is not None:
            kernel = list(weight.shape[2:])
            plain: Any = self
            extra = plain._output_padding(x, output_size, stride, padding, kernel, self.rank, dilation)
        run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.rank - 1]
        y: Tensor = run(x, weight, bias, stride, padding, extra, values.get("groups", 1), dilation)
        return y


class MixedConvTranspose1d(_MixedConvTranspose, torch.nn.ConvTranspose1d):
    """`ConvTranspose1d` in a super-net."""

    _search_machinery = True
    rank = 1


class MixedConvTranspose2d(_MixedConvTranspose, torch.nn.ConvTranspose2d):
    """`ConvTranspose2d` in a super-net."""

    _search_machinery = True
    rank = 2


class MixedConvTranspose3d(_MixedConvTranspose, torch.nn.ConvTranspose3d):
    """`ConvTranspose3d` in a super-net."""

    _search_machinery = True
    rank = 3
