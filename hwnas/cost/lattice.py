"""A cost along a path, rewritten as excess over the best that is still possible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hwnas.cost.path import Step

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]


class Lattice:
    """A path with weights, its costs rewritten as excess over the best that is still possible.

    With ``lower[s]`` the smallest cost of finishing from state ``s``, a choice has the excess ``cost +
    lower[next] - lower[s] >= 0``, and the excesses of a member add up to its cost minus the minimum. Budgets
    near the minimum therefore need only the small excesses, however large the costs are.

    Parameters
    ----------
    steps : sequence of Step
        The path.
    weights : sequence of ndarray, shape (n_label,)
        Non-negative weights for all labels; an option of weight 0 is left out.
    constant : float
        What no choice changes.
    sign : {1, -1}
        With -1 all costs are negated, so that the minimum is the maximum of the cost.
    """

    def __init__(self, steps: Sequence[Step], weights: Sequence[FloatArray], constant: float, sign: int) -> None:
        self.steps = steps
        self.sign = sign
        self.weights: list[FloatArray] = []
        self.excess: list[FloatArray] = []
        magnitude = abs(constant)
        lower, upper = np.zeros(1), np.zeros(1)
        for step in reversed(steps):
            weight = np.ones(1)
            for label in step.labels:
                weight = np.multiply.outer(weight, weights[label]).ravel()
            cost = np.where(weight > 0, np.where(np.isinf(step.cost), np.inf, sign * step.cost), np.inf)
            magnitude += np.abs(step.cost, where=np.isfinite(step.cost), out=np.zeros(cost.shape)).max(initial=0.0)
            total = cost + lower[step.next_state]
            lower = total.min(axis=1)
            possible = np.isfinite(total)
            upper = np.where(possible, np.where(possible, cost, 0.0) + upper[step.next_state], -np.inf).max(axis=1)
            reachable = np.isfinite(lower)
            excess = total - np.where(reachable, lower, 0.0)[:, None]
            self.excess.append(excess)
            self.weights.append(weight)
        self.weights.reverse()
        self.excess.reverse()
        #: Smallest cost (with the sign); infinite when the constraints allow nothing.
        self.minimum = float(lower[0]) + sign * constant
        #: Largest cost (with the sign).
        self.maximum = float(upper[0]) + sign * constant
        whole = float(constant).is_integer() and all(_is_whole(step.cost) for step in steps)
        eps = float(np.finfo(np.float64).eps)
        #: A bound on what floating-point rounding adds to a sum along the path; none for whole numbers.
        self.slack = 0.0 if whole and magnitude * eps < 1 else 64 * (len(steps) + 1) * eps * magnitude

    def cheapest(self) -> list[int]:
        """Give the first choice of smallest cost in every step."""
        state, choices = 0, []
        for step, excess in zip(self.steps, self.excess, strict=True):
            choices.append(int(excess[state].argmin()))
            state = int(step.next_state[state, choices[-1]])
        return choices

    def common_step(self, span: float) -> float | None:
        """Give the number that divides all excesses up to `span`, if it is not tiny compared to `span`."""
        values = np.unique(np.concatenate([e[e <= span] for e in self.excess] or [np.zeros(1)]))
        values = values[values > self.slack]
        if not len(values):
            return None
        # Euclid's algorithm with a tolerance. A result that is no common divisor does no harm.
        smallest, tolerance = span * 1e-6, span * 1e-9 + self.slack
        step = float(values[-1])
        for value in values.tolist():
            a, b = step, value
            while b > tolerance:
                a, b = b, abs(a - b * round(a / b))
            step = a
            if step < smallest:
                return None
        multiples = np.rint(values / step)
        refined = float((values * multiples).sum() / (multiples * multiples).sum())
        return float(round(refined)) if abs(refined - round(refined)) < self.slack else refined


def _is_whole(costs: FloatArray) -> bool:
    finite = costs[np.isfinite(costs)]
    return bool((finite == np.rint(finite)).all())
