"""How choices are found inside ordinary modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from hwnas.space import Mutable


def module_mutables(module: nn.Module) -> Iterator[Mutable]:
    """Yield the topmost mutables inside `module`, in the order in which the module holds them.

    A mutable that is itself a module speaks for everything below it, so the walk does not enter it.
    Mutables that are plain attributes (a value choice, a constraint) are found as well, inside lists, tuples and
    dictionaries too.

    Parameters
    ----------
    module : torch.nn.Module
        Any module; it is not yielded itself.

    Yields
    ------
    Mutable
        Each topmost mutable, once for each module that holds it.
    """
    for _, mutable in attribute_mutables(module):
        yield mutable
    for child in module.children():
        if isinstance(child, Mutable):
            yield child
        else:
            yield from module_mutables(child)


def attribute_mutables(module: nn.Module) -> Iterator[tuple[str, Mutable]]:
    """Yield the mutables that `module` holds as plain attributes, with the names of the attributes.

    Parameters
    ----------
    module : torch.nn.Module
        Any module.

    Yields
    ------
    tuple of str and Mutable
        Those inside lists, tuples and dictionaries too; mutables that are modules are children, not attributes.
    """
    for name, value in list(vars(module).items()):
        if name not in OF_PYTORCH:
            for mutable in _inside(value):
                yield name, mutable


OF_PYTORCH = frozenset(vars(nn.Module()))  # what PyTorch itself keeps in a module: parameters, children, hooks


def _inside(value: Any) -> Iterator[Mutable]:
    if isinstance(value, Mutable) and not isinstance(value, nn.Module):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _inside(item)
    elif isinstance(value, dict):
        yield from _inside(list(value.values()))
