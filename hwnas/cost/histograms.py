"""Dynamic programming over quantised costs: how much weight there is at every cost, and draws from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.cost.lattice import FloatArray, IndexArray, Lattice
from hwnas.cost.path import Step

Window = tuple[tuple[int, int], ...]
"""For each cost the first bin and the one behind the last."""

#: Resolutions that are tried in turn, in cells: for one cost, bins over the interesting range of it.
LEVELS = (1024, 8192, 65536)
# Work and memory of the histograms: number of (transition, cell) pairs and of (state, cell) pairs.
_MAX_WORK = 1_000_000_000
_MAX_CELLS = 25_000_000
# Number of (draw, choice) pairs held at a time.
_CHUNK = 2_000_000


class TooManyError(Exception):
    """An enumeration was given up because it has more members than asked for."""


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
    """For every step and state: the weight of all ways to finish, by the quantised excesses of one or more costs.

    Every excess is rounded to a multiple of a width. Sums of the rounded excesses are exact, so the histograms
    are exact for the rounded costs; the true excess of a member is above the rounded one by at most `above` and
    below it by at most `below`. When all excesses are multiples of the width, these are floating-point rounding.

    Parameters
    ----------
    lattices : sequence of Lattice
        The costs, along one path and with the same weights.
    spans : sequence of float
        For each cost, the largest excess of interest; members beyond it are left out.
    widths : sequence of float
        For each cost, the width of a bin.
    """

    def __init__(self, lattices: Sequence[Lattice], spans: Sequence[float], widths: Sequence[float]) -> None:
        self.lattices = tuple(lattices)
        self.widths = tuple(widths)
        self._steps: Sequence[Step] = lattices[0].steps
        self._weights = lattices[0].weights
        rounded: list[list[IndexArray]] = [[] for _ in lattices]
        for i in range(len(self._steps)):
            excesses = [lattice.excess[i] for lattice in lattices]
            usable = np.logical_and.reduce(
                [e <= span + lat.slack for e, span, lat in zip(excesses, spans, lattices, strict=True)]
            )
            for shifts, excess, width in zip(rounded, excesses, widths, strict=True):
                bins_up = np.rint(np.where(usable, excess, 0.0) / width).astype(np.intp)
                shifts.append(np.where(usable, bins_up, -1))
        errors = [_rounding(*each) for each in zip(lattices, rounded, widths, strict=True)]
        self.below = tuple(below for below, _ in errors)
        self.above = tuple(above for _, above in errors)
        bins = [math.floor((s + b) / w) + 1 for s, b, w in zip(spans, self.below, widths, strict=True)]
        self.bins = tuple(bins)
        #: Rounded excesses of each choice, by cost and step, shape (n_states, n_choices); beyond all bins where the
        #: choice is left out.
        self._shifts = [
            [np.where(shift < 0, n, shift) for shift in shifts] for shifts, n in zip(rounded, bins, strict=True)
        ]
        #: Weight by state and bins before each step and at the end; each of shape (n_states, *bins).
        end = np.zeros((1, *bins))
        end.flat[0] = 1.0
        self._mass: list[FloatArray] = [end]
        for i in reversed(range(len(self._steps))):
            self._mass.append(self._before(i, self._mass[-1]))
        self._mass.reverse()

    def _before(self, i: int, after: FloatArray) -> FloatArray:
        step, shifts = self._steps[i], [shift[i] for shift in self._shifts]
        before = np.zeros((len(step.cost), *self.bins))
        states, choices = np.nonzero(
            np.logical_and.reduce([shift < n for shift, n in zip(shifts, self.bins, strict=True)])
        )
        # Choices that lead from the same state to the same state at the same cost are one transition.
        pair = states * len(after) + step.next_state[states, choices]
        key = pair * math.prod(self.bins) + self._cells([shift[states, choices] for shift in shifts])
        merged, first, group = np.unique(key, return_index=True, return_inverse=True)
        weights = np.bincount(group, self._weights[i][choices], minlength=len(merged))
        starts, ends = np.divmod(pair[first], len(after))
        by_cost = [shift[states[first], choices[first]].tolist() for shift in shifts]
        for state, end, by, weight in zip(
            starts.tolist(), ends.tolist(), zip(*by_cost, strict=True), weights.tolist(), strict=True
        ):
            target = tuple(slice(k, None) for k in by)
            source = tuple(slice(n - k) for n, k in zip(self.bins, by, strict=True))
            before[state][target] += weight * after[end][source]
        return before

    def _cells(self, bins: Sequence[IndexArray]) -> IndexArray:
        """Give the numbers of the cells with some bins of each cost, in C order."""
        cells = bins[0]
        for n, more in zip(self.bins[1:], bins[1:], strict=True):
            cells = cells * n + more
        return cells

    def window(self, ranges: Sequence[tuple[float, float]], *, sure: bool = False) -> Window:
        """Give the bins for a range of each cost (with the lattice's sign).

        By default these are all bins that can hold a member of the ranges; with `sure`, the bins that can hold
        nothing else.
        """
        found = []
        for k, (low, high) in enumerate(ranges):
            least, width = self.lattices[k].minimum, self.widths[k]
            down, up = (-self.below[k], -self.above[k]) if sure else (self.above[k], self.below[k])
            first = math.floor(np.clip(np.ceil((low - least - down) / width), 0, self.bins[k]))
            last = np.clip(np.floor((high - least + up) / width) + 1, 0, self.bins[k])
            found.append((first, max(first, math.floor(last))))
        return tuple(found)

    def weight(self, window: Window) -> float:
        """Give the weight in a window."""
        return float(self._inside(window).sum())

    def _inside(self, window: Window) -> FloatArray:
        inside: FloatArray = self._mass[0][0][tuple(slice(first, last) for first, last in window)]
        return inside

    def draw(self, window: Window, n: int, rng: np.random.Generator) -> IndexArray:
        """Draw members whose bins are in a window, in proportion to their weights.

        Returns
        -------
        ndarray, shape (n, n_steps)
            The choice in every step.
        """
        inside = self._inside(window)
        running = inside.cumsum()
        cells = running.searchsorted(
            np.minimum(rng.random(n) * running[-1], np.nextafter(running[-1], 0)), side="right"
        )
        left = [at + first for at, (first, _) in zip(np.unravel_index(cells, inside.shape), window, strict=True)]
        state = np.zeros(n, dtype=np.intp)
        choices = np.empty((n, len(self._steps)), dtype=np.intp)
        for i, step in enumerate(self._steps):
            block = self._block(i)
            uniform = rng.random(n)
            for start in range(0, n, block):
                part = slice(start, start + block)
                weights = self._ahead(i, state[part], [bins[part] for bins in left])
                choices[part, i] = _pick(weights, uniform[part])
            left = [bins - shift[i][state, choices[:, i]] for bins, shift in zip(left, self._shifts, strict=True)]
            state = step.next_state[state, choices[:, i]]
        return choices

    def enumerate(self, window: Window, limit: int) -> Members:
        """List the members whose bins are in a window.

        Raises
        ------
        TooManyError
            If there are more than `limit`.
        """
        held = np.nonzero(self._inside(window))
        left: list[IndexArray] = [at + first for at, (first, _) in zip(held, window, strict=True)]
        n = len(left[0])
        state = np.zeros(n, dtype=np.intp)
        weights = np.ones(n)
        choices = np.empty((n, 0), dtype=np.intp)
        for i, step in enumerate(self._steps):
            block = self._block(i)
            found: list[tuple[IndexArray, IndexArray]] = [(np.empty(0, dtype=np.intp),) * 2]
            total = 0
            for start in range(0, len(state), block):
                part = slice(start, start + block)
                rows, taken = np.nonzero(self._ahead(i, state[part], [bins[part] for bins in left]))
                found.append((rows + start, taken))
                total += len(rows)
                if total > limit:
                    raise TooManyError
            rows = np.concatenate([rows for rows, _ in found])
            taken = np.concatenate([taken for _, taken in found])
            choices = np.concatenate([choices[rows], taken[:, None]], axis=1)
            weights = weights[rows] * self._weights[i][taken]
            left = [bins[rows] - shift[i][state[rows], taken] for bins, shift in zip(left, self._shifts, strict=True)]
            state = step.next_state[state[rows], taken]
        return Members(choices, weights)

    def _block(self, i: int) -> int:
        return max(1, _CHUNK // math.prod(self._steps[i].shape))

    def _ahead(self, i: int, state: IndexArray, left: Sequence[IndexArray]) -> FloatArray:
        """Give the weight behind every choice of step i with `left` bins to spend, shape (n, n_choices)."""
        rests = [bins[:, None] - shift[i][state] for bins, shift in zip(left, self._shifts, strict=True)]
        possible = np.logical_and.reduce([rest >= 0 for rest in rests])
        cells = np.where(possible, self._cells(rests), 0)
        after = self._mass[i + 1]
        behind = after.reshape(len(after), -1)[self._steps[i].next_state[state], cells]
        return np.where(possible, behind * self._weights[i], 0.0)


def resolutions(
    lattices: Sequence[Lattice], spans: Sequence[float], levels: Sequence[int] = LEVELS
) -> Iterator[Histograms]:
    """Give histograms of the excesses up to some spans, finer and finer while that helps and is affordable.

    A level is a number of cells, which the costs share alike. Where all excesses of a cost are multiples of one
    number, bins of that width are exact, and where all costs are, no finer ones follow.

    Parameters
    ----------
    lattices : sequence of Lattice
        The costs, along one path.
    spans : sequence of float
        For each cost the largest excess of interest.
    levels : sequence of int
        Ascending.
    """
    spans = [max(span, 0.0) for span in spans]
    commons = [lattice.common_step(span) for lattice, span in zip(lattices, spans, strict=True)]
    extents = [max(span, lattice.slack) or 1.0 for lattice, span in zip(lattices, spans, strict=True)]
    for level in levels:
        cells = level
        widths, exact = _widths(cells, extents, commons)
        while level == levels[0] and cells > 2 ** len(spans) and not _affordable(lattices, spans, widths):
            cells //= 2
            widths, exact = _widths(cells, extents, commons)
        if level != levels[0] and not _affordable(lattices, spans, widths):
            return
        yield Histograms(lattices, spans, widths)
        if exact:
            return


def _widths(cells: float, extents: Sequence[float], commons: Sequence[float | None]) -> tuple[list[float], bool]:
    """Divide cells among costs: exact bins where they are few enough, as many as are left for the others."""
    widths: dict[int, float] = {}
    while True:
        coarse = [k for k in range(len(extents)) if k not in widths]
        if not coarse:
            break
        bins = max(2.0, cells ** (1 / len(coarse)))
        even = {k: extents[k] / (bins - 1) for k in coarse}
        exact = {k: common for k in coarse if (common := commons[k]) is not None and common >= even[k]}
        if not exact:
            return [widths.get(k, even.get(k, 0.0)) for k in range(len(extents))], False
        widths |= exact
        cells = max(1.0, cells / math.prod(extents[k] / width + 1 for k, width in exact.items()))
    return [widths[k] for k in range(len(extents))], True


def _affordable(lattices: Sequence[Lattice], spans: Sequence[float], widths: Sequence[float]) -> bool:
    """Tell whether histograms of this resolution stay within the limits of work and memory."""
    steps = lattices[0].steps
    cells = math.prod(span / width + len(steps) + 2 for span, width in zip(spans, widths, strict=True))
    states = sum(len(step.cost) for step in steps)
    transitions = min(
        sum(int((excess <= span).sum()) for excess in lattice.excess)
        for lattice, span in zip(lattices, spans, strict=True)
    )
    return states * cells <= _MAX_CELLS and min(transitions, states * cells) * cells <= _MAX_WORK


def _rounding(lattice: Lattice, shifts: Sequence[IndexArray], width: float) -> tuple[float, float]:
    """Give how far the true excess of a member is below and above the rounded one at most."""
    below = above = np.zeros(1)
    for step, excess, shift in zip(reversed(lattice.steps), reversed(lattice.excess), reversed(shifts), strict=True):
        used = shift >= 0
        error = np.where(used, excess, 0.0) - np.where(used, shift, 0) * width
        # States that nothing leads on from count as exact.
        above = np.where(used, error + above[step.next_state], 0.0).max(axis=1)
        below = np.where(used, below[step.next_state] - error, 0.0).max(axis=1)
    return float(below[0]) + lattice.slack, float(above[0]) + lattice.slack


def _pick(weights: FloatArray, uniform: FloatArray) -> IndexArray:
    """Pick a column of each row in proportion to the weights, shape (n, k), by inverting the running sum."""
    running = weights.cumsum(axis=1)
    total = running[:, -1:]
    # Rounding must not reach the total, behind which only columns of weight 0 stand.
    target = np.minimum(uniform[:, None] * total, np.nextafter(total, 0))
    picked: IndexArray = (running <= target).sum(axis=1)
    return picked
