"""`Conv2d` in a super-net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.nn import ParametrizedModule
from hwnas.nn.parametrized import has_choice
from hwnas.supernet.mixed_operation import MixedOperation, ever, joint_values, largest, refusal, width_mask
from hwnas.supernet.mixture import Mixture

Pair = tuple[Any, Any]


def pair(value: Any) -> Pair:
    """Return a size for both directions."""
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)


class MixedConv2d(MixedOperation, torch.nn.Conv2d):
    """Prefixes of the channels and centres of the kernels of one weight."""

    _search_machinery = True
    mixable = ("in_channels", "out_channels", "kernel_size", "padding", "groups")
    widths_of_input = ("in_channels",)

    @classmethod
    def maximal_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return arguments for the smallest weight that holds the weight of every member.

        Members have in_channels / groups channels for each filter, which need not be largest where in_channels is:
        the maximal module is therefore described by that quotient, with one group.
        """
        joint = list(joint_values([arguments["in_channels"], arguments.get("groups", 1)]))
        kernels = [pair(kernel) for (kernel,) in joint_values([arguments["kernel_size"]])]
        return {
            "in_channels": max(channels // groups for channels, groups in joint),
            "out_channels": largest(arguments["out_channels"]),
            "kernel_size": (max(height for height, _ in kernels), max(width for _, width in kernels)),
            "bias": ever(arguments.get("bias", True)),
        }

    def sliced_state(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return the weight, cropped to the centre of the kernel, and the bias of the member."""
        out, per_filter = values["out_channels"], values["in_channels"] // values.get("groups", 1)
        height, width = pair(values["kernel_size"])
        top, left = (self.weight.shape[2] - height) // 2, (self.weight.shape[3] - width) // 2
        state = {"weight": self.weight[:out, :per_filter, top : top + height, left : left + width]}
        if self.bias is not None and values.get("bias", True):
            state["bias"] = self.bias[:out]
        return state

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, values: dict[str, Any]) -> Tensor:
        padding, mode = values.get("padding", 0), values.get("padding_mode", "zeros")
        stride, dilation = values.get("stride", 1), values.get("dilation", 1)
        if mode != "zeros":
            if isinstance(padding, str):
                spread = [d * (k - 1) for d, k in zip(pair(dilation), weight.shape[2:], strict=True)]
                before = [s // 2 if padding == "same" else 0 for s in spread]
                after = [s - b if padding == "same" else 0 for s, b in zip(spread, before, strict=True)]
            else:
                before = after = list(pair(padding))
            x = F.pad(x, [before[1], after[1], before[0], after[0]], mode=mode)
            padding = 0
        return F.conv2d(x, weight, bias, stride, padding, dilation, values.get("groups", 1))

    def forward_sliced(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Convolve with the slice."""
        state = self.sliced_state(values)
        return self._convolve(x, state["weight"], state.get("bias"), values)

    def forward_mixed(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Convolve once with the expected kernel and mask the output.

        A convolution is linear in its weight, and all kernels share a centre: mixing the kernels equals mixing
        the outputs.
        """
        weight = self.weight
        kernel = values["kernel_size"]
        fixed = dict(values)
        if isinstance(kernel, Mixture) and kernel.weights is not None:
            centres = torch.stack([self._centre(size) for size in kernel.values])
            weight = weight * torch.einsum("k,khw->hw", kernel.weights.to(weight.dtype), centres)
        if isinstance(values.get("padding"), Mixture):
            # That of the largest kernel, whose height and width may belong to different members.
            heights, widths = zip(*map(pair, values["padding"].values), strict=True)
            fixed["padding"] = (max(heights), max(widths))
        if isinstance(values.get("groups"), Mixture):
            fixed["groups"] = x.shape[1] // weight.shape[1]
        y = self._convolve(x, weight, self.bias, fixed)
        mask = width_mask(values["out_channels"], y.shape[1], y)
        return y if mask is None else y * mask.view(1, -1, 1, 1)

    def _centre(self, size: Any) -> Tensor:
        """Return ones where a kernel of `size` lies inside the largest kernel."""
        height, width = pair(size)
        full = self.weight.shape[2:]
        top, left = (full[0] - height) // 2, (full[1] - width) // 2
        centre = self.weight.new_zeros(full)
        centre[top : top + height, left : left + width] = 1
        return centre

    @classmethod
    def check_mixable(cls, module: ParametrizedModule, name: str) -> None:
        """Refuse kernels that do not share a centre and groups that change with the mixture."""
        super().check_mixable(module, name)
        arguments = module.arguments
        if has_choice((arguments["in_channels"], arguments.get("groups", 1))):
            channels = [arguments["in_channels"], arguments["out_channels"], arguments.get("groups", 1)]
            joint = list(joint_values(channels))
            culprit = "groups" if has_choice(arguments.get("groups", 1)) else "in_channels"
            if any(groups != 1 for *_, groups in joint):
                if len({inside // groups for inside, _, groups in joint}) > 1:
                    raise refusal(module, name, culprit, "in_channels / groups must be the same for every member")
                if culprit == "groups" and len({outside // groups for _, outside, groups in joint}) > 1:
                    raise refusal(module, name, culprit, "out_channels / groups must be the same for every member")
        kernel, padding = arguments["kernel_size"], arguments.get("padding", 0)
        if not has_choice((kernel, padding)):
            return
        dilation = pair(arguments.get("dilation", 1))
        centres = set()
        for kernel_value, padding_value in joint_values([kernel, padding]):
            if padding_value == "same":
                centres.add((0.0, 0.0))
            elif isinstance(padding_value, str):
                centres.add(tuple((k - 1) * d / 2 for k, d in zip(pair(kernel_value), dilation, strict=True)))
            else:
                spread = zip(pair(kernel_value), pair(padding_value), dilation, strict=True)
                centres.add(tuple((k - 1) * d / 2 - p for k, p, d in spread))
        if len(centres) > 1:
            culprit = "kernel_size" if has_choice(kernel) else "padding"
            raise refusal(
                module, name, culprit, "the kernels are not centred alike; use padding=(kernel_size - 1) // 2"
            )
