"""Modules that hold choices, and how choices are found inside ordinary modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from hwnas.nn.freezing import copy_frozen
from hwnas.space import Mutable, Sample


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


class MutableModule(nn.Module, Mutable):
    """A module whose architecture depends on a sample.

    Deriving from it is the way to write a new primitive: say which mutables it holds
    (`sub_mutables`, unless they are attributes) and what it becomes when it is frozen (`lower`).
    """

    _search_machinery = True  # no trace of this class is left in a frozen model

    def add_mutable(self, mutable: Mutable) -> None:
        """Make a mutable, typically a constraint, part of this module.

        Parameters
        ----------
        mutable : Mutable
            It takes part in `simplify`, `validate`, `random` and `grid` from now on.
        """
        vars(self).setdefault("_registered_mutables", []).append(mutable)

    def registered_mutables(self) -> Iterator[Mutable]:
        """Yield what `add_mutable` was given, for primitives that override `sub_mutables`."""
        yield from vars(self).get("_registered_mutables", ())

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield the mutables that this module holds; see `hwnas.space.Mutable`."""
        yield from module_mutables(self)

    def freeze(self, sample: Sample) -> Any:
        """Return the plain PyTorch module that `sample` describes.

        Parameters
        ----------
        sample : dict
            A value for every active label.

        Returns
        -------
        torch.nn.Module
            It holds no type of hwnas and shares no tensor with this module.

        Raises
        ------
        SampleError
            When the sample does not belong to this space.
        """
        self.validate(sample)
        return self.lower(sample, {})

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Build the frozen module; primitives override it.

        Parameters
        ----------
        sample : dict
            A sample that has been validated.
        memo : dict
            What has been frozen already, by `id`, exactly as `copy.deepcopy` keeps it; it keeps modules and
            tensors that occur twice tied.

        Returns
        -------
        torch.nn.Module
            The frozen module.
        """
        return copy_frozen(self, sample, memo)
