"""Whether two modules compute the same but for the values of their parameters, and two functions make the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from hwnas.nn.holding import OF_PYTORCH

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def structure_of(module: nn.Module) -> Any:
    """Return what a module computes, as something that is equal for modules that compute the same.

    Parameters
    ----------
    module : torch.nn.Module
        Any module; its parameters and buffers count with their shapes, not with their values. What is neither a plain
        value nor a module counts as the object that it is, so that nothing is taken for equal that may not be.

    Returns
    -------
    tuple
        Hashable.
    """
    state = vars(module)
    own = [(name, _frozen(value)) for name, value in sorted(state.items()) if name not in OF_PYTORCH]
    tensors = [
        (name, None if tensor is None else (tuple(tensor.shape), tensor.dtype, tensor.requires_grad))
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
    ]
    children = [(name, None if child is None else structure_of(child)) for name, child in module._modules.items()]
    hooks = [id(hook) for name in _HOOKS for hook in state[name].values()]
    return type(module), module.training, tuple(own), tuple(tensors), tuple(children), tuple(hooks)


def arguments_of(function: Callable[..., Any]) -> Any:
    """Return what is equal for functions with the same arguments filled in. They have to be kept meanwhile."""
    if type(function) is partial:
        return function.func, _frozen(function.args), _frozen(function.keywords)
    return function


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_frozen, value))
    if isinstance(value, dict):
        return dict, tuple((_frozen(key), _frozen(each)) for key, each in value.items())
    if isinstance(value, _PLAIN):
        return type(value), value  # 1 and 1.0 and True are different here
    if isinstance(value, nn.Module):
        return structure_of(value)
    return object, id(value)
