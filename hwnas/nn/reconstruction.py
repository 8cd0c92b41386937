"""Giving a copy of a module the contents that its class makes with other arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hwnas.nn.holding import OF_PYTORCH


def contents(module: nn.Module) -> Iterator[Any]:
    """Yield the names of attributes, parameters, buffers and children, and the keys of hooks.

    Parameters
    ----------
    module : torch.nn.Module
        Its children are not looked into.

    Yields
    ------
    str or int
        What identifies each of them.
    """
    for name, value in vars(module).items():
        if name not in OF_PYTORCH:
            yield name
        elif isinstance(value, dict):
            yield from value


def reconstruct(
    copied: nn.Module,
    make: Callable[[], nn.Module],
    make_default: Callable[[], nn.Module],
    constructed: frozenset[Any],
) -> None:
    """Replace what a constructor made of one module by what it makes with other arguments.

    A tensor stays if its initial value is the same for both arguments: the weight of a convolution whose stride
    changes stays, the slope of a rectifier that is constructed with another slope does not. What was added after the
    construction stays as well.

    Parameters
    ----------
    copied : torch.nn.Module
        Changed in place. Device, type, training mode and `requires_grad` are kept.
    make, make_default : callable
        Construct a module with the other arguments, and with those with which `copied` was constructed.
    constructed : frozenset
        The `contents` of `copied` after its construction.
    """
    random_states = _random_states()
    fresh = make()
    kept = _tensors(copied)
    made = _tensors(fresh)
    same = [name for name, tensor in made.items() if name in kept and kept[name].shape == tensor.shape]
    if same:
        with _replay(random_states):
            default = _tensors(make_default())
        same = [name for name in same if name in default and _equal(default[name], made[name])]

    like = next((tensor for tensor in kept.values() if tensor.is_floating_point()), None)
    if like is not None:
        fresh.to(like.device, like.dtype)
    for name, parameter in fresh.named_parameters():
        parameter.requires_grad = kept[name].requires_grad if name in kept else True
    for name in same:
        owner, _, attribute = name.rpartition(".")
        setattr(fresh.get_submodule(owner), attribute, kept[name])
    training = {name: part.training for name, part in copied.named_modules()}
    for name, part in fresh.named_modules():
        part.training = training.get(name, copied.training)
    _add_others(fresh, copied, constructed)
    vars(copied).clear()
    vars(copied).update(vars(fresh))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers that have a shape, those that are tied under each of their names."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    return {name: tensor for name, tensor in {**parameters, **buffers}.items() if not is_lazy(tensor)}


def _equal(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors were initialised alike; on the meta device, where there are no values, they were."""
    return one.shape == other.shape and (one.is_meta or other.is_meta or torch.equal(one, other))


def _add_others(fresh: nn.Module, copied: nn.Module, constructed: frozenset[Any]) -> None:
    """Add to a new module what a copy has that its constructor did not make."""
    target = vars(fresh)
    for name, value in vars(copied).items():
        if name not in OF_PYTORCH:
            if name not in constructed:
                target.setdefault(name, value)
        elif isinstance(value, dict):
            target[name].update({key: part for key, part in value.items() if key not in constructed})
        elif isinstance(value, set):
            target[name] |= value - constructed
        else:
            target[name] = value


def _random_states() -> tuple[Tensor, list[Tensor]]:
    """Return the states of the random generators that initialise parameters."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


@contextmanager
def _replay(states: tuple[Tensor, list[Tensor]]) -> Iterator[None]:
    """Draw the same random numbers once more, and leave the generators as they were before."""
    cpu, gpus = states
    with torch.random.fork_rng(range(len(gpus))):
        torch.set_rng_state(cpu)
        for index, gpu in enumerate(gpus):
            torch.cuda.set_rng_state(gpu, index)
        yield
