"""Convolutions in a super-net."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from hwnas.kernels import mask_scale
from hwnas.kernels.dwconv2d import dwconv2d
from hwnas.nn import ParametrizedModule
from hwnas.nn.parametrized import has_choice
from hwnas.supernet.coverage import centres
from hwnas.supernet.mixed_operation import (
    MixedOperation,
    ever,
    for_training,
    joint_values,
    largest,
    refusal,
    widest,
    width_mask,
)
from hwnas.supernet.mixture import Mixture


class MixedConvolution(MixedOperation):
    """Prefixes of the channels and centres of the kernels of one weight; the base of all mixed convolutions.

    Among several active values there is one convolution: with the expected kernel, and with a mask on its output.
    A convolution is linear in its weight, and all kernels share a centre, so mixing the kernels equals mixing the
    outputs.
    """

    _search_machinery = True
    mixable = ("in_channels", "out_channels", "kernel_size", "padding", "groups")
    widths_of_input = ("in_channels",)
    rank: ClassVar[int]  # number of dimensions of an image
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def per_axis(cls, size: Any) -> tuple[Any, ...]:
        """Return a size for each dimension of an image."""
        return tuple(size) if isinstance(size, tuple | list) else (size,) * cls.rank

    @classmethod
    def maximal_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return arguments for the smallest weight that holds the weight of every member.

        Members have in_channels / groups channels for each filter, which need not be largest where in_channels is:
        the maximal module is therefore described by that quotient, with one group.
        """
        joint = joint_values([arguments["in_channels"], arguments.get("groups", 1)])
        return {
            "in_channels": max(channels // groups for channels, groups in joint),
            "out_channels": largest(arguments["out_channels"]),
            "kernel_size": cls.largest_kernel(arguments["kernel_size"]),
            "bias": ever(arguments.get("bias", True)),
        }

    @classmethod
    def largest_kernel(cls, kernel_size: Any) -> tuple[int, ...]:
        """Return the size of the kernel that holds all kernels, which need not be one of them."""
        sizes = [cls.per_axis(size) for (size,) in joint_values([kernel_size])]
        return tuple(max(places) for places in zip(*sizes, strict=True))

    def sliced_state(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return the weight, cropped to the centre of the kernel, and the bias of the member."""
        inside = (*self.sliced_channels(values), *self._centre(values["kernel_size"]))
        state = {"weight": self.weight[inside]}
        if self.bias is not None and values.get("bias", True):
            state["bias"] = self.bias[: values["out_channels"]]
        return state

    def sliced_channels(self, values: dict[str, Any]) -> tuple[slice, slice]:
        """Return which part of the first two dimensions of the weight the member has."""
        return slice(values["out_channels"]), slice(values["in_channels"] // values.get("groups", 1))

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, values: dict[str, Any], **options: Any
    ) -> Tensor:
        """Run the convolution of PyTorch with the strides, paddings and so on of a member."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it runs (convolve)")

    def forward_sliced(self, x: Tensor, values: dict[str, Any], *inputs: Any, **options: Any) -> Tensor:
        """Convolve with the slice."""
        state = self.sliced_state(values)
        weight = for_training(state["weight"], self.weight)
        return self.convolve(x, weight, state.get("bias"), values, *inputs, **options)

    def forward_mixed(self, x: Tensor, values: dict[str, Any], *inputs: Any, **options: Any) -> Tensor:
        """Convolve once with the expected kernel and mask the output."""
        weight = self.weight
        kernel, padding = values["kernel_size"], values.get("padding")
        fixed = dict(values)
        if isinstance(kernel, Mixture) and kernel.weights is not None:
            places = centres([self.per_axis(size) for size in kernel.values], weight.shape[2:], kernel.weights)
            weight = mask_scale(weight, kernel_mask=torch.tensordot(kernel.weights, places, dims=1))
        if isinstance(padding, Mixture):
            # That of the largest kernel, whose extents may belong to different members.
            fixed["padding"] = tuple(max(places) for places in zip(*map(self.per_axis, padding.values), strict=True))
        if isinstance(values.get("groups"), Mixture):
            fixed["groups"] = widest(self.arguments["groups"])
        y = self.convolve(x, weight, self.bias, fixed, *inputs, **options)
        mask = width_mask(values["out_channels"], y.shape[-1 - self.rank], y)
        return y if mask is None else y * mask.view(-1, *[1] * self.rank)

    def _centre(self, size: Any) -> tuple[slice, ...]:
        """Return where a kernel of `size` lies inside the largest kernel."""
        starts = [(full - s) // 2 for full, s in zip(self.weight.shape[2:], self.per_axis(size), strict=True)]
        return tuple(slice(start, start + s) for start, s in zip(starts, self.per_axis(size), strict=True))

    @classmethod
    def check_mixable(cls, module: ParametrizedModule, name: str) -> None:
        """Refuse kernels that do not share a centre, and groups to which channels belong in some members only."""
        super().check_mixable(module, name)
        cls._check_groups(module, name)
        cls._check_centres(module, name)

    @classmethod
    def _check_groups(cls, module: ParametrizedModule, name: str) -> None:
        arguments = module.arguments
        channels = [arguments["in_channels"], arguments["out_channels"], arguments.get("groups", 1)]
        joint = list(joint_values(channels))
        if all(groups == 1 for *_, groups in joint):
            return
        for position, side in enumerate(("in_channels", "out_channels")):
            if len({sizes[position] // sizes[2] for sizes in joint}) > 1:
                culprit = "groups" if has_choice(arguments.get("groups", 1)) else side
                raise refusal(module, name, culprit, f"{side} / groups must be the same for every member")

    @classmethod
    def _check_centres(cls, module: ParametrizedModule, name: str) -> None:
        kernel, padding = module.arguments["kernel_size"], module.arguments.get("padding", 0)
        if not has_choice((kernel, padding)):
            return
        dilation = cls.per_axis(module.arguments.get("dilation", 1))
        centres = set()
        for kernel_value, padding_value in joint_values([kernel, padding]):
            reach = [(k - 1) * d / 2 for k, d in zip(cls.per_axis(kernel_value), dilation, strict=True)]
            if padding_value == "same":
                reach = [0.0 for _ in reach]
            elif not isinstance(padding_value, str):
                reach = [r - p for r, p in zip(reach, cls.per_axis(padding_value), strict=True)]
            centres.add(tuple(reach))
        if len(centres) > 1:
            culprit = "kernel_size" if has_choice(kernel) else "padding"
            raise refusal(
                module,
                name,
                culprit,
                "the kernels are not centred alike; use padding=dilation * (kernel_size - 1) // 2",
            )


class _MixedConv(MixedConvolution):
    """A convolution that is not transposed; its weight has the shape (out, in / groups, *kernel)."""

    _search_machinery = True

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, values: dict[str, Any], **options: Any
    ) -> Tensor:
        """Run the convolution of PyTorch, after a padding with something else than zeros."""
        padding, mode = values.get("padding", 0), values.get("padding_mode", "zeros")
        stride, dilation = values.get("stride", 1), values.get("dilation", 1)
        if mode != "zeros":
            if isinstance(padding, str):
                spread = [d * (k - 1) for d, k in zip(self.per_axis(dilation), weight.shape[2:], strict=True)]
                before = [s // 2 if padding == "same" else 0 for s in spread]
                after = [s - b if padding == "same" else 0 for s, b in zip(spread, before, strict=True)]
            else:
                before = after = list(self.per_axis(padding))
            ends = zip(reversed(before), reversed(after), strict=True)
            x = F.pad(x, [end for pair in ends for end in pair], mode=mode)
            padding = 0
        run = (F.conv1d, F.conv2d, F.conv3d)[self.rank - 1]
        y: Tensor = run(x, weight, bias, stride, padding, dilation, values.get("groups", 1))
        return y


class MixedConv1d(_MixedConv, torch.nn.Conv1d):
    """`Conv1d` in a super-net."""

    _search_machinery = True
    rank = 1


class MixedConv2d(_MixedConv, torch.nn.Conv2d):
    """`Conv2d` in a super-net; a depthwise one reads its slice of the weight in place."""

    _search_machinery = True
    rank = 2

    def forward_sliced(self, x: Tensor, values: dict[str, Any], *inputs: Any, **options: Any) -> Tensor:
        """Convolve with the slice."""
        if _is_depthwise(x, self.weight, values["out_channels"], values):
            bias = self.bias if values.get("bias", True) else None
            return dwconv2d(x, self.weight, bias, kernel_size=values["kernel_size"], **_places(values))
        return super().forward_sliced(x, values, *inputs, **options)

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, values: dict[str, Any], **options: Any
    ) -> Tensor:
        """Run the convolution."""
        if _is_depthwise(x, weight, weight.shape[0], values):
            return dwconv2d(x, weight, bias, **_places(values))
        return super().convolve(x, weight, bias, values, **options)


def _is_depthwise(x: Tensor, weight: Tensor, out_channels: int, values: dict[str, Any]) -> bool:
    """Tell whether each of several channels has a kernel of its own. Sizes may be symbols, which are left alone."""
    groups = values.get("groups", 1)
    # A compiled program serves every size as long as nothing asks for the number itself, which the kernel does.
    if torch.compiler.is_compiling():
        return False
    if type(groups) is not int or groups == 1 or values.get("padding_mode", "zeros") != "zeros":
        return False
    if any(isinstance(size, torch.SymInt) for size in tree_leaves((values["kernel_size"], _places(values)))):
        return False
    return x.dim() == 4 and groups == x.shape[1] == out_channels and weight.shape[1] == 1


def _places(values: dict[str, Any]) -> dict[str, Any]:
    """Return where kernels are put."""
    return {name: values[name] for name in ("stride", "padding", "dilation") if name in values}


class MixedConv3d(_MixedConv, torch.nn.Conv3d):
    """`Conv3d` in a super-net."""

    _search_machinery = True
    rank = 3
