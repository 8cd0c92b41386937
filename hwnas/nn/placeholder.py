"""`Placeholder`: a module that something else is to be put in place of."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from hwnas.nn.mutable_module import MutableModule
from hwnas.space import Sample


class Placeholder(MutableModule):
    """A gap in a model that is filled before the model runs.

    Parameters
    ----------
    *args, **kwargs
        Whatever helps to fill the gap; kept as it is.

    Attributes
    ----------
    args : tuple
        The positional arguments.
    kwargs : dict
        The keyword arguments.

    Examples
    --------
    >>> import hwnas.nn as nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Placeholder("activation"))
    >>> model[1].args
    ('activation',)
    >>> model[1] = nn.ReLU()
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.args = args
        self.kwargs = kwargs

    def forward(self, *inputs: Any, **named_inputs: Any) -> NoReturn:
        """Refuse to run.

        Raises
        ------
        RuntimeError
            Rather than passing the input through, which would be a guess.
        """
        self._refuse("run")

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Refuse to be frozen.

        Raises
        ------
        RuntimeError
            A plain model has no gaps.
        """
        self._refuse("frozen")

    def _refuse(self, what: str) -> NoReturn:
        raise RuntimeError(f"{self!r} cannot be {what}: put a module in its place first")

    def extra_repr(self) -> str:
        """Show the arguments."""
        named = (f"{name}={value!r}" for name, value in self.kwargs.items())
        return ", ".join([*map(repr, self.args), *named])
