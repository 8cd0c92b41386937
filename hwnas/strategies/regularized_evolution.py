"""Regularised evolution: the oldest dies, not the worst."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np

from hwnas.profilers.profiler import Profiler
from hwnas.space import Sample
from hwnas.space.node import Dimension
from hwnas.space.sampling import fresh
from hwnas.strategies.architecture_key import active_labels, architecture_key
from hwnas.strategies.budget import Budget
from hwnas.strategies.feasible import AnyFilter, FeasibleSampler
from hwnas.strategies.multi_trial import MultiTrialStrategy
from hwnas.strategies.trial import Trial

_TRIES = 100
_KNOWN_IN_A_ROW = 100


class RegularizedEvolution(MultiTrialStrategy):
    """Evolution with a population in which every member dies of age.

    The first members are random. Then, again and again, the best of a few random members of the population has a
    mutated child, which joins the population, and the oldest member leaves it. A mutation gives an active label another
    value, drawn from its weights. Children that violate a constraint, the filter or the budget are not evaluated: the
    parent mutates again, and when that does not help a random feasible member takes the place of the child. So it does
    when nothing new has come for long.

    A child that has been tried before joins the population with the score that it has, at no cost; a failed one does
    not join. See `MultiTrialStrategy` for what members are made of and how they are scored.

    Parameters
    ----------
    evaluations : int
        How many architectures are tried at most, failed ones included.
    population : int
        Members alive at a time. The search stops when this many trials have all failed at its start.
    sample_size : int
        How many members, drawn with replacement, compete to be the parent.
    mutation_probability : float, optional
        Of each active label to change; exactly one random label changes unless it is given.
    mode, filter, budget, profilers, max_recalibration_batches, on_evaluation, seed
        See `MultiTrialStrategy`.

    Raises
    ------
    ValueError
        When an argument is out of its range.

    References
    ----------
    Real, Aggarwal, Huang, Le: Regularized Evolution for Image Classifier Architecture Search, AAAI 2019.

    Examples
    --------
    >>> import hwnas.nn as nn
    >>> from hwnas.evaluators import FunctionalEvaluator
    >>> class Net(nn.ModelSpace):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Linear(4, nn.ValueChoice([2, 4, 8, 16], label="width"))
    >>> strategy = RegularizedEvolution(population=2, mode="min")
    >>> strategy.run(Net(), FunctionalEvaluator(lambda model: abs(model.layer.out_features - 7)))
    >>> strategy.best_sample()
    {'width': 8}
    """

    def __init__(
        self,
        *,
        evaluations: int = 500,
        population: int = 50,
        sample_size: int = 10,
        mutation_probability: float | None = None,
        mode: str = "max",
        filter: AnyFilter | None = None,
        budget: Budget | Mapping[str, float] | None = None,
        profilers: Profiler | Sequence[Profiler] | None = None,
        max_recalibration_batches: int | None = 20,
        on_evaluation: Callable[[Trial, int, int], None] | None = None,
        seed: int | np.random.Generator = 0,
    ) -> None:
        super().__init__(
            evaluations=evaluations,
            mode=mode,
            filter=filter,
            budget=budget,
            profilers=profilers,
            max_recalibration_batches=max_recalibration_batches,
            probation=population,
            on_evaluation=on_evaluation,
            seed=seed,
        )
        for name, value in (("population", population), ("sample_size", sample_size)):
            if value < 1:
                raise ValueError(f"RegularizedEvolution: {name} is {value}; expected at least 1")
        if mutation_probability is not None and not 0 < mutation_probability <= 1:
            raise ValueError(
                f"RegularizedEvolution: mutation_probability is {mutation_probability}; expected above 0 and at "
                "most 1, or None to change exactly one label"
            )
        self.population = population
        self.sample_size = sample_size
        self.mutation_probability = mutation_probability

    def proposals(self, sampler: FeasibleSampler) -> Generator[Sample, Trial, None]:
        """Yield the first members and then children; see `MultiTrialStrategy.proposals`."""
        rng = np.random.default_rng((self.seed, 1))
        draws = (sampler.sample(number) for number in itertools.count())
        living: deque[Trial] = deque(maxlen=self.population)
        newest, known_in_a_row = -1, 0
        for number in itertools.count():
            child = None
            if number >= self.population and living and known_in_a_row < _KNOWN_IN_A_ROW:
                child = self._child(self._parent(living, rng), sampler, rng)
            trial = yield next(draws) if child is None else child
            known_in_a_row = 0 if trial.number > newest else known_in_a_row + 1
            newest = max(newest, trial.number)
            if trial.score is not None:
                living.append(trial)

    def _parent(self, living: Sequence[Trial], rng: np.random.Generator) -> Trial:
        """Return the best of a few; the one drawn first of equals."""
        competing: list[Trial] = [
            living[number] for number in rng.integers(len(living), size=self.sample_size).tolist()
        ]
        scores = [trial.score for trial in competing if trial.score is not None]  # which all have
        return competing[scores.index(max(scores) if self.mode == "max" else min(scores))]

    def _child(self, parent: Trial, sampler: FeasibleSampler, rng: np.random.Generator) -> Sample | None:
        """Return a feasible neighbour of the parent; None when none turns up."""
        labels = active_labels(sampler.space, parent.sample)

        def mutated(rng: np.random.Generator) -> Sample:
            child = fresh(parent.sample)
            for label in self._changing(labels, rng):
                child[label] = _another(sampler.dimensions[label], child[label], rng)
            return child

        for child in sampler.accepted(mutated, rng, _TRIES):
            if architecture_key(sampler.space, sampler.dimensions, child) != parent.key:
                return child
        return None

    def _changing(self, labels: Sequence[str], rng: np.random.Generator) -> list[str]:
        if self.mutation_probability is None:
            return [labels[int(rng.integers(len(labels)))]]
        return [label for label in labels if rng.random() < self.mutation_probability]


def _another(dimension: Dimension, present: Any, rng: np.random.Generator) -> Any:
    """Draw a value other than the present one, which is returned when no other turns up."""
    for _ in range(_TRIES):
        value = dimension.random_value(rng)
        if value != present:
            return value
    return present
