"""Draws of members whose costs are all within their ranges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwnas.cost.aim import Aim, NothingError, aims_at, aims_regardless
from hwnas.cost.bounded import Bounded, bound_labels, fill, loose_labels, member_rows, within_all
from hwnas.cost.conflict import weighted_sum
from hwnas.cost.histograms import LEVELS, Histograms, TooManyError, Window, resolutions
from hwnas.cost.lattice import FloatArray, IndexArray
from hwnas.cost.path import Step
from hwnas.errors import UnsupportedError

#: Sets of this many members are listed rather than drawn from.
ENUMERATION_LIMIT = 50_000
# A resolution is good enough when this many of the pilot draws are within the ranges.
_PILOT, _PILOT_WANTED = 512, 16
# Draws at the finest resolution before the ranges are given up as undecided; few where other ways are left.
_LAST_DRAWS, _FEW_LAST_DRAWS = 65_536, 8192
_BATCH = 16384


@dataclass(frozen=True, eq=False)
class _Way:
    """Histograms to draw from, and the share of their draws that is within the ranges."""

    histograms: Histograms
    window: Window
    steps: Sequence[Step]
    loose: Sequence[int]  # labels of members that are not on the path, but that a range depends on
    acceptance: float = 0.0


class Draws:
    """Members whose costs are within ranges, drawn in proportion to their weights.

    Parameters
    ----------
    ranges : sequence of Bounded
        The costs, of one domain and with the same constraints, and their ranges.
    weights : sequence of ndarray, shape (n_label,)
        For every label; each adds up to 1.
    thorough : bool
        Whether to go on when few draws are accepted, until hardly anything can have been missed.

    Attributes
    ----------
    listed : tuple of ndarray, shape (n, n_labels), and ndarray, shape (n,), or None
        All members and their probabilities where they are few. Labels that nothing depends on have option 0.

    Raises
    ------
    NothingError
        If no member is within the ranges, or none was found.
    UnsupportedError
        If constraints tie too many labels together.
    """

    def __init__(self, ranges: Sequence[Bounded], weights: Sequence[FloatArray], *, thorough: bool = True) -> None:
        self._thorough = thorough
        self._ranges = tuple(ranges)
        self._weights = weights
        self._bound = bound_labels(ranges)
        self._free = [p for p in range(len(weights)) if p not in self._bound]
        self.listed: tuple[IndexArray, FloatArray] | None = None
        self._way = self._best_way()

    @property
    def acceptance(self) -> float:
        """Share of the draws from the histograms that is within the ranges; 1 where members are listed."""
        return 1.0 if self.listed is not None else self._way.acceptance

    @property
    def transitions(self) -> int:
        """Size of the path along which members are drawn."""
        return sum(step.cost.size for step in self._way.steps)

    def draw(self, n: int, rng: np.random.Generator) -> IndexArray:
        """Draw members independently; option indices, shape (n, n_labels)."""
        if self.listed is not None:
            rows, probabilities = self.listed
            found = rows[rng.choice(len(rows), size=n, p=probabilities)]
        else:
            batches = [np.empty((0, len(self._weights)), dtype=np.intp)]
            missing = n
            while missing > 0:
                tries = min(int(1.2 * missing / self.acceptance) + 4, _BATCH)
                batch = self._accepted(self._way, tries, rng)[:missing]
                batches.append(batch)
                missing -= len(batch)
            found = np.concatenate(batches)
        fill(found, self._free, self._weights, rng)
        return found

    def _best_way(self) -> _Way:
        """Give the first way of drawing of which not much is rejected, or else the one of which least is."""
        best: _Way | None = None
        for aims in self._ways():
            way = self._refined(aims)
            if best is None or way.acceptance > best.acceptance:
                best = way
            if self.listed is not None or best.acceptance * _PILOT >= _PILOT_WANTED:
                return best
        assert best is not None
        if best.acceptance == 0.0:
            raise NothingError(undecided=True)
        return best

    def _ways(self) -> Iterator[Sequence[Aim]]:
        """Yield what to make histograms of: all costs jointly, a weighted sum of them, each of them alone, or none."""
        unsupported = True
        try:
            aims = aims_at(self._ranges, self._weights)
        except UnsupportedError:
            pass
        else:
            unsupported = False
            if len(aims) == 1:
                yield aims
                return
            summed = weighted_sum(aims, self._weights)
            if summed.span < 0:
                raise NothingError
            yield aims
            yield [summed]
            if not self._thorough:
                return
        for bounded in self._ranges if len(self._ranges) > 1 else ():
            try:
                yield aims_at([bounded], self._weights)
            except UnsupportedError:
                continue
            unsupported = False
        if unsupported:
            yield aims_regardless(self._ranges, self._weights)

    def _refined(self, aims: Sequence[Aim]) -> _Way:
        """Make histograms finer until enough draws are accepted, or list the members."""
        lattices = [aim.lattice for aim in aims]
        steps = lattices[0].steps
        loose = loose_labels(self._ranges, steps)
        levels = (2,) if aims[0].covers_all else LEVELS
        rng = np.random.default_rng(0)
        for histograms in resolutions(lattices, [aim.span for aim in aims], levels):
            window = histograms.window([(aim.low, aim.high) for aim in aims])
            if histograms.weight(window) == 0.0:
                raise NothingError
            way = _Way(histograms, window, steps, loose)
            accepted = len(self._accepted(way, _PILOT, rng))
            if accepted >= _PILOT_WANTED or self._list(way):
                return replace(way, acceptance=accepted / _PILOT)
        last = _LAST_DRAWS if len(self._ranges) == 1 else _FEW_LAST_DRAWS
        if not self._thorough:
            return replace(way, acceptance=accepted / _PILOT)
        for start in range(0, last, _BATCH):
            n = min(_BATCH, last - start)
            if accepted := len(self._accepted(way, n, rng)):
                return replace(way, acceptance=accepted / n)
        return way

    def _accepted(self, way: _Way, n: int, rng: np.random.Generator) -> IndexArray:
        rows = member_rows(way.steps, len(self._weights), way.histograms.draw(way.window, n, rng))
        fill(rows, way.loose, self._weights, rng)
        return rows[within_all(self._ranges, rows)]

    def _list(self, way: _Way) -> bool:
        """List the feasible set if it is small."""
        if way.loose:
            return False
        try:
            members = way.histograms.enumerate(way.window, ENUMERATION_LIMIT)
        except TooManyError:
            return False
        rows = member_rows(way.steps, len(self._weights), members.choices)
        within = within_all(self._ranges, rows)
        if not within.any():
            raise NothingError
        weights = members.weights[within]
        self.listed = rows[within], weights / weights.sum()
        return True
