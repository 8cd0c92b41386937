"""What relaxations have in common that draw from the softmax of architecture parameters."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwnas.errors import UnsupportedError
from hwnas.space import CategoricalMultiple, LabeledMutable, MutableExpression, Sample
from hwnas.space.sampling import fresh
from hwnas.supernet.mixture import Mixture
from hwnas.supernet.softmax import Softmax

MAX_LISTED = 4096
"""Choices of several items with more values than that are refused: their values are listed."""


class Active(NamedTuple):
    """The active values of one label.

    Parameters
    ----------
    positions : tuple of int
        Which of the listed values are active.
    weights : Tensor, shape (len(positions),), or None
        Their weights. None when there is exactly one, with weight one.
    """

    positions: tuple[int, ...]
    weights: Tensor | None


class SampledSoftmax(Softmax):
    """A categorical distribution for each label from which values are drawn.

    The distribution of a label is the softmax of its logits, and its values are those of `grid_values`. A choice of
    several items is a choice among the listed subsets, the logit of which is the sum of those of its items: the
    number of chosen items is always right, a subset is never empty, and what is drawn follows `probabilities`.

    `resample` draws once for all labels, so that modules with one label agree. Until the next call nothing is drawn,
    however often the super-net runs. In evaluation mode (`eval()`) nothing is random: the preferred value is the only
    active one. Whoever trains has to call `resample` before each forward pass that is to be a new draw, and `eval()`
    and `train()` around a validation.

    `probabilities`, and with it the penalty on the expected cost and the export, is free of noise. A cost is a table
    over values, so its expectation under the distribution is exact and has no variance to add to that of the loss.

    Subclasses say what is drawn (`draw`) and what is active (`active`).

    Parameters
    ----------
    mutables : iterable of LabeledMutable
        The dimensions of the space, all of them choices among listed values.
    seed : int, default 0
        Of the initial parameters and of all draws. How far the draws have come is part of `state_dict`.

    Raises
    ------
    UnsupportedError
        When a choice of several items has more than `MAX_LISTED` values.
    """

    def __init__(self, mutables: Iterable[LabeledMutable], *, seed: int = 0) -> None:
        super().__init__(mutables, seed=seed)
        for label, mutable in self.dimensions.items():
            if mutable.count_values() > MAX_LISTED:
                raise UnsupportedError(
                    f"label {label!r}: {type(self).__name__} lists the values of a choice, and this one has "
                    f"{mutable.count_values()}, more than {MAX_LISTED}. Choose among fewer items, or use DARTS or "
                    "RandomOneShot"
                )
        # Not the stream from which the parameters came.
        stream = np.random.SeedSequence((seed, 1)).generate_state(1)[0]
        self._generator = torch.Generator().manual_seed(int(stream))
        self._values = {label: list(mutable.grid_values()) for label, mutable in self.dimensions.items()}
        self._results: dict[MutableExpression, tuple[list[str], dict[tuple[int, ...], Any]]] = {}
        self.resample({})

    # -- what subclasses say ---------------------------------------------------------------------------------

    @abstractmethod
    def draw(self, label: str, given: int | None, generator: torch.Generator) -> int:
        """Draw for a label and remember what `active` needs.

        Parameters
        ----------
        label : str
            The label.
        given : int, optional
            Position of the value that has to come out.
        generator : torch.Generator
            On the CPU.

        Returns
        -------
        int
            Position of the value that was drawn.
        """

    @abstractmethod
    def active(self, label: str) -> Active:
        """Return the active values of a label by the last draw, in training mode."""

    # -- draws -----------------------------------------------------------------------------------------------

    def resample(self, memo: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Draw anew for all labels.

        Parameters
        ----------
        memo : dict
            Labels and the values that they have to take.
        rng : numpy.random.Generator, optional
            Where draws come from; the generator of the relaxation, which is part of its state, if not given.

        Returns
        -------
        dict
            The values of the other labels: of each the one that outweighs the rest.

        Raises
        ------
        ValueError
            When a value in `memo` is not one of its label.
        """
        generator = self._generator if rng is None else torch.Generator().manual_seed(int(rng.integers(2**62)))
        decided: Sample = {}
        for label, mutable in self.dimensions.items():
            given = None
            if label in memo:
                if reason := mutable.check_value(memo[label]):
                    raise ValueError(f"label {label!r}: {reason}")
                given = self._values[label].index(memo[label])
            position = self.draw(label, given, generator)
            if given is None:
                decided[label] = self._values[label][position]
        return fresh(decided)

    def trains_architecture(self) -> bool:
        """Tell whether gradients of architecture parameters are wanted, and therefore weights for all that compete."""
        # All labels alike: in an operation some of whose sizes are mixtures the other sizes have to be mixtures too.
        return torch.is_grad_enabled() and any(
            alpha.requires_grad for alpha in self.alphas._parameters.values() if alpha is not None
        )

    def get_extra_state(self) -> Any:
        """Return how far the draws have come."""
        return {"generator": self._generator.get_state()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Go on with the draws from a state."""
        self._generator.set_state(state["generator"].cpu())

    # -- mixtures --------------------------------------------------------------------------------------------

    def mixture(self, decision: MutableExpression) -> Mixture:
        """Return the active values of `decision`; weights of labels multiply."""
        return self._joint(decision, {label: self._active(label) for label in self._leaves(decision)})

    def value(self, expression: MutableExpression) -> Any:
        """Return the active value, or the mixture of all values: an operation runs once, at its largest size."""
        parts = {label: self._active(label) for label in self._leaves(expression)}
        if any(part.weights is not None for part in parts.values()):
            parts = {label: self._among_all(label, part) for label, part in parts.items()}
        mixture = self._joint(expression, parts)
        return mixture.values[0] if mixture.weights is None else mixture

    def subset(self, decision: CategoricalMultiple) -> Mixture:
        """Return the drawn items, or all items with the weight of the subsets that they are in."""
        positions, weights = self._active(decision.label)
        if weights is None:
            return Mixture((list(self._values[decision.label][positions[0]]),))
        return Mixture(decision.values, weights @ self.members(decision).to(weights)[list(positions)])

    def _active(self, label: str) -> Active:
        """Return the active values of a label, in evaluation mode the preferred one."""
        if self.training:
            return self.active(label)
        return Active((self._values[label].index(self.preferred(label)),), None)

    def _leaves(self, decision: MutableExpression) -> list[str]:
        if decision not in self._results:
            self._results[decision] = [self.dimension(leaf.label).label for leaf in decision.leaves()], {}
        return self._results[decision][0]

    def _result(self, decision: MutableExpression, positions: tuple[int, ...]) -> Any:
        """Evaluate a decision at a combination of values, once."""
        labels, results = self._results[decision]
        if positions not in results:
            values = {label: self._values[label][i] for label, i in zip(labels, positions, strict=True)}
            results[positions] = decision.evaluate(values)
        return results[positions]

    def _joint(self, decision: MutableExpression, parts: Mapping[str, Active]) -> Mixture:
        """Join independent labels; combinations with equal results are one value."""
        combinations = itertools.product(*(part.positions for part in parts.values()))
        results = [self._result(decision, combination) for combination in combinations]
        place = {result: i for i, result in enumerate(dict.fromkeys(results))}
        weights = [part.weights for part in parts.values() if part.weights is not None]
        if len(place) == 1:
            return Mixture(tuple(place))
        joint = weights[0]
        for weight in weights[1:]:
            joint = (joint[:, None] * weight[None, :]).flatten()
        if len(place) < len(results):
            places = torch.tensor([place[result] for result in results], device=joint.device)
            joint = joint.new_zeros(len(place)).index_add(0, places, joint)
        return Mixture(tuple(place), joint)

    def _among_all(self, label: str, part: Active) -> Active:
        """Give the values that are not active a weight of zero."""
        alpha = self.alpha(label)
        count = len(self._values[label])
        positions = torch.tensor(part.positions, device=alpha.device)
        weights = torch.ones(1, dtype=alpha.dtype, device=alpha.device) if part.weights is None else part.weights
        return Active(tuple(range(count)), weights.new_zeros(count).index_add(0, positions, weights))


def gumbel_noise(count: int, generator: torch.Generator) -> Tensor:
    """Return independent standard Gumbel noise: added to logits, their argmax is distributed as their softmax.

    Parameters
    ----------
    count : int
        How many numbers.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    Tensor, shape (count,)
        On the CPU, in double precision.
    """
    return -torch.empty(count, dtype=torch.float64).exponential_(generator=generator).log()


def straight_through(weights: Tensor, position: int) -> Tensor:
    """Return a one-hot vector with the gradient of `weights`.

    Parameters
    ----------
    weights : Tensor, shape (K,)
        Differentiable.
    position : int
        Where the one is.

    Returns
    -------
    Tensor, shape (K,)
        Exactly 0 and 1.
    """
    one_hot = torch.zeros_like(weights)
    one_hot[position] = 1
    return one_hot + (weights - weights.detach())
