"""The most probable samples of a relaxation."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hwnas.profilers.profiler import MAX_SUBSETS
from hwnas.space import CategoricalMultiple, Sample
from hwnas.supernet import Relaxation


def ranked_options(relaxation: Relaxation, label: str) -> list[tuple[Any, float]]:
    """Return the values of a label with the logarithms of their probabilities, best first.

    Of subsets too many to list only the preferred one is returned.
    """
    mutable = relaxation.dimension(label)
    if isinstance(mutable, CategoricalMultiple) and mutable.count_values() > MAX_SUBSETS:
        return [(relaxation.export(label), 0.0)]
    probabilities = relaxation.probabilities(label)
    assert probabilities is not None
    scores = probabilities.detach().double().clamp_min(1e-300).log().tolist()
    options = list(zip(mutable.grid_values(), scores, strict=True))
    return sorted(options, key=lambda option: -option[1])  # stable: the first of equals stays first


def most_probable(options: Mapping[str, Sequence[tuple[Any, float]]]) -> Iterator[Sample]:
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
