"""`ModelSpace`: the root of a model with choices."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any, ClassVar

from hwnas.nn.mutable_module import MutableModule
from hwnas.space.labels import root_scope


class _ScopedConstruction(ABCMeta):
    """Construct a space inside a label scope, so that the same code always gives the same labels."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        with root_scope(getattr(cls, "_label_prefix", None)):
            return super().__call__(*args, **kwargs)


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

    def __init_subclass__(cls, *, label_prefix: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._search_machinery = False
        if label_prefix is not None:
            cls._label_prefix = label_prefix
