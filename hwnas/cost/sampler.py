"""Draws from the architectures within a budget, without blind rejection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from hwnas.cost.compiled import Compiled
from hwnas.cost.lattice import FloatArray, Histograms, IndexArray, Lattice, TooManyError
from hwnas.cost.nearest import ENUMERATION_LIMIT, LEVELS, member_rows, reachable_neighbours, resolutions
from hwnas.errors import BudgetError

# A resolution is good enough when this many of the pilot draws fall within the budget.
_PILOT, _PILOT_WANTED = 512, 16
# Draws at the finest resolution before the budget is given up as undecided.
_LAST_DRAWS = 65_536
_BATCH = 16384
_PARTS_SHOWN = 3


class BudgetSampler:
    """Draw architectures whose cost is within [low, high], in proportion to their weights.

    The weight of an architecture is the product of the weights of its options, so the draws follow the prior,
    conditioned on the budget and on the constraints. Dynamic programming over quantised costs gives, exactly
    for the rounded costs, the weight of every way to finish, and draws are made from that. The budget is
    widened by the largest rounding error, and draws are checked with `CostModel.evaluate`: rounding decides
    how many draws are thrown away, never which architectures can be drawn or how often. Bins cover only the
    range between the budget and the nearer end of the reachable costs; they are refined until enough draws
    succeed, and a small feasible set is listed instead.

    Parameters
    ----------
    model : Compiled
        The cost and its constraints. Call `CostModel.sampler` rather than this class.
    low, high : float, optional
        The budget, in the unit of the model; both ends belong to it.
    weights : mapping of str to sequence of float, shape (n_label,), optional
        Prior weights of the options, not necessarily normalised. Labels left out are uniform. An option of
        weight 0 is never drawn.

    Raises
    ------
    BudgetError
        If no architecture is within the budget; names the nearest reachable cost and what blocks the budget.
    ValueError
        If weights do not fit the domain.
    UnsupportedError
        If factors tie too many labels together.
    """

    def __init__(
        self,
        model: Compiled,
        low: float | None = None,
        high: float | None = None,
        weights: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self._model = model
        self._low = -math.inf if low is None else float(low)
        self._high = math.inf if high is None else float(high)
        if math.isnan(self._low) or math.isnan(self._high) or self._low > self._high:
            raise ValueError(f"the range [{low}, {high}] is empty; give low <= high")
        self._weights = _normalised(model, weights)
        self._histograms: Histograms | None = None
        self._listed: tuple[IndexArray, FloatArray] | None = None
        self._acceptance = 1.0
        self._prepare()

    def draw(self, n: int, seed: int | np.random.Generator = 0) -> npt.NDArray[np.intp]:
        """Draw architectures independently.

        Parameters
        ----------
        n : int
            How many.
        seed : int or numpy.random.Generator
            The source of randomness.

        Returns
        -------
        ndarray, shape (n, n_labels)
            Option indices, for `CostModel.evaluate` and `CostModel.samples`.
        """
        rng = np.random.default_rng(seed)
        if self._listed is not None:
            rows, probabilities = self._listed
            found = rows[rng.choice(len(rows), size=n, p=probabilities)]
        else:
            batches: list[IndexArray] = []
            missing = n
            while missing > 0:
                tries = min(int(1.2 * missing / self._acceptance) + 4, _BATCH)
                batch = self._accepted(tries, rng)[:missing]
                batches.append(batch)
                missing -= len(batch)
            found = np.concatenate(batches) if batches else np.empty((0, len(self._weights)), dtype=np.intp)
        for label in self._model.free_labels:
            found[:, label] = rng.choice(len(self._weights[label]), size=n, p=self._weights[label])
        return found

    def _prepare(self) -> None:
        lattices = [Lattice(self._model.path, self._weights, self._model.constant, sign) for sign in (1, -1)]
        cheapest, dearest = (self._extreme(lattice) for lattice in lattices)
        if self._high < cheapest[0]:
            raise self._out_of_reach("minimum", *cheapest)
        if self._low > dearest[0]:
            raise self._out_of_reach("maximum", *dearest)
        # Count from the end of the range of costs that is nearer to the far side of the budget.
        up, down = min(self._high, dearest[0]) - cheapest[0], dearest[0] - max(self._low, cheapest[0])
        lattice, span = (lattices[0], up) if up <= down else (lattices[1], down)
        low, high = _signed(self._low, self._high, lattice.sign)
        rng = np.random.default_rng(0)
        everything = self._low <= cheapest[0] and self._high >= dearest[0]
        for histograms in resolutions(lattice, span, (2,) if everything else LEVELS):
            self._histograms, self._bins = histograms, histograms.window(low, high)
            if histograms.weight(*self._bins) == 0.0:
                raise self._gap(lattices)
            accepted = len(self._accepted(_PILOT, rng))
            self._acceptance = max(accepted, 1) / _PILOT
            if accepted >= _PILOT_WANTED or self._list(lattices):
                return
        for _ in range(_LAST_DRAWS // _BATCH):
            if accepted := len(self._accepted(_BATCH, rng)):
                self._acceptance = accepted / _BATCH
                return
        raise self._gap(lattices, undecided=True)

    def _accepted(self, n: int, rng: np.random.Generator) -> IndexArray:
        assert self._histograms is not None
        rows = member_rows(self._model, self._histograms.draw(*self._bins, n, rng))
        return rows[self._within(rows)]

    def _within(self, rows: IndexArray) -> npt.NDArray[np.bool_]:
        cost = self._model.evaluate(rows)
        return (cost >= self._low) & (cost <= self._high)

    def _list(self, lattices: list[Lattice]) -> bool:
        """List the feasible set if it is small."""
        assert self._histograms is not None
        try:
            members = self._histograms.enumerate(*self._bins, ENUMERATION_LIMIT)
        except TooManyError:
            return False
        rows = member_rows(self._model, members.choices)
        within = self._within(rows)
        if not within.any():
            raise self._gap(lattices)
        weights = members.weights[within]
        self._listed = rows[within], weights / weights.sum()
        return True

    def _extreme(self, lattice: Lattice) -> tuple[float, IndexArray]:
        if not (self._model.feasible and math.isfinite(lattice.minimum)):
            raise BudgetError("no architecture satisfies the constraints with a non-zero weight; relax them")
        rows = member_rows(self._model, np.array([lattice.cheapest()], dtype=np.intp).reshape(1, -1))
        return float(self._model.evaluate(rows)[0]), rows[0]

    def _out_of_reach(self, which: str, cost: float, row: IndexArray) -> BudgetError:
        model = self._model
        show = model.format
        fixed = model.constant
        parts = [
            (factor.title, float(factor.table[tuple(row[[model.domain.position[p] for p in factor.labels]])]))
            for factor in model.factors
            if (factor.table != factor.table.flat[0]).any()
        ]
        parts = sorted(parts, key=lambda part: part[1], reverse=True)[:_PARTS_SHOWN]
        message = f"no architecture costs {self._asked()}: the {which} is {show(cost)}"
        message += f"; of it {show(fixed)} is fixed (no choice changes it)"
        if parts:
            message += f"; the largest parts at the {which}: {', '.join(f'{n} {show(c)}' for n, c in parts)}"
        return BudgetError(message, nearest=cost)

    def _gap(self, lattices: list[Lattice], *, undecided: bool = False) -> BudgetError:
        below, above = reachable_neighbours(self._model, lattices[0], lattices[1], self._low, self._high)
        nearest = below if self._low - below <= above - self._high else above
        message = f"no architecture costs {self._asked(12)}"
        if undecided:
            message = f"no architecture was found that costs {self._asked(12)}, a range too narrow to search fully"
        show = partial(self._model.format, digits=12)  # neighbours may be close
        return BudgetError(
            f"{message}: the nearest reachable cost is {show(nearest)} "
            f"(below the range {show(below)}, above it {show(above)}); widen the range",
            nearest=nearest,
        )

    def _asked(self, digits: int = 6) -> str:
        show = partial(self._model.format, digits=digits)
        if self._low == -math.inf:
            return f"at most {show(self._high)}"
        return f"at least {show(self._low)}" + ("" if self._high == math.inf else f" and at most {show(self._high)}")


def _signed(low: float, high: float, sign: int) -> tuple[float, float]:
    return (low, high) if sign > 0 else (-high, -low)


def _normalised(model: Compiled, weights: Mapping[str, Sequence[float]] | None) -> list[FloatArray]:
    """Check prior weights and give those of every label, adding up to 1."""
    given = {} if weights is None else weights
    result: list[FloatArray] = []
    for label, size in zip(model.labels, model.sizes, strict=True):
        weight = np.asarray(given.get(label, np.ones(size)), dtype=np.float64)
        if weight.shape != (size,):
            raise ValueError(f"the weights of {label!r} have shape {weight.shape}, expected ({size},)")
        if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.any()):
            raise ValueError(
                f"the weights of {label!r} are {weight.tolist()}; expected finite numbers >= 0, one of them positive"
            )
        result.append(weight / weight.sum())
    return result
