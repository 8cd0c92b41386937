"""`ModelSpace`: the root of a model with choices."""

from __future__ import annotations

import functools
from abc import ABCMeta
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import nn

from hwnas.errors import SampleError
from hwnas.nn.freezing import copy_frozen
from hwnas.nn.holding import module_mutables
from hwnas.nn.known_structure import KnownStructure
from hwnas.nn.model_parameter_choice import Variants, construction, under_construction
from hwnas.nn.mutable_module import MutableModule
from hwnas.space import Mutable, Sample
from hwnas.space.labels import root_scope
from hwnas.space.walk import Structure


class _ScopedConstruction(ABCMeta):
    """Construct a space inside a label scope, so that the same code always gives the same labels."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        construct = functools.partial(_construct, cls, args, kwargs)
        if under_construction():  # a part of another space, which is constructed again as a whole
            return construct()
        with construction() as parameters:
            space = construct()
        if parameters:
            vars(space)["_variants"] = Variants(construct, space, parameters)
        return space


def _construct(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with root_scope(getattr(cls, "_label_prefix", None)):
        return ABCMeta.__call__(cls, *args, **kwargs)


class ModelSpace(MutableModule, metaclass=_ScopedConstruction):
    """A model with choices in it.

    Write it like any PyTorch model; put choices where the architecture is open. Samples are plain
    dictionaries from labels to values.

    Parameters
    ----------
    label_prefix : str, optional
        A class argument, ``class Backbone(ModelSpace, label_prefix="backbone")``: every label made during the
        construction then starts with ``backbone/``.

    Examples
    --------
    >>> import torch
    >>> import hwnas.nn as nn
    >>> class Net(nn.ModelSpace):
    ...     def __init__(self):
    ...         super().__init__()
    ...         width = nn.ValueChoice([8, 16], label="width")
    ...         self.stem = nn.Conv2d(3, width, 3, padding=1)
    ...         self.act = nn.LayerChoice([nn.ReLU(), nn.SiLU()], label="act")
    ...         self.head = nn.Linear(width, 10)
    ...     def forward(self, x):
    ...         return self.head(self.act(self.stem(x)).mean((2, 3)))
    >>> space = Net()
    >>> space.random(random_state=0).keys()
    dict_keys(['width', 'act'])
    >>> model = space.freeze({"width": 16, "act": 1})
    >>> model(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 10])
    """

    _search_machinery = True
    _label_prefix: ClassVar[str | None] = None
    _variants: Variants

    def __init_subclass__(cls, *, label_prefix: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._search_machinery = False
        if label_prefix is not None:
            cls._label_prefix = label_prefix

    @property
    def has_model_parameters(self) -> bool:
        """Whether a `ModelParameterChoice` decides how the space is constructed."""
        return "_variants" in vars(self)

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield the model parameters, then what the model constructed with them holds."""
        if not self.has_model_parameters:
            yield from super().sub_mutables(sample)
            return
        for found in self._variants.walk(sample):
            if isinstance(found, nn.Module):
                yield from module_mutables(found)
            else:
                yield found

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze the model that is constructed with the model parameters of the sample."""
        if not self.has_model_parameters:
            return super().lower(sample, memo)
        return copy_frozen(self._variants.model_of(sample), sample, memo)

    def structure(self) -> Structure:
        """Return the structure of the space, looked up again only after modules or choices were exchanged."""
        known: KnownStructure | None = vars(self).get("_known_structure")
        if known is None or not known.holds():
            known = KnownStructure()
            vars(self)["_known_structure"] = known
            known.look_up(self)
        return known.structure

    def check_contains(self, sample: Sample) -> SampleError | None:
        """Look for what is wrong with a sample; see `hwnas.space.Mutable`."""
        return None if self.structure().admits(sample) else super().check_contains(sample)
