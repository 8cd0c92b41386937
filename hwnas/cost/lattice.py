"""Dynamic programming over quantised cost: how much weight there is at every cost, and draws from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwnas.cost.path import Step

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]

# Work and memory of one histogram table: number of (transition, bin) pairs and of (state, bin) pairs.
_MAX_WORK = 1_000_000_000
_MAX_CELLS = 25_000_000
# Number of (draw, choice) pairs held at a time.
_CHUNK = 2_000_000


class TooManyError(Exception):
    """An enumeration was given up because it has more members than asked for."""


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

    def affordable(self, span: float, step: float) -> bool:
        """Tell whether histograms of this resolution stay within the limits of work and memory."""
        bins = span / step + len(self.steps) + 2
        states = sum(len(excess) for excess in self.excess)
        transitions = sum(int((excess <= span).sum()) for excess in self.excess)
        return states * bins <= _MAX_CELLS and min(transitions, states * bins) * bins <= _MAX_WORK


@dataclass(frozen=True)
class Members:
    """Enumerated members.

    Parameters
    ----------
    choices : ndarray, shape (n, n_steps)
        The choice in every step.
    weights : ndarray, shape (n,)
        The product of the weights of the choices.
    """

    choices: IndexArray
    weights: FloatArray


class Histograms:
    """For every step and state: the weight of all ways to finish, by quantised excess.

    Every excess is rounded to a multiple of `step`. Sums of the rounded excesses are exact, so the histograms
    are exact for the rounded costs; the true excess of a member differs from the rounded one by at most
    `error`. When all excesses are multiples of `step`, the error is nothing but floating-point rounding.

    Parameters
    ----------
    lattice : Lattice
        The costs.
    span : float
        Members with a larger excess are left out.
    step : float
        The width of a bin.
    """

    def __init__(self, lattice: Lattice, span: float, step: float) -> None:
        self.lattice = lattice
        self.step = step
        self.shift: list[IndexArray] = []  # rounded excess of each choice; -1 where it is left out
        self.error = lattice.slack
        for excess in lattice.excess:
            usable = excess <= span + lattice.slack
            shift = np.where(usable, np.rint(np.where(usable, excess, 0.0) / step), -1).astype(np.intp)
            self.error += float(np.abs(excess - shift * step, where=usable, out=np.zeros(excess.shape)).max())
            self.shift.append(shift)
        self.bins = int(np.floor((span + self.error) / step)) + 1
        #: Weight by state and bin before each step and at the end; each of shape (n_states, n_bins).
        self.mass: list[FloatArray] = [np.zeros((1, self.bins))]
        self.mass[0][0, 0] = 1.0
        for path_step, shift, weight in zip(
            reversed(lattice.steps), reversed(self.shift), reversed(lattice.weights), strict=True
        ):
            self.mass.append(self._before(path_step, shift, weight, self.mass[-1]))
        self.mass.reverse()

    def _before(self, step: Step, shift: IndexArray, weight: FloatArray, after: FloatArray) -> FloatArray:
        before = np.zeros((len(shift), self.bins))
        states, choices = np.nonzero((shift >= 0) & (shift < self.bins))
        # Choices that lead from the same state to the same state at the same cost are one transition.
        key = (states * len(after) + step.next_state[states, choices]) * self.bins + shift[states, choices]
        merged, group = np.unique(key, return_inverse=True)
        weights = np.bincount(group, weight[choices], minlength=len(merged))
        ends, shifts = np.divmod(merged, self.bins)
        for state, end, k, w in zip(
            (ends // len(after)).tolist(),
            (ends % len(after)).tolist(),
            shifts.tolist(),
            weights.tolist(),
            strict=True,
        ):
            before[state, k:] += w * after[end, : self.bins - k]
        return before

    def window(self, low: float, high: float, *, sure: bool = False) -> tuple[int, int]:
        """Give the bins [first, last) for a range of the cost (with the lattice's sign).

        By default these are all bins that can hold a member of the range; with `sure`, the bins that can hold
        nothing else.
        """
        error = -self.error if sure else self.error
        first = np.ceil((low - self.lattice.minimum - error) / self.step)
        last = np.floor((high - self.lattice.minimum + error) / self.step) + 1
        start = int(np.clip(first, 0, self.bins))
        return start, max(start, int(np.clip(last, 0, self.bins)))

    def weight(self, first: int, last: int) -> float:
        """Give the weight in the bins [first, last)."""
        return float(self.mass[0][0, first:last].sum())

    def draw(self, first: int, last: int, n: int, rng: np.random.Generator) -> IndexArray:
        """Draw members whose bin is in [first, last), in proportion to their weights.

        Returns
        -------
        ndarray, shape (n, n_steps)
            The choice in every step.
        """
        running = self.mass[0][0, first:last].cumsum()
        left = first + running.searchsorted(
            np.minimum(rng.random(n) * running[-1], np.nextafter(running[-1], 0)), side="right"
        )
        state = np.zeros(n, dtype=np.intp)
        choices = np.empty((n, len(self.shift)), dtype=np.intp)
        for i, shift in enumerate(self.shift):
            block = max(1, _CHUNK // shift.shape[1])
            uniform = rng.random(n)
            for start in range(0, n, block):
                part = slice(start, start + block)
                choices[part, i] = _pick(self._ahead(i, state[part], left[part]), uniform[part])
            left = left - shift[state, choices[:, i]]
            state = self.lattice.steps[i].next_state[state, choices[:, i]]
        return choices

    def enumerate(self, first: int, last: int, limit: int) -> Members:
        """List the members whose bin is in [first, last).

        Raises
        ------
        TooManyError
            If there are more than `limit`.
        """
        left = first + np.flatnonzero(self.mass[0][0, first:last])
        state = np.zeros(len(left), dtype=np.intp)
        weights = np.ones(len(left))
        choices = np.empty((len(left), 0), dtype=np.intp)
        for i, shift in enumerate(self.shift):
            block = max(1, _CHUNK // shift.shape[1])
            found: list[tuple[IndexArray, IndexArray]] = []
            total = 0
            for start in range(0, len(left), block):
                part = slice(start, start + block)
                rows, taken = np.nonzero(self._ahead(i, state[part], left[part]))
                found.append((rows + start, taken))
                total += len(rows)
                if total > limit:
                    raise TooManyError
            rows, taken = (np.concatenate(side) for side in zip(*found, strict=True)) if found else (left, left)
            choices = np.concatenate([choices[rows], taken[:, None]], axis=1)
            weights = weights[rows] * self.lattice.weights[i][taken]
            left = left[rows] - shift[state[rows], taken]
            state = self.lattice.steps[i].next_state[state[rows], taken]
        return Members(choices, weights)

    def _ahead(self, i: int, state: IndexArray, left: IndexArray) -> FloatArray:
        """Give the weight behind every choice of step i with `left` bins to spend, shape (n, n_choices)."""
        shift = self.shift[i][state]
        rest = left[:, None] - shift
        possible = (shift >= 0) & (rest >= 0)
        behind = self.mass[i + 1][self.lattice.steps[i].next_state[state], np.where(possible, rest, 0)]
        return np.where(possible, behind * self.lattice.weights[i], 0.0)


def _is_whole(costs: FloatArray) -> bool:
    finite = costs[np.isfinite(costs)]
    return bool((finite == np.rint(finite)).all())


def _pick(weights: FloatArray, uniform: FloatArray) -> IndexArray:
    """Pick a column of each row in proportion to the weights, shape (n, k), by inverting the running sum."""
    running = weights.cumsum(axis=1)
    total = running[:, -1:]
    # Rounding must not reach the total, behind which only columns of weight 0 stand.
    target = np.minimum(uniform[:, None] * total, np.nextafter(total, 0))
    picked: IndexArray = (running <= target).sum(axis=1)
    return picked
