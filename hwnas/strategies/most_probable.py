"""The most probable members within a filter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from hwnas.errors import BudgetError
from hwnas.space import Mutable, Sample
from hwnas.strategies.feasible import FeasibleSampler, Filter
from hwnas.supernet.most_probable import (
    MAX_COMBINATIONS,
    Options,
    log_probability,
    most_probable,
    most_probable_members,
)

DRAWS = 256
"""Members that are drawn from each power of the distribution when none of those passes."""

MAX_POWER = 4**6


def most_probable_within(
    space: Mutable, options: Options, filter: Filter | None = None, *, seed: int = 0
) -> Iterator[Sample]:
    """Yield feasible samples that pass a filter, the most probable first.

    Labels are independent, so the order is exact as long as one of the `MAX_COMBINATIONS` most probable combinations
    passes. Otherwise members within the filter are drawn: from the priors, from the distribution, and from higher and
    higher powers of it, which favour the most probable ones until only one of them turns up. Those that were drawn are
    yielded, the most probable first. Without a filter see `hwnas.supernet.most_probable.most_probable_members`.

    Parameters
    ----------
    space : Mutable
        Its constraints are to hold.
    options : mapping of str to sequence of (value, float)
        For each label of the space its values with the logarithms of their probabilities, best first.
    filter : ProfilerFilter or callable, optional
        Tells what is wanted.
    seed : int
        Of the draws.

    Yields
    ------
    dict
        A value for each label.

    Raises
    ------
    BudgetError
        When nothing that passes was found.
    SampleError
        When no sample satisfies the constraints.
    """
    if filter is None:
        yield from most_probable_members(space, options, seed=seed)
        return
    sampler = FeasibleSampler(space, filter, seed=seed)
    found = False
    for sample in itertools.islice(most_probable(options), MAX_COMBINATIONS):
        if sampler.accepts(sample):
            found = True
            yield sample
    if not found:
        drawn = _drawn(sampler, options, filter, seed)
        yield from sorted(drawn, key=lambda sample: log_probability(options, sample), reverse=True)


def probable_draws(
    space: Mutable, options: Options, filter: Filter | None = None, *, seed: int = 0
) -> Iterator[Sample]:
    """Yield feasible samples that pass a filter, drawn by their probabilities, without end.

    Parameters
    ----------
    space, options, filter, seed
        See `most_probable_within`.

    Yields
    ------
    dict
        A value for each label; the same at every call.

    Raises
    ------
    BudgetError
        When nothing that passes was found.
    """
    sampler = FeasibleSampler(space, filter, seed=seed)
    yield from _settled(FeasibleSampler(space, filter, weights=_weights(sampler, options, 1), seed=seed), options)


def _settled(sampler: FeasibleSampler, options: Options) -> Iterator[Sample]:
    # Of a choice with very many values only the preferred one is listed; no cost depends on it.
    settled = {label: ranked[0][0] for label, ranked in options.items() if len(ranked) == 1}
    for number in itertools.count():
        sample = sampler.sample(number)
        preferred = {**sample, **settled}
        yield preferred if sampler.accepts(preferred) else sample


def _drawn(sampler: FeasibleSampler, options: Options, filter: Filter, seed: int) -> list[Sample]:
    """Return feasible samples, most likely with the most probable one among them."""
    found = list(itertools.islice(_settled(sampler, options), DRAWS))
    power, different = 1, 2
    while different > 1 and power <= MAX_POWER:
        weights = _weights(sampler, options, power)
        try:
            powered = FeasibleSampler(sampler.space, filter, weights=weights, seed=seed)
            drawn = list(itertools.islice(_settled(powered, options), DRAWS))
        except BudgetError:  # the weights of the feasible members are 0 in floating point
            break
        found += drawn
        different = len({repr(sample) for sample in drawn})
        power *= 4
    return found


def _weights(sampler: FeasibleSampler, options: Options, power: int) -> dict[str, list[float]]:
    """Return a power of the distributions in the order of their values, in which the most probable one has weight 1."""
    weights: dict[str, list[float]] = {}
    for label, ranked in options.items():
        if len(ranked) > 1:
            best = ranked[0][1]
            weight = {repr(value): math.exp(power * (score - best)) for value, score in ranked}
            weights[label] = [weight[repr(value)] for value in sampler.dimensions[label].grid_values()]
    return weights
