"""Small random cost models, and everything about them by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hwnas.cost import CostModel, Factor


@dataclass
class Brute:
    """All members of a model, computed factor by factor in plain Python."""

    model: CostModel
    rows: npt.NDArray[np.intp]  # (n, n_labels)
    samples: list[dict[str, Any]]
    costs: npt.NDArray[np.float64]
    allowed: npt.NDArray[np.bool_]


def brute(model: CostModel) -> Brute:
    domain = model.domain.values
    rows = [list(r) for r in itertools.product(*(range(len(v)) for v in domain.values()))]
    where = {label: i for i, label in enumerate(domain)}

    def entry(factor: Factor, row: list[int]) -> Any:
        return factor.table[tuple(row[where[label]] for label in factor.labels)]

    constant = model.to_dict()["constant"]
    costs = [constant + sum(float(entry(f, row)) for f in model.factors) for row in rows]
    allowed = [all(bool(entry(c, row)) for c in model.constraints) for row in rows]
    samples = [{label: domain[label][i] for label, i in zip(domain, row, strict=True)} for row in rows]
    return Brute(model, np.array(rows, dtype=np.intp), samples, np.array(costs), np.array(allowed))


def random_model(
    seed: int,
    n_labels: int = 6,
    n_factors: int = 6,
    n_constraints: int = 0,
    integers: bool = False,
    max_options: int = 4,
) -> CostModel:
    """Factors over up to three labels, so that labels are shared; some labels may have none."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, max_options + 1, n_labels)
    domain = {f"l{i}": [f"v{j}" for j in range(size)] for i, size in enumerate(sizes)}

    def scope() -> tuple[list[str], list[int]]:
        chosen = rng.permutation(n_labels)[: rng.integers(1, 4)]
        return [f"l{i}" for i in chosen], [int(sizes[i]) for i in chosen]

    factors = []
    for _ in range(n_factors):
        labels, shape = scope()
        table = rng.integers(-20, 20, shape) if integers else rng.normal(size=shape)
        factors.append(Factor(tuple(labels), table))
    constraints = []
    for _ in range(n_constraints):
        labels, shape = scope()
        allowed = rng.random(shape) < 0.7
        allowed.flat[0] = True
        constraints.append(Factor(tuple(labels), allowed))
    return CostModel(domain, factors, constant=float(rng.integers(-3, 4)), unit="ms", constraints=constraints)


@pytest.fixture
def make_model() -> Callable[..., CostModel]:
    return random_model


@pytest.fixture
def enumerate_model() -> Callable[[CostModel], Brute]:
    return brute
