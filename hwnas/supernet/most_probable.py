"""The most probable members by a relaxation."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hwnas.space import CategoricalMultiple, Mutable, Sample
from hwnas.supernet.relaxation import Relaxation
from hwnas.supernet.sampled_softmax import MAX_LISTED

MAX_COMBINATIONS = 10_000
"""Most probable combinations that are checked against the constraints."""

RANDOM_FALLBACK = 1_000
"""Random valid samples that are compared when all of those violate them."""

Options = Mapping[str, Sequence[tuple[Any, float]]]


def ranked_options(relaxation: Relaxation, label: str) -> list[tuple[Any, float]]:
    """Return the values of a label with the logarithms of their probabilities, best first.

    Of subsets too many to list only the preferred one is returned.
    """
    mutable = relaxation.dimension(label)
    if isinstance(mutable, CategoricalMultiple) and mutable.count_values() > MAX_LISTED:
        return [(relaxation.export(label), 0.0)]
    probabilities = relaxation.probabilities(label)
    assert probabilities is not None
    scores = probabilities.detach().double().clamp_min(1e-300).log().tolist()
    options = list(zip(mutable.grid_values(), scores, strict=True))
    return sorted(options, key=lambda option: -option[1])  # stable: the first of equals stays first


def most_probable(options: Options) -> Iterator[Sample]:
    """Yield all combinations of independent labels, the most probable first.

    Parameters
    ----------
    options : mapping of str to sequence of (value, float)
        For each label its values with the logarithms of their probabilities, best first.

    Yields
    ------
    dict
        A sample; the same order at every call.
    """
    labels = list(options)
    # A combination is written as the ranks that are not 0, (position of the label, rank), in order. Raising
    # the last of them, or one behind it, reaches each combination once, from one at least as probable.
    queue: list[tuple[float, tuple[tuple[int, int], ...]]] = [(0.0, ())]
    while queue:
        loss, ranks = heapq.heappop(queue)
        chosen = dict(ranks)
        yield {label: options[label][chosen.get(i, 0)][0] for i, label in enumerate(labels)}
        last, rank = ranks[-1] if ranks else (0, 0)
        for i in range(last, len(labels)):
            start = rank if i == last else 0
            scores = options[labels[i]]
            if start + 1 < len(scores):
                kept = ranks[:-1] if ranks and i == last else ranks
                step = scores[start][1] - scores[start + 1][1]
                heapq.heappush(queue, (loss + step, (*kept, (i, start + 1))))


def most_probable_members(
    space: Mutable, options: Options, *, fixed: Sample | None = None, seed: int = 0
) -> Iterator[Sample]:
    """Yield feasible samples, the most probable first; without constraints the first is the argmax.

    Labels are independent, so the order is exact. Only the `MAX_COMBINATIONS` most probable combinations are looked at;
    where all of them violate the constraints, `RANDOM_FALLBACK` seeded random samples come instead, the most probable
    first.

    Parameters
    ----------
    space : Mutable
        Its constraints are to hold.
    options : mapping of str to sequence of (value, float)
        See `most_probable`; every label of the space.
    fixed : dict, optional
        Labels for which there is nothing to choose, and their values.
    seed : int
        Of the random samples.

    Yields
    ------
    dict
        A value for each label.

    Raises
    ------
    SampleError
        When no sample satisfies the constraints.
    """
    structure = space.structure()
    found = False
    for sample in itertools.islice(most_probable(options), MAX_COMBINATIONS):
        if structure.verdict(sample) is True:
            found = True
            yield sample
    if not found:
        rng = np.random.default_rng(seed)
        drawn = [space.random(dict(fixed or {}), rng) for _ in range(RANDOM_FALLBACK)]
        yield from sorted(drawn, key=lambda sample: -log_probability(options, sample))


def log_probability(options: Options, sample: Sample) -> float:
    """Return the logarithm of the probability of a sample."""
    return math.fsum(
        next((score for option, score in options[label] if option == value), -math.inf)
        for label, value in sample.items()
    )
