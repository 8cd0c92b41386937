"""`Relaxation`: how the decisions of a super-net are relaxed, one class for each family of strategies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from hwnas.space import Categorical, CategoricalMultiple, LabeledMutable, MutableExpression, Sample
from hwnas.supernet.mixture import Mixture


class Relaxation(nn.Module, ABC):
    """Turns decisions into mixtures.

    The modules of a super-net ask it for every decision and never look at its class, so that each new
    relaxation works with all of them.

    Parameters
    ----------
    mutables : iterable of LabeledMutable
        The dimensions of the space, one for each label.

    Attributes
    ----------
    differentiable : bool
        Whether several values of a decision are active at once, so that modules have to mix.
    """

    differentiable: bool = False

    def __init__(self, mutables: Iterable[LabeledMutable]) -> None:
        super().__init__()
        self.dimensions: dict[str, LabeledMutable] = {mutable.label: mutable for mutable in mutables}

    @abstractmethod
    def mixture(self, decision: MutableExpression) -> Mixture:
        """Relax a decision about structure: which candidate, how many blocks.

        Parameters
        ----------
        decision : MutableExpression
            A choice, or an expression over choices.

        Returns
        -------
        Mixture
            The active values of the expression.
        """

    @abstractmethod
    def subset(self, decision: CategoricalMultiple) -> Mixture:
        """Relax a choice of several items.

        Returns
        -------
        Mixture
            Its values are the active items and its weights how far each is included; weights of None stand
            for one value, the list of the items that are chosen.
        """

    def value(self, expression: MutableExpression) -> Any:
        """Relax a decision about a value, such as a number of channels.

        Returns
        -------
        Any
            The value where there is exactly one, a `Mixture` otherwise.
        """
        mixture = self.mixture(expression)
        return mixture.values[0] if mixture.weights is None else mixture

    def side_by_side(self, tensors: Sequence[Tensor], number: Any, dim: int) -> Tensor:
        """Concatenate some of several tensors of one shape, where their number is a symbol for that of every sample.

        Asked for only where `value` gives symbols for numbers.

        Parameters
        ----------
        tensors : sequence of Tensor
            All that may be among them.
        number : Any
            How many are.
        dim : int
            Where they are concatenated.
        """
        raise NotImplementedError(f"{type(self).__name__} has no symbols (side_by_side)")

    @abstractmethod
    def resample(self, memo: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Decide anew, honouring what `memo` has decided already.

        Parameters
        ----------
        memo : dict
            Labels and their values; labels that are missing are drawn.
        rng : numpy.random.Generator, optional
            Where draws come from.

        Returns
        -------
        dict
            What was decided. Empty when the relaxation does not sample.
        """

    @abstractmethod
    def export(self, label: str) -> Any:
        """Return the value of a label that the relaxation prefers, the same at every call."""

    def probabilities(self, label: str) -> Tensor | None:
        """Return the distribution over the values of a label, or None where there is none.

        Returns
        -------
        Tensor, shape (number of values,)
            Differentiable with respect to the architecture parameters.
        """
        return None

    def dimension(self, label: str) -> LabeledMutable:
        """Return the mutable of a label.

        Raises
        ------
        KeyError
            When the label is not one of the space.
        """
        if label not in self.dimensions:
            raise KeyError(f"the relaxation has no label {label!r}; it has {sorted(self.dimensions)}")
        return self.dimensions[label]


def number_of_values(mutable: LabeledMutable) -> int:
    """Return how many values a categorical dimension has."""
    if isinstance(mutable, Categorical | CategoricalMultiple):
        return len(mutable.values)
    raise TypeError(
        f"{mutable.label!r} is a {type(mutable).__name__}; strategies with shared weights need a choice among "
        "listed values. Quantise it, or use a multi-trial strategy"
    )
