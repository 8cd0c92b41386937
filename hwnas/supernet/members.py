"""Members of modules that hwnas knows nothing of: each uses prefixes of the parameters of the largest one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hwnas.errors import UnsupportedError
from hwnas.supernet.mixed_operation import prefix


def without_tensors(member: nn.Module) -> nn.Module:
    """Replace the parameters and buffers of a member by empty ones of their shapes, in place.

    Its tensors come from the largest member whenever it runs. Buffers that are no part of the state stay.

    Parameters
    ----------
    member : torch.nn.Module
        As its constructor has made it.

    Returns
    -------
    torch.nn.Module
        `member`.
    """
    for name, tensor in member.state_dict().items():
        path, _, attribute = name.rpartition(".")
        owner = member.get_submodule(path)
        if attribute in owner._parameters:
            owner._parameters[attribute] = nn.Parameter(tensor.to("meta"), requires_grad=False)
        else:
            owner._buffers[attribute] = tensor.to("meta")
    return member


def prefixes(whole: nn.Module, member: nn.Module) -> dict[str, Tensor]:
    """Return views of the parameters and buffers of `whole` that are as large as those of a member."""
    tensors = whole.state_dict(keep_vars=True)
    return {name: prefix(tensors[name], tensor.shape) for name, tensor in member.state_dict().items()}


def run_member(
    member: nn.Module, whole: nn.Module, inputs: tuple[Any, ...], options: Mapping[str, Any] | None = None
) -> Any:
    """Run a member with prefixes of the parameters and buffers of `whole`, in the modes of the parts of `whole`.

    Parameters
    ----------
    member : torch.nn.Module
        See `without_tensors`.
    whole : torch.nn.Module
        Has all parameters and buffers of the member, at least as large. Where the momentum of a batch normalisation of
        it is None, that of the member is for this run: statistics are being re-estimated.
    inputs : tuple
        Of the forward pass.
    options : mapping, optional
        Named inputs.

    Returns
    -------
    Any
        What the member returns.
    """
    state = prefixes(whole, member)
    like = next((tensor for tensor in state.values() if tensor.is_floating_point()), None)
    for name, buffer in member.named_buffers():
        if name not in state and like is not None:
            state[name] = buffer.to(like) if buffer.is_floating_point() else buffer.to(like.device)
    parts = dict(whole.named_modules())
    momenta: list[tuple[_BatchNorm, float | None]] = []
    for name, part in member.named_modules():
        same = parts.get(name, whole)
        part.training = same.training
        if isinstance(part, _BatchNorm) and isinstance(same, _BatchNorm) and same.momentum is None:
            momenta.append((part, part.momentum))
            part.momentum = None
    try:
        return torch.func.functional_call(member, state, inputs, dict(options or {}))
    finally:
        for part, momentum in momenta:
            part.momentum = momentum


class SlicedModule(nn.Module):
    """A module that a callable makes for a width, for several widths that share their parameters.

    Parameters
    ----------
    largest : torch.nn.Module
        The one of the largest width. The others use prefixes of its parameters.
    make : callable
        Makes the module for a number of channels.
    widths : sequence of int
        The numbers of channels.
    where : str
        What it is part of, for messages.

    Raises
    ------
    UnsupportedError
        When it lacks a parameter of another one, or has a smaller one.
    """

    def __init__(self, largest: nn.Module, make: Callable[[int], nn.Module], widths: Sequence[int], where: str) -> None:
        super().__init__()
        self.largest = largest
        self.make = make
        with torch.random.fork_rng(devices=[]):
            self._members = {width: without_tensors(make(width)) for width in sorted(set(widths))}
        shapes = {name: tensor.shape for name, tensor in self.largest.state_dict().items()}
        for width, member in self._members.items():
            for name, tensor in member.state_dict().items():
                whole = shapes.get(name, torch.Size())
                if len(whole) != tensor.dim() or any(a > b for a, b in zip(tensor.shape, whole, strict=True)):
                    raise UnsupportedError(
                        f"{where}: for {width} channels {name!r} has the shape {tuple(tensor.shape)}, for the largest "
                        f"number, {max(widths)}, it has {tuple(whole)}, so it cannot be a slice of that. Use a "
                        "strategy that trains each member by itself"
                    )

    def forward(self, x: Tensor, width: int) -> Any:
        """Run the module of a width.

        Parameters
        ----------
        x : Tensor
            Its input.
        width : int
            One of those that were given.
        """
        return run_member(self._members[width], self.largest, (x,))

    def member(self, width: int) -> nn.Module:
        """Return the module of a width with a copy of its parameters."""
        with torch.random.fork_rng(devices=[]):
            member = self.make(width)
        with torch.enable_grad():  # so that slices of parameters that are trained say that they are
            state = prefixes(self.largest, member)
        like = next((tensor for tensor in state.values() if tensor.is_floating_point()), None)
        if like is not None:
            member.to(like.device, like.dtype)
        for name, parameter in member.named_parameters():
            parameter.requires_grad_(state[name].requires_grad)
        member.load_state_dict({name: tensor.detach() for name, tensor in state.items()})
        return member.train(self.training)
