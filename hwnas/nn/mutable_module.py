"""Modules that hold choices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from hwnas.nn.freezing import copy_frozen
from hwnas.nn.holding import module_mutables
from hwnas.space import Mutable, Sample


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
        vars(self)["_registered_mutables"] = [*self.registered_mutables(), mutable]

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
