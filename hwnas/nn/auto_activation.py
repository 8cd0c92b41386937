"""`AutoActivation`: an activation function that is put together by the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from hwnas.nn.activation_units import BINARY, UNARY, ActivationUnit, Formula
from hwnas.nn.layer_choice import LayerChoice
from hwnas.nn.mutable_module import MutableModule
from hwnas.space.labels import Label, resolve_label


class AutoActivation(MutableModule):
    """An activation function composed of unary and binary functions.

    A core unit computes ``binary(unary(a), unary(x))``. In the first unit `a` is the input `x` itself, in every later
    one it is what the unit before has computed. Labels are ``{label}/unary_{i}`` and ``{label}/binary_{i}``; unit i
    has the unary functions 2 i, for `a`, and 2 i + 1, for `x`. Activations of one label choose alike, but each learns
    its own beta.

    =================== ================================ =================== =====================================
    unary               formula                          unary               formula
    =================== ================================ =================== =====================================
    identity, negative  x, -x                            sinh, cosh, tanh    as named
    abs, square, cube   abs(x), x^2, x^3                 asinh, atan         as named
    sqrt                sqrt(max(x, epsilon))            sinc                sin(x) / x
    scale, shift        beta x, x + beta                 relu, negative_part max(x, 0), min(x, 0)
    log_abs             log(abs(x) + epsilon)            sigmoid, softplus   1 / (1 + exp(-x)), log(1 + exp(x))
    exp, sin, cos       as named                         gaussian, erf       exp(-x^2), as named
    ..                                                   constant            beta
    =================== ================================ =================== =====================================

    =================== ================================ =================== =====================================
    binary              formula                          binary              formula
    =================== ================================ =================== =====================================
    gate                sigmoid(x) y                     maximum, minimum    as named
    add, subtract       x + y, x - y                     gaussian_distance   exp(-beta (x - y)^2)
    multiply            x y                              laplace_distance    exp(-beta abs(x - y))
    divide              x / (y + epsilon)                blend               beta x + (1 - beta) y
    =================== ================================ =================== =====================================

    The default takes the first of each, ``sigmoid(x) * x``. Beta is one learned number for each function, not one for
    each channel; it starts at 1, in `shift` at 0 and in `blend` at 0.5. Epsilon is 0.001. The paper takes the square
    root of x itself; here it is constant below epsilon, since negative numbers have none. Gradients at zero are finite:
    those of abs, log_abs and laplace_distance are 0 where the paper's formulas have a kink, that of sqrt is 0 below
    epsilon. Far from zero nothing is bounded: exp, sinh, cosh and powers overflow like their formulas, and divide has
    its pole at y = -epsilon.

    Parameters
    ----------
    unit_num : int, default 1
        Number of core units.
    label : str, optional
        Prefix of the labels.
    unary_candidates, binary_candidates : sequence of str, optional
        Names of the functions to choose from; all unless given.

    Raises
    ------
    ValueError
        When there is no unit, or a name is not in the table.

    Examples
    --------
    >>> import torch
    >>> import hwnas.nn as nn
    >>> act = nn.AutoActivation(label="act")
    >>> relu = act.freeze({"act/unary_0": "relu", "act/unary_1": "negative_part", "act/binary_0": "maximum"})
    >>> relu(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])

    References
    ----------
    Ramachandran, Zoph, Le: Searching for Activation Functions, 2017.
    """

    def __init__(
        self,
        unit_num: int = 1,
        label: str | None = None,
        *,
        unary_candidates: Sequence[str] | None = None,
        binary_candidates: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        prefix = resolve_label(label, "activation")
        if unit_num < 1:
            raise ValueError(f"AutoActivation {prefix!r}: unit_num is {unit_num}; expected at least 1")
        unaries = _named(UNARY, unary_candidates, f"AutoActivation {prefix!r}: unary_candidates")
        binaries = _named(BINARY, binary_candidates, f"AutoActivation {prefix!r}: binary_candidates")

        def choice(functions: Sequence[str], name: str) -> LayerChoice:
            units = {function: ActivationUnit(function) for function in functions}
            return LayerChoice(units, label=Label(f"{prefix}/{name}"))

        self.unaries = nn.ModuleList(choice(unaries, f"unary_{i}") for i in range(2 * unit_num))
        self.binaries = nn.ModuleList(choice(binaries, f"binary_{i}") for i in range(unit_num))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function elementwise.

        Parameters
        ----------
        x : Tensor, shape (*)
            Input.

        Returns
        -------
        Tensor, shape (*)
            Output.
        """
        y = x
        for i, binary in enumerate(self.binaries):
            y = binary(self.unaries[2 * i](y), self.unaries[2 * i + 1](x))
        return y


def _named(known: Mapping[str, Formula], names: Sequence[str] | None, where: str) -> list[str]:
    chosen = list(known) if names is None else list(names)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(f"{where} has {unknown or 'no names'}; expected some of {', '.join(known)}")
    return chosen
