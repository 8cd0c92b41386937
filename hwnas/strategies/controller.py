"""The controller of ENAS: a recurrent policy that decides one label after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.errors import BudgetError
from hwnas.evaluators.seeding import isolated_seed
from hwnas.profilers.filters import RangeProfilerFilter
from hwnas.profilers.profiler import MAX_SUBSETS
from hwnas.space import CategoricalMultiple, LabeledMutable, Mutable, Sample
from hwnas.space.sampling import fresh
from hwnas.space.walk import Partial, Structure
from hwnas.strategies.reachable import limits_of
from hwnas.supernet.relaxation import number_of_values

MAX_TRIES = 10_000
"""Draws in a row that may be refused."""

_LARGEST_DRAW = 512


@dataclass(frozen=True)
class Decisions:
    """Samples as the controller makes them.

    Parameters
    ----------
    choices : Tensor of int, shape (samples, labels)
        Positions in the lists of values.
    allowed : sequence of Tensor of bool, shape (samples, values), or None
        For each label what constraints and ranges leave, given the labels before it; None for everything.
    """

    choices: Tensor
    allowed: Sequence[Tensor | None]


class Controller(nn.Module):
    """A distribution over the samples of a space, one LSTM step for each label in the order of the space.

    Each label is a softmax over its values, given all labels before it. Logits belong to items: the logit of a
    choice of several is the sum of the logits of its items, so that a free subset consists of independent items,
    given that it is not empty. To them the logarithm of the prior probability is added, and the heads start at 0:
    before any update the controller draws what the weights of the labels say. Values of probability 0 are never
    drawn.

    Values that violate a constraint, or lead out of a range of costs, whatever the later labels are get probability 0.
    Where labels that have been decided leave no value to a later one, the whole sample is drawn again.

    It is small and stays on the CPU, wherever the super-net is.

    Parameters
    ----------
    space : Mutable
        All of whose dimensions are choices among listed values.
    hidden : int
        Width of the LSTM.
    ranges : sequence of RangeProfilerFilter
        Within which samples are drawn.
    seed : int
        Of the initial parameters.

    Raises
    ------
    TypeError, ValueError
        See `drawable_values`.

    Examples
    --------
    >>> from hwnas.space import Categorical
    >>> controller = Controller(Categorical(["conv", "skip"], weights=[0.8, 0.2], label="op"))
    >>> log_probabilities, entropies = controller(controller.decisions([{"op": "conv"}]))
    >>> round(log_probabilities.exp().item(), 3)
    0.8

    References
    ----------
    Pham et al.: Efficient Neural Architecture Search via Parameter Sharing, ICML 2018, section 2.2.
    """

    def __init__(
        self, space: Mutable, *, hidden: int = 64, ranges: Sequence[RangeProfilerFilter] = (), seed: int = 0
    ) -> None:
        super().__init__()
        self.structure = space.structure()
        self._constrained = _labels_of_constraints(self.structure)
        self.values: dict[str, list[Any]] = {}
        self.embeddings = nn.ParameterList()
        self.heads = nn.ModuleList()
        with isolated_seed(seed):
            self.start = nn.Parameter(0.1 * torch.randn(hidden))
            self.cell = nn.LSTMCell(hidden, hidden)
            for position, (label, mutable) in enumerate(space.simplify().items()):
                values = self.values[label] = drawable_values(mutable)
                items: list[Any] = mutable.values  # type: ignore[attr-defined]
                member = [[item in v if isinstance(v, list) else item == v for item in items] for v in values]
                prior = [math.log(mutable.probability(value)) for value in values]
                # Neither is learnt, so neither belongs to the state.
                self.register_buffer(f"members_{position}", torch.tensor(member).float(), persistent=False)
                self.register_buffer(f"prior_{position}", torch.tensor(prior), persistent=False)
                head = nn.Linear(hidden, len(items))
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)
                self.heads.append(head)
                self.embeddings.append(nn.Parameter(0.1 * torch.randn(len(items), hidden)))
        self._limits = [limit for within in ranges for limit in limits_of(within, self.values)]

    # -- probabilities ---------------------------------------------------------------------------------------

    def decisions(self, samples: Sequence[Sample]) -> Decisions:
        """Return how the controller makes valid samples; needed for their probabilities.

        Parameters
        ----------
        samples : sequence of dict
            Each has a value for every label, of positive prior probability.
        """
        rows = [[values.index(sample[label]) for label, values in self.values.items()] for sample in samples]
        choices = torch.tensor(rows).reshape(len(samples), len(self.values))
        return Decisions(choices, [self._allowed(position, choices) for position in range(len(self.values))])

    def forward(self, decisions: Decisions) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of decisions and the entropies of the distributions they come from.

        Returns
        -------
        tuple of Tensor, shape (samples, labels)
            Of each label, given those before it. Summed over labels, the first is the log-probability of a sample;
            the mean of the second over drawn samples estimates the entropy of the policy, in nats. Where constraints
            made the controller draw again, both are those of a single draw. Differentiable.
        """
        chosen, entropies = [], []
        state, inputs = self._begin(len(decisions.choices))
        for position, allowed in enumerate(decisions.allowed):
            log_p, state = self._step(position, inputs, state, allowed)
            choice = decisions.choices[:, position]
            chosen.append(log_p.gather(1, choice[:, None])[:, 0])
            # 0 * log(0) is 0 here, and has no gradient.
            entropies.append(-(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(1))
            inputs = self._embed(position, choice)
        return torch.stack(chosen, 1), torch.stack(entropies, 1)

    def log_probability(self, sample: Sample) -> float:
        """Return the logarithm of the probability of a valid sample."""
        with torch.no_grad():
            return float(self(self.decisions([sample]))[0].sum())

    # -- draws -----------------------------------------------------------------------------------------------

    def draw(self, n: int, generator: torch.Generator, accepts: Callable[[Sample], bool] | None = None) -> list[Sample]:
        """Draw samples that satisfy the constraints.

        Parameters
        ----------
        n : int
            How many.
        generator : torch.Generator
            Advanced.
        accepts : callable, optional
            Samples for which it is false are drawn again.

        Returns
        -------
        list of dict
            Independent; each a new dictionary with a value for every label.

        Raises
        ------
        BudgetError
            When `MAX_TRIES` in a row were refused.
        """
        found: list[Sample] = []
        refused = 0
        while len(found) < n:
            # The more are refused, the more are drawn at once.
            for sample in self._roll(min(max(n - len(found), refused), _LARGEST_DRAW), generator):
                if sample is not None and (accepts is None or accepts(sample)):
                    found.append(sample)
                    refused = 0
                else:
                    refused += 1
            if refused >= MAX_TRIES:
                raise BudgetError(
                    f"constraints and filter refused {refused} samples of the controller in a row. Loosen them, or use "
                    "a penalty instead of a filter: a controller learns from it"
                )
        return found[:n]

    def greedy(self) -> Sample | None:
        """Return the sample of the most probable value of each label in turn; None where constraints forbid it."""
        return self._roll(1, None)[0]

    @torch.no_grad()
    def _roll(self, n: int, generator: torch.Generator | None) -> list[Sample | None]:
        """Make `n` samples, None in place of those that came to a dead end; without a generator greedily."""
        choices = torch.zeros(n, 0, dtype=torch.long)
        alive = torch.ones(n, dtype=torch.bool)
        state, inputs = self._begin(n)
        for position in range(len(self.values)):
            allowed = self._allowed(position, choices)
            if allowed is not None:
                alive &= allowed.any(1)
                allowed = allowed | ~allowed.any(1, keepdim=True)
            log_p, state = self._step(position, inputs, state, allowed)
            choice = log_p.argmax(1) if generator is None else log_p.exp().multinomial(1, generator=generator)[:, 0]
            choices = torch.cat([choices, choice[:, None]], 1)
            inputs = self._embed(position, choice)
        return [
            fresh(self._sample(row)) if usable else None
            for row, usable in zip(choices.tolist(), alive.tolist(), strict=True)
        ]

    # -- one step --------------------------------------------------------------------------------------------

    def _begin(self, n: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        inputs = self.start.expand(n, -1)
        return (torch.zeros_like(inputs), torch.zeros_like(inputs)), inputs

    def _step(
        self, position: int, inputs: Tensor, state: tuple[Tensor, Tensor], allowed: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the log-probabilities of the values of a label, shape (samples, values), and the new state."""
        state = self.cell(inputs, state)
        items = self.heads[position](state[0])  # (samples, items)
        logits = items @ self.get_buffer(f"members_{position}").T + self.get_buffer(f"prior_{position}")
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -math.inf)
        return logits.log_softmax(1), state

    def _embed(self, position: int, choice: Tensor) -> Tensor:
        embedded: Tensor = self.get_buffer(f"members_{position}")[choice] @ self.embeddings[position]
        return embedded

    def _allowed(self, position: int, choices: Tensor) -> Tensor | None:
        """Tell which values of a label do not leave the space or a range for certain, given the labels before it."""
        masks = [self._valid(position, choices), *(limit.reachable(position, choices) for limit in self._limits)]
        present = [mask for mask in masks if mask is not None]
        return torch.stack(present).all(0) if present else None

    def _valid(self, position: int, choices: Tensor) -> Tensor | None:
        """Tell which values of a label do not violate a constraint for certain, given the labels before it."""
        label, values = list(self.values.items())[position]
        if label not in self._constrained:
            return None
        known: dict[tuple[int, ...], list[bool]] = {}
        rows = [tuple(row) for row in choices[:, :position].tolist()]
        for row in rows:
            if row not in known:
                before = self._sample(row)
                known[row] = [self.structure.verdict(Partial({**before, label: v})) is not False for v in values]
        return torch.tensor([known[row] for row in rows])

    def _sample(self, row: Sequence[int]) -> Sample:
        """Return the values of the first labels."""
        return {label: values[choice] for (label, values), choice in zip(self.values.items(), row, strict=False)}


def drawable_values(mutable: LabeledMutable) -> list[Any]:
    """Return the values of positive prior probability, in the order of `grid_values`.

    Raises
    ------
    TypeError
        When the dimension has no list of values.
    ValueError
        When a choice of several has more than `hwnas.profilers.profiler.MAX_SUBSETS` values.
    """
    number_of_values(mutable)
    if isinstance(mutable, CategoricalMultiple) and mutable.count_values() > MAX_SUBSETS:
        raise ValueError(
            f"the choice {mutable.label!r} has {mutable.count_values()} values; a controller takes at most "
            f"{MAX_SUBSETS}. Choose among fewer items, or fix n_chosen"
        )
    return [value for value in mutable.grid_values() if mutable.probability(value) > 0]


def _labels_of_constraints(structure: Structure) -> frozenset[str]:
    """Return the labels whose values can tell whether a sample is valid."""
    return structure.deciders(structure.root) if structure.constraints() else frozenset()
