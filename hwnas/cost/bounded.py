"""A cost with a range, and the path along which several of them are decided together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwnas.cost.compiled import Compiled
from hwnas.cost.path import Step, build_paths

IndexArray = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Bounded:
    """A cost and the range in which it has to be, both ends included.

    Parameters
    ----------
    model : Compiled
        The cost.
    low, high : float
        The range, in the unit of the cost; infinite where there is no end.
    """

    model: Compiled
    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def of(cls, model: Compiled, low: float | None, high: float | None) -> Bounded:
        """Give a cost with a range; an end that is None is infinite."""
        return cls(model, -math.inf if low is None else float(low), math.inf if high is None else float(high))

    def signed(self, sign: int) -> tuple[float, float]:
        """Give the range of the cost, or with -1 that of its negative."""
        return (self.low, self.high) if sign > 0 else (-self.high, -self.low)

    def within(self, rows: IndexArray) -> npt.NDArray[np.bool_]:
        """Tell for each row of option indices whether its cost is in the range."""
        costs = self.model.evaluate(rows)
        return (costs >= self.low) & (costs <= self.high)

    def described(self, digits: int = 6) -> str:
        """Write the range, such as ``at most 3 ms``."""
        low, high = (self.model.format(end, digits) for end in (self.low, self.high))
        if self.low == -math.inf:
            return f"at most {high}"
        return f"at least {low}" + ("" if self.high == math.inf else f" and at most {high}")


def bound_labels(ranges: Sequence[Bounded]) -> frozenset[int]:
    """Give the positions of the labels that one of the costs or a constraint depends on."""
    return frozenset(p for bounded in ranges for p in bounded.model.bound_labels)


def loose_labels(ranges: Sequence[Bounded], steps: Sequence[Step]) -> list[int]:
    """Give the positions of the labels of members that a cost or a constraint depends on, but no step decides."""
    decided = {p for step in steps for p in step.labels}
    return sorted(p for p in bound_labels(ranges) - decided if p < ranges[0].model.n_labels)


def within_all(ranges: Sequence[Bounded], rows: IndexArray) -> npt.NDArray[np.bool_]:
    """Tell for each row of option indices whether every cost is in its range."""
    within = np.ones(len(rows), dtype=bool)
    for bounded in ranges:
        within[within] = bounded.within(rows[within])
    return within


def joint_paths(models: Sequence[Compiled]) -> list[list[Step]]:
    """Give for each of several costs over one domain, with the same constraints, the steps that decide them together.

    Raises
    ------
    UnsupportedError
        If the costs together tie too many labels to each other.
    """
    if len(models) == 1:
        return [models[0].path]
    first = models[0]
    return build_paths([model.tables for model in models], first.allowed_tables, first.labels, first.sizes)


def member_rows(steps: Sequence[Step], n_labels: int, choices: IndexArray) -> IndexArray:
    """Turn choices of the steps, shape (n, n_steps), into option indices, shape (n, n_labels).

    Labels outside the path get option 0.
    """
    rows = np.zeros((len(choices), n_labels), dtype=np.intp)
    for i, step in enumerate(steps):
        rows[:, step.labels] = step.options[choices[:, i]]
    return rows


def fill(
    rows: IndexArray, labels: Sequence[int], weights: Sequence[npt.NDArray[np.float64]], rng: np.random.Generator
) -> None:
    """Draw labels that are not on the path, in proportion to their weights, into rows of option indices."""
    for label in labels:
        weight = weights[label]
        rows[:, label] = rng.choice(len(weight), size=len(rows), p=weight / weight.sum())
