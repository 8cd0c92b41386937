"""A softmax over architecture parameters: the relaxation of DARTS."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.space import Categorical, CategoricalMultiple, LabeledMutable, MutableExpression, Sample
from hwnas.space.sampling import fresh
from hwnas.supernet.mixture import Mixture
from hwnas.supernet.relaxation import Relaxation, number_of_values


class Softmax(Relaxation):
    """All values of a decision are active, weighted by the softmax of architecture parameters.

    One parameter vector belongs to each label, however many modules share it. Decisions that are expressions
    over several labels follow the product of their distributions.

    In evaluation mode (`eval()`) the preferred value of each label is the only active one: see `preferred`.

    Parameters
    ----------
    mutables : iterable of LabeledMutable
        The dimensions of the space, all of them choices among listed values.
    seed : int, default 0
        Of the small normal noise from which the parameters start, around the logarithm of the priors.

    References
    ----------
    Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019.
    """

    differentiable = True

    def __init__(self, mutables: Iterable[LabeledMutable], *, seed: int = 0) -> None:
        super().__init__(mutables)
        generator = torch.Generator().manual_seed(seed)
        self.alphas = nn.ParameterList()
        self._position = {label: i for i, label in enumerate(self.dimensions)}
        for mutable in self.dimensions.values():
            alpha = 1e-3 * torch.randn(number_of_values(mutable), generator=generator)
            self.alphas.append(nn.Parameter(alpha + _prior_logits(mutable)))
        self._members: dict[str, Tensor] = {}
        self._outcomes: dict[MutableExpression, tuple[list[Any], Tensor]] = {}
        self._settled: Sample = {}

    def alpha(self, label: str) -> nn.Parameter:
        """Return the architecture parameters of a label.

        Returns
        -------
        Parameter, shape (number of values,)
            Logits.
        """
        found: nn.Parameter = self.alphas[self._position[self.dimension(label).label]]
        return found

    def logits(self, label: str) -> Tensor:
        """Return the logit of each value; that of a choice of several items is the sum of their logits.

        Returns
        -------
        Tensor, shape (number of values,)
            In the order of `grid_values`.
        """
        alpha: Tensor = self.alpha(label)
        mutable = self.dimension(label)
        if isinstance(mutable, CategoricalMultiple) and mutable.n_chosen != 1:
            return self.members(mutable).to(alpha) @ alpha
        return alpha

    def members(self, mutable: CategoricalMultiple) -> Tensor:
        """Return which items are in which value of a choice of several.

        Returns
        -------
        Tensor, shape (number of values, number of items)
            True where the item is in the value.
        """
        if mutable.label not in self._members:
            values = mutable.grid_values()
            self._members[mutable.label] = torch.tensor([[item in v for item in mutable.values] for v in values])
        return self._members[mutable.label]

    def probabilities(self, label: str) -> Tensor:
        """Return the probability of each value, the softmax of `logits`.

        Returns
        -------
        Tensor, shape (number of values,)
            In the order of `grid_values`.
        """
        return torch.softmax(self.logits(label), 0)

    def inclusion(self, decision: CategoricalMultiple) -> Tensor:
        """Return how often each item of a choice of several is expected to be chosen.

        Returns
        -------
        Tensor, shape (number of items,)
            For n chosen items n times the softmax of their logits, so that a sum keeps the size that it has after the
            search; for a free subset independent probabilities.
        """
        alpha = self.alpha(decision.label)
        if decision.n_chosen is None:
            return torch.sigmoid(alpha)
        return torch.softmax(alpha, 0) * decision.n_chosen

    def mixture(self, decision: MutableExpression) -> Mixture:
        """Return all values of `decision` with their probabilities; in evaluation mode the preferred one alone."""
        if not self.training:
            return Mixture((decision.evaluate({leaf.label: self.preferred(leaf.label) for leaf in decision.leaves()}),))
        values, outcome_of = self._outcomes_of(decision)
        if len(values) == 1:
            return Mixture(values)
        leaves = decision.leaves()
        joint = self.probabilities(leaves[0].label)
        for leaf in leaves[1:]:
            joint = (joint[:, None] * self.probabilities(leaf.label)[None, :]).flatten()
        if len(leaves) == 1 and len(values) == len(joint):
            return Mixture(values, joint)
        weights = torch.zeros(len(values), dtype=joint.dtype, device=joint.device)
        return Mixture(values, weights.index_add(0, outcome_of.to(joint.device), joint))

    def _outcomes_of(self, decision: MutableExpression) -> tuple[list[Any], Tensor]:
        """Tabulate an expression once: its distinct values, and which of them each combination gives."""
        if decision not in self._outcomes:
            leaves = decision.leaves()
            results = [
                decision.evaluate(dict(zip((leaf.label for leaf in leaves), combination, strict=True)))
                for combination in itertools.product(*(_listed_values(leaf, lists=True) for leaf in leaves))
            ]
            values = list(dict.fromkeys(results))
            self._outcomes[decision] = values, torch.tensor([values.index(result) for result in results])
        return self._outcomes[decision]

    def subset(self, decision: CategoricalMultiple) -> Mixture:
        """Return all items, weighted by how often each is expected to be chosen; else the preferred ones."""
        if not self.training:
            return Mixture((self.preferred(decision.label),))
        return Mixture(decision.values, self.inclusion(decision))

    def resample(self, memo: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Do nothing: all values are always active."""
        return {}

    def export(self, label: str) -> Any:
        """Return the most probable value; of a subset, the sorted most probable items."""
        mutable = self.dimension(label)
        alpha = self.alpha(label).detach()
        if isinstance(mutable, CategoricalMultiple):
            if mutable.n_chosen is None:
                chosen = [i for i, logit in enumerate(alpha.tolist()) if logit > 0] or [int(alpha.argmax())]
            else:
                chosen = sorted(alpha.topk(mutable.n_chosen).indices.tolist())
            return [mutable.values[i] for i in chosen]
        return _listed_values(mutable)[int(alpha.argmax())]

    def settle(self, sample: Sample) -> None:
        """Choose the architecture that evaluation mode runs.

        Constraints join labels, so the best architecture need not have the most probable value of each.

        Parameters
        ----------
        sample : dict
            A value for each label; labels that are missing have the value of `export`. It is no part of the state.

        Raises
        ------
        ValueError
            When a value is not one of its label.
        """
        for label, value in sample.items():
            if reason := self.dimension(label).check_value(value):
                raise ValueError(f"label {label!r}: {reason}")
        self._settled = fresh(sample)

    def preferred(self, label: str) -> Any:
        """Return the value that runs in evaluation mode: that of `settle`, else that of `export`."""
        if label in self._settled:
            return self._settled[label]
        return self.export(label)

    def entropy(self) -> Tensor:
        """Return the mean entropy of the decisions, in nats: how undecided the search is."""
        entropies = []
        for label in self.dimensions:
            probability = self.probabilities(label)
            entropies.append(torch.special.entr(probability).sum())
        return torch.stack(entropies).mean()


def _listed_values(mutable: LabeledMutable, *, lists: bool = False) -> list[Any]:
    """Return the values of a dimension; of a choice of several the items, or the lists that stand in samples."""
    number_of_values(mutable)  # raises for dimensions that are no list
    assert isinstance(mutable, Categorical | CategoricalMultiple)
    return list(mutable.grid_values()) if lists else list(mutable.values)


def _prior_logits(mutable: LabeledMutable) -> Tensor:
    weights = getattr(mutable, "weights", None)
    if weights is None:
        return torch.zeros(number_of_values(mutable))
    if isinstance(mutable, CategoricalMultiple) and mutable.n_chosen is None:
        return torch.tensor([math.log(max(w, 1e-6)) - math.log(max(1 - w, 1e-6)) for w in weights])
    return torch.tensor([math.log(max(weight, 1e-6)) for weight in weights])
