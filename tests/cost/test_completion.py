from __future__ import annotations

import itertools

import numpy as np
import pytest

from hwnas.cost import Factor
from hwnas.cost import completion as module
from hwnas.cost.completion import LeastCompletion


def case(seed: int) -> tuple[list[str], list[int], list[Factor]]:
    rng = np.random.default_rng(seed)
    labels = [f"l{i}" for i in range(rng.integers(1, 7))]
    sizes = [int(size) for size in rng.integers(1, 4, len(labels))]
    factors = []
    for _ in range(rng.integers(1, 8)):
        scope = rng.permutation(len(labels))[: rng.integers(0, min(4, len(labels)) + 1)]
        table = rng.normal(size=[sizes[i] for i in scope])
        factors.append(Factor(tuple(labels[i] for i in scope), table))
    return labels, sizes, factors


def cost(factors: list[Factor], labels: list[str], row: tuple[int, ...]) -> float:
    place = dict(zip(labels, row, strict=True))
    return sum(float(factor.table[tuple(place[label] for label in factor.labels)]) for factor in factors)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("entries", [module.MAX_ENTRIES, 4])
def test_it_is_the_minimum_over_all_completions(seed: int, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", entries)
    labels, sizes, factors = case(seed)
    least = LeastCompletion(factors, labels, constant=0.5)
    for position in range(len(labels)):
        rows = list(itertools.product(*map(range, sizes[:position])))
        rests = list(itertools.product(*map(range, sizes[position + 1 :])))
        truth = [
            [min(0.5 + cost(factors, labels, (*row, v, *rest)) for rest in rests) for v in range(sizes[position])]
            for row in rows
        ]
        found = least.costs(position, np.array(rows, dtype=int).reshape(len(rows), position))
        exact = entries > 4 or position == len(labels) - 1  # where everything is known nothing is bounded
        if exact:
            np.testing.assert_allclose(np.broadcast_to(found, np.shape(truth)), truth, atol=1e-12)
        assert (found <= np.array(truth) + 1e-9).all()
        if not least.depends(position):
            assert np.ptp(truth, axis=1).max() < 1e-9


def test_labels_are_those_of_the_order() -> None:
    with pytest.raises(KeyError, match="other"):
        LeastCompletion([Factor(("other",), [1.0])], ["label"])
