"""Search for the best member of a trained super-net."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hwnas.nn import ModelSpace
from hwnas.profilers.profiler import Profiler
from hwnas.space import Sample
from hwnas.space.sampling import fresh
from hwnas.strategies.architecture_key import Key, architecture_key
from hwnas.strategies.base import integer_seed
from hwnas.strategies.feasible import BLOCK, AnyFilter, FeasibleSampler
from hwnas.strategies.subnet_evaluation import Metric, subnet_scores

_LISTED_PER_EVALUATION = 20
_FRESH_DRAWS = 2_000


@dataclass(frozen=True)
class RankedSubnet:
    """A member that has been evaluated.

    Parameters
    ----------
    sample : dict
        A value for each label.
    score : float
        Of the metric, greater is better.
    cost : float or None
        In the unit of the profiler; None without one.
    key : tuple
        See `hwnas.strategies.architecture_key`.
    """

    sample: Sample
    score: float
    cost: float | None
    key: Key

    def rank(self) -> tuple[float, float, Key]:
        """Return what members are ordered by: best score, then least cost, then the key."""
        return -self.score, 0.0 if self.cost is None else self.cost, self.key


class SubnetSearch:
    """Evolution over the members of a super-net, each scored with the weights that it has there.

    A member is scored on validation batches after its batch normalisation statistics have been estimated on
    training batches; see `hwnas.strategies.evaluate_subnet`. No architecture is scored twice: samples that differ
    in inactive labels only are one. Where the feasible set is no larger than the budget all of it is scored.
    Otherwise the best `parents` so far give, generation by generation, `population` new members, half by mutation
    and half by crossover; where these fail to be new and feasible, random members join.

    Parameters
    ----------
    evaluations : int
        How many members are scored at most.
    population : int
        Members of the first generation and of every later one.
    parents : int
        How many of the best have offspring.
    mutation_probability : float
        Of each label to be drawn anew.
    metric : callable, optional
        Takes a model that computes the member, and the validation batches; gives a number, greater is better.
        The accuracy unless given.
    max_recalibration_batches : int, optional
        Training batches for the statistics; None for all, 0 to use the running statistics of the super-net.
    profiler : Profiler, optional
        Gives the cost that decides between equal scores; the profiler of the filter unless given.
    on_evaluation : callable, optional
        Called after each evaluation with the member, the number of evaluations so far, and the budget.
    seed : int or numpy.random.Generator
        Of the search.

    Raises
    ------
    ValueError
        When an argument is out of its range.

    References
    ----------
    Guo et al.: Single Path One-Shot Neural Architecture Search with Uniform Sampling, ECCV 2020.
    """

    def __init__(
        self,
        *,
        evaluations: int = 500,
        population: int = 50,
        parents: int = 10,
        mutation_probability: float = 0.1,
        metric: Metric | None = None,
        max_recalibration_batches: int | None = 20,
        profiler: Profiler | None = None,
        on_evaluation: Callable[[RankedSubnet, int, int], None] | None = None,
        seed: int | np.random.Generator = 0,
    ) -> None:
        for name, value in (("evaluations", evaluations), ("population", population), ("parents", parents)):
            if value < 1:
                raise ValueError(f"SubnetSearch: {name} is {value}; expected at least 1")
        if not 0 < mutation_probability <= 1:
            raise ValueError(
                f"SubnetSearch: mutation_probability is {mutation_probability}; expected above 0 and at most 1"
            )
        if max_recalibration_batches is not None and max_recalibration_batches < 0:
            raise ValueError(
                f"SubnetSearch: max_recalibration_batches is {max_recalibration_batches}; expected at least 0, or None"
            )
        self.evaluations = evaluations
        self.population = population
        self.parents = parents
        self.mutation_probability = mutation_probability
        self.metric = metric
        self.max_recalibration_batches = max_recalibration_batches
        self.profiler = profiler
        self.on_evaluation = on_evaluation
        self.seed = integer_seed(seed)

    def run(
        self,
        supernet: ModelSpace,
        *,
        train_batches: Iterable[Any],
        val_batches: Iterable[Any],
        filter: AnyFilter | None = None,
        device: torch.device | None = None,
    ) -> list[RankedSubnet]:
        """Search. Afterwards the super-net is what it was before, bit for bit.

        Parameters
        ----------
        supernet : ModelSpace
            Trained.
        train_batches, val_batches : iterable
            Batches; what is needed of them is loaded into memory once.
        filter : ProfilerFilter, callable or mapping, optional
            Which samples are feasible.
        device : torch.device, optional
            Where to compute; where the super-net is unless given.

        Returns
        -------
        list of RankedSubnet
            All members that were scored, best first.

        Raises
        ------
        BudgetError
            When nothing feasible was found.
        TrainingError
            When a score is not a number.
        """
        sampler = FeasibleSampler(supernet, filter, seed=self.seed)
        scored: dict[Key, RankedSubnet] = {}
        with subnet_scores(
            supernet,
            train_batches=train_batches,
            val_batches=val_batches,
            metric=self.metric,
            recalibrate=True if self.max_recalibration_batches is None else self.max_recalibration_batches,
            device=device,
            seed=self.seed,
        ) as score:
            for sample, key in self._candidates(sampler, scored):
                scored[key] = RankedSubnet(sample, self._value(score(sample), sample), self._cost(sampler, sample), key)
                if self.on_evaluation is not None:
                    self.on_evaluation(scored[key], len(scored), self.evaluations)
        return sorted(scored.values(), key=RankedSubnet.rank)

    def _value(self, score: float, sample: Sample) -> float:
        """Return by what a member is ranked."""
        return score

    def _cost(self, sampler: FeasibleSampler, sample: Sample) -> float | None:
        return sampler.cost(sample) if self.profiler is None else self.profiler.profile(sample)

    def _candidates(self, sampler: FeasibleSampler, scored: dict[Key, RankedSubnet]) -> Iterator[tuple[Sample, Key]]:
        """Yield new feasible members; each is in `scored` before the next is asked for."""
        everything = self._all(sampler)
        if everything is not None:
            yield from everything
            return
        rng = np.random.default_rng((self.seed, 1, 0))
        draws = self._fresh_draws(sampler, scored)
        first = min(self.population, self.evaluations)
        yield from _up_to(first, draws)
        while len(scored) < self.evaluations:
            n = min(self.population, self.evaluations - len(scored))
            best = sorted(scored.values(), key=RankedSubnet.rank)[: self.parents]
            done = len(scored)
            yield from _up_to(n // 2, self._offspring(sampler, scored, rng, best, self._mutate))
            yield from _up_to(n - (len(scored) - done), self._offspring(sampler, scored, rng, best, self._cross))
            yield from _up_to(n - (len(scored) - done), draws)
            if len(scored) == done:
                return

    def _all(self, sampler: FeasibleSampler) -> list[tuple[Sample, Key]] | None:
        """Return every feasible architecture, None if there are more than the budget or too many to list."""
        found: dict[Key, Sample] = {}
        defaults = sampler.space.default()
        try:
            # Listed rather than counted: a space that is too large is recognised long before its end.
            points = iter(sampler.space.grid(active_only=True))
            left = self.evaluations * _LISTED_PER_EVALUATION
            while block := list(itertools.islice(points, BLOCK)):
                left -= len(block)
                if left < 0:
                    return None
                samples = [
                    {label: point.get(label, value) for label, value in fresh(defaults).items()} for point in block
                ]
                for sample in itertools.compress(samples, sampler.accept_many(samples)):
                    found.setdefault(architecture_key(sampler.space, sampler.dimensions, sample), sample)
                    if len(found) > self.evaluations:
                        return None
        except ValueError:  # continuous dimensions have no list
            return None
        return [(sample, key) for key, sample in found.items()] or None

    def _fresh_draws(self, sampler: FeasibleSampler, scored: dict[Key, RankedSubnet]) -> Iterator[tuple[Sample, Key]]:
        """Yield random members that have not been scored, until none turn up any more."""
        number, in_vain = 0, 0
        while in_vain < _FRESH_DRAWS:
            sample = sampler.sample(number)
            number += 1
            key = architecture_key(sampler.space, sampler.dimensions, sample)
            if key in scored:
                in_vain += 1
            else:
                in_vain = 0
                yield sample, key

    def _offspring(
        self,
        sampler: FeasibleSampler,
        scored: dict[Key, RankedSubnet],
        rng: np.random.Generator,
        best: Sequence[RankedSubnet],
        make: Callable[[FeasibleSampler, np.random.Generator, Sequence[RankedSubnet]], Sample],
    ) -> Iterator[tuple[Sample, Key]]:
        for sample in sampler.accepted(lambda rng: make(sampler, rng, best), rng, 10 * self.population):
            key = architecture_key(sampler.space, sampler.dimensions, sample)
            if key not in scored:
                yield sample, key

    def _mutate(self, sampler: FeasibleSampler, rng: np.random.Generator, best: Sequence[RankedSubnet]) -> Sample:
        parent = best[int(rng.integers(len(best)))].sample
        return {
            label: dimension.random_value(rng) if rng.random() < self.mutation_probability else parent[label]
            for label, dimension in sampler.dimensions.items()
        }

    def _cross(self, sampler: FeasibleSampler, rng: np.random.Generator, best: Sequence[RankedSubnet]) -> Sample:
        mother, father = (best[int(rng.integers(len(best)))].sample for _ in range(2))
        return {label: (mother if rng.random() < 0.5 else father)[label] for label in sampler.dimensions}


def _up_to(n: int, candidates: Iterator[tuple[Sample, Key]]) -> Iterator[tuple[Sample, Key]]:
    """Yield at most `n` candidates without taking one more from the iterator."""
    for _ in range(n):
        candidate = next(candidates, None)
        if candidate is None:
            return
        yield candidate
