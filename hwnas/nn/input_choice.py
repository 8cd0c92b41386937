"""`InputChoice`: some of several tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hwnas.nn.freezing import freeze_module
from hwnas.nn.mutable_module import MutableModule
from hwnas.nn.value_choice import given_weights
from hwnas.space import CategoricalMultiple, Mutable, Sample
from hwnas.space.labels import resolve_label

Reduction = Literal["sum", "mean", "concat", "none"]
REDUCTIONS: tuple[Reduction, ...] = ("sum", "mean", "concat", "none")


def reduce_tensors(tensors: Sequence[Tensor], reduction: Reduction) -> Any:
    """Reduce chosen tensors to one.

    Parameters
    ----------
    tensors : sequence of Tensor
        At least one.
    reduction : {"sum", "mean", "concat", "none"}
        `concat` joins along dimension 1, `none` returns the list.

    Returns
    -------
    Tensor or list of Tensor
        The reduced tensor.
    """
    if reduction == "none":
        return list(tensors)
    if reduction == "concat":
        return torch.cat(list(tensors), 1)
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total / len(tensors) if reduction == "mean" else total


class ChosenInputs(nn.Module):
    """What an `InputChoice` becomes when it is frozen.

    Parameters
    ----------
    chosen : sequence of int
        Positions of the tensors that are used.
    reduction : {"sum", "mean", "concat", "none"}
        See `reduce_tensors`.
    """

    def __init__(self, chosen: Sequence[int], reduction: Reduction) -> None:
        super().__init__()
        self.chosen = list(chosen)
        self.reduction: Reduction = reduction

    def forward(self, candidate_inputs: Sequence[Tensor]) -> Any:
        """Select and reduce.

        Parameters
        ----------
        candidate_inputs : sequence of Tensor
            All tensors that could have been chosen.

        Returns
        -------
        Tensor or list of Tensor
            The reduction of the chosen ones.
        """
        return reduce_tensors([candidate_inputs[i] for i in self.chosen], self.reduction)

    def extra_repr(self) -> str:
        """Show what was chosen."""
        return f"chosen={self.chosen}, reduction={self.reduction!r}"


class InputChoice(MutableModule):
    """Choose some of several tensors and reduce them to one.

    Parameters
    ----------
    n_candidates : int, optional
        How many tensors there are to choose from. Unless it is given, or the weights tell it, it becomes known when
        the space runs once.
    n_chosen : int or None, default 1
        How many are chosen; None stands for any non-empty subset.
    reduction : {"sum", "mean", "concat", "none"}
        How the chosen tensors become one; `concat` joins along dimension 1.
    weights, prior : sequence of float, optional
        Probabilities in random sampling. `prior` is the older spelling.
    label : str, optional
        Choices of one label are one dimension of the space.

    Examples
    --------
    >>> import torch
    >>> import hwnas.nn as nn
    >>> choice = nn.InputChoice(3, n_chosen=2, label="inputs")
    >>> chosen = choice.freeze({"inputs": [0, 2]})
    >>> chosen([torch.ones(1), 10 * torch.ones(1), 100 * torch.ones(1)])
    tensor([101.])
    """

    def __init__(
        self,
        n_candidates: int | None = None,
        n_chosen: int | None = 1,
        reduction: Reduction = "sum",
        *,
        weights: Sequence[float] | None = None,
        prior: Sequence[float] | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"InputChoice: reduction is {reduction!r}; expected one of {', '.join(REDUCTIONS)}")
        self.label = resolve_label(label, "input")
        self.n_chosen = n_chosen
        self.reduction: Reduction = reduction
        self._weights = given_weights(weights, prior)
        self._choice: CategoricalMultiple | None = None
        if n_candidates is None and self._weights is not None:
            n_candidates = len(self._weights)
        if n_candidates is not None:
            self._settle(n_candidates)

    def _settle(self, n_candidates: int) -> None:
        self._choice = CategoricalMultiple(
            list(range(n_candidates)), self.n_chosen, weights=self._weights, label=self.label
        )

    @property
    def choice(self) -> CategoricalMultiple:
        """The dimension of the space.

        Raises
        ------
        ValueError
            When it is not known yet how many tensors there are.
        """
        if self._choice is None:
            raise ValueError(
                f"InputChoice {self.label!r}: it is not known from how many tensors it chooses. Pass n_candidates, or "
                "run the space once on an example"
            )
        return self._choice

    @property
    def n_candidates(self) -> int:
        """How many tensors there are to choose from."""
        return len(self.choice.values)

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield the choice."""
        yield self.choice
        yield from self.registered_mutables()

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to `ChosenInputs`."""
        return freeze_module(ChosenInputs(sample[self.label], self.reduction).train(self.training), sample, {})

    def forward(self, candidate_inputs: Sequence[Tensor]) -> Any:
        """Reduce the default choice of `candidate_inputs`."""
        if self._choice is None:
            self._settle(len(candidate_inputs))
        check_candidate_inputs(self.label, self.n_candidates, candidate_inputs)
        return reduce_tensors([candidate_inputs[i] for i in self.choice.default_value()], self.reduction)

    def extra_repr(self) -> str:
        """Show the label and what is chosen."""
        return (
            f"label={self.label!r}, n_candidates={None if self._choice is None else self.n_candidates}, "
            f"n_chosen={self.n_chosen}, "
            f"reduction={self.reduction!r}"
        )


def check_candidate_inputs(label: str, n_candidates: int, candidate_inputs: Sequence[Tensor]) -> None:
    """Raise ValueError when the number of tensors is not the one that was declared."""
    if len(candidate_inputs) != n_candidates:
        raise ValueError(f"InputChoice {label!r}: got {len(candidate_inputs)} tensors, expected {n_candidates}")
