"""Depthwise convolutions of a super-net run by compiled kernels, where possible together with the ReLU before them.

Candidates are plain modules of PyTorch, and most of the time of a step goes to their depthwise convolutions. When a
super-net is made, these become `DepthwiseConv2d`, in place: they keep their parameters, their names and what they
compute. A frozen member has the class of PyTorch again.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hwnas.kernels.dwconv2d import dwconv2d


class DepthwiseConv2d(nn.Conv2d):
    """A convolution with one kernel for each channel."""

    _search_machinery = True  # a frozen member has a torch.nn.Conv2d

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._takes(input):
            y: Tensor = super()._conv_forward(input, weight, bias)
            return y
        return dwconv2d(input, weight, bias, stride=self.stride, padding=self.padding, dilation=self.dilation)

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
        places: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return dwconv2d(x, self.weight, self.bias, **places, pre_relu=True)

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
