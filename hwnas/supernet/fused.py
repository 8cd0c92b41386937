"""Depthwise convolutions of a super-net run by compiled kernels, where possible together with their neighbours.

These are the ReLU before them and the pointwise convolution behind them.

Candidates are plain modules of PyTorch, and most of the time of a step goes to their depthwise convolutions. When a
super-net is made, these become `DepthwiseConv2d`, in place: they keep their parameters, their names and what they
compute. A frozen member has the class of PyTorch again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hwnas.kernels.dwconv2d import dwconv2d
from hwnas.kernels.separable_conv2d import separable_conv2d

# Elements of a pointwise weight up to which the kernel is at least as fast as PyTorch's matrix products.
_FASTER_UP_TO = 1 << 16


class DepthwiseConv2d(nn.Conv2d):
    """A convolution with one kernel for each channel."""

    _search_machinery = True  # a frozen member has a torch.nn.Conv2d

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._takes(input):
            y: Tensor = super()._conv_forward(input, weight, bias)
            return y
        return dwconv2d(input, weight, bias, **self._places())

    def can_follow(self, relu: nn.Module, x: Any) -> bool:
        """Tell whether `after_relu` does what a module and this one do after each other.

        Parameters
        ----------
        relu : torch.nn.Module
            Any module. It has to be a `torch.nn.ReLU` that does not work in place, because others may read what it
            would change; and nothing may watch what is between the two.
        x : Any
            Its input.
        """
        return (
            type(relu) is nn.ReLU
            and not relu.inplace
            and type(self) is DepthwiseConv2d  # with a parametrisation it is of another class
            and not is_observed(relu)
            and not is_observed(self)
            and isinstance(x, Tensor)
            and self._takes(x)
        )

    def after_relu(self, x: Tensor) -> Tensor:
        """Convolve ``max(x, 0)``.

        Parameters
        ----------
        x : Tensor, shape (N, C, H, W)
            What the ReLU would be given.
        """
        return dwconv2d(x, self.weight, self.bias, **self._places(), pre_relu=True)

    def pointwise_behind(self, behind: Sequence[nn.Module], x: Any) -> nn.Conv2d | None:
        """Return the module behind this one if `before_pointwise` does what both do after each other, and faster.

        Parameters
        ----------
        behind : sequence of torch.nn.Module
            What follows. The first has to be a pointwise convolution that nothing watches. Neither may have a bias.
        x : Any
            Input of this module, or of a ReLU before it of which `can_follow` is true.

        Returns
        -------
        torch.nn.Conv2d or None
            None when the first that follows is something else.
        """
        point = behind[0] if behind else None
        if type(point) is not nn.Conv2d:
            return None
        fits = (
            type(self) is DepthwiseConv2d
            and point.kernel_size == point.stride == (1, 1)
            and point.padding in ((0, 0), "valid", "same")
            and point.groups == 1
            and point.bias is None
            and self.bias is None
            and point.in_channels == self.out_channels
            and point.weight.numel() <= _FASTER_UP_TO
            and not isinstance(self.padding, str)
            and not is_observed(self)
            and not is_observed(point)
            and isinstance(x, Tensor)
            and self._takes(x)
        )
        return point if fits else None

    def before_pointwise(self, point: nn.Conv2d, x: Tensor, pre_relu: bool) -> Tensor:
        """Run this convolution and a pointwise one behind it.

        Parameters
        ----------
        point : torch.nn.Conv2d
            What `pointwise_behind` returned.
        x : Tensor, shape (N, C, H, W)
            Input of this module, or of the ReLU before it.
        pre_relu : bool
            Convolve ``max(x, 0)``.
        """
        return separable_conv2d(x, self.weight, point.weight, **self._places(), pre_relu=pre_relu)

    def _places(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def _takes(self, x: Tensor) -> bool:
        # Another number of channels is an error, about which PyTorch speaks.
        return self.padding_mode == "zeros" and x.dim() in (3, 4) and x.shape[-3] == self.in_channels


def is_observed(module: nn.Module) -> bool:
    """Tell whether calling a module does more than its class says: hooks, a compiled or an exchanged forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in vars(module)
    )


def take_over_depthwise(module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> bool:
    """Make a `torch.nn.Conv2d` with one kernel for each channel a `DepthwiseConv2d`, in place; a mutation hook.

    Classes derived from it have code of their own and are left alone.

    Returns
    -------
    bool
        False: later hooks see the module, too.
    """
    if type(module) is nn.Conv2d and module.groups == module.in_channels == module.out_channels > 1:
        taken: Any = module
        taken.__class__ = DepthwiseConv2d
    return False
