"""The functions of which `AutoActivation` composes an activation, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-3
"""Added where a formula has a pole at zero, so that no gradient exceeds its inverse there."""


@dataclass(frozen=True)
class Formula:
    """A function of one or two tensors, and possibly of a number that is learned.

    Parameters
    ----------
    function : callable
        Takes the tensors, and then beta if there is one.
    beta : float, optional
        Where the learned number starts; None if the function has none.
    """

    function: Callable[..., Tensor]
    beta: float | None = None


UNARY: dict[str, Formula] = {
    "identity": Formula(lambda x: x),
    "negative": Formula(torch.neg),
    "abs": Formula(torch.abs),
    "square": Formula(torch.square),
    "cube": Formula(lambda x: x * x * x),
    "sqrt": Formula(lambda x: x.clamp(min=EPSILON).sqrt()),
    "scale": Formula(lambda x, beta: beta * x, 1.0),
    "shift": Formula(lambda x, beta: x + beta, 0.0),
    "log_abs": Formula(lambda x: torch.log(x.abs() + EPSILON)),
    "exp": Formula(torch.exp),
    "sin": Formula(torch.sin),
    "cos": Formula(torch.cos),
    "sinh": Formula(torch.sinh),
    "cosh": Formula(torch.cosh),
    "tanh": Formula(torch.tanh),
    "asinh": Formula(torch.asinh),
    "atan": Formula(torch.atan),
    "sinc": Formula(lambda x: torch.sinc(x / math.pi)),
    "relu": Formula(torch.relu),
    "negative_part": Formula(lambda x: x.clamp(max=0)),
    "sigmoid": Formula(torch.sigmoid),
    "softplus": Formula(F.softplus),
    "gaussian": Formula(lambda x: torch.exp(-x * x)),
    "erf": Formula(torch.erf),
    "constant": Formula(lambda x, beta: beta.to(x.dtype).expand_as(x), 1.0),
}
"""Functions of one tensor, in the order in which Ramachandran et al. list them; see `AutoActivation`."""

BINARY: dict[str, Formula] = {
    "gate": Formula(lambda x, y: torch.sigmoid(x) * y),
    "add": Formula(torch.add),
    "multiply": Formula(torch.mul),
    "subtract": Formula(torch.sub),
    "divide": Formula(lambda x, y: x / (y + EPSILON)),
    "maximum": Formula(torch.maximum),
    "minimum": Formula(torch.minimum),
    "gaussian_distance": Formula(lambda x, y, beta: torch.exp(-beta * (x - y) ** 2), 1.0),
    "laplace_distance": Formula(lambda x, y, beta: torch.exp(-beta * (x - y).abs()), 1.0),
    "blend": Formula(lambda x, y, beta: beta * x + (1 - beta) * y, 0.5),
}
"""Functions of two tensors. The first one makes the default activation, ``sigmoid(x) * x``; see `AutoActivation`."""


class ActivationUnit(nn.Module):
    """A function as a module.

    Parameters
    ----------
    name : str
        One of the names in `UNARY` and `BINARY`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        formula = {**UNARY, **BINARY}[name]
        self.name = name
        self.function = formula.function
        self.beta = None if formula.beta is None else nn.Parameter(torch.tensor(formula.beta))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Apply the function elementwise.

        Parameters
        ----------
        *inputs : Tensor, shape (*)
            One or two tensors of the same shape.

        Returns
        -------
        Tensor, shape (*)
            The values.
        """
        return self.function(*inputs) if self.beta is None else self.function(*inputs, self.beta)

    def extra_repr(self) -> str:
        """Show the name."""
        return self.name
