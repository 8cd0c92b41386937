"""Draws from the architectures within a budget, without blind rejection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hwnas.cost.aim import NothingError
from hwnas.cost.bounded import Bounded
from hwnas.cost.compiled import Compiled
from hwnas.cost.draws import Draws
from hwnas.cost.explanation import explain
from hwnas.cost.lattice import FloatArray


class BudgetSampler:
    """Draw architectures whose costs are within ranges, in proportion to their weights.

    The weight of an architecture is the product of the weights of its options, so the draws follow the prior,
    conditioned on the ranges and on the constraints. Dynamic programming over quantised costs gives, exactly
    for the rounded costs, the weight of every way to finish, and draws are made from that. Ranges are
    widened by the largest rounding error, and draws are checked with the true costs: rounding decides
    how many draws are thrown away, never which architectures can be drawn or how often. Bins cover only what is
    between a range and the nearer end of the reachable costs; they are refined until enough draws
    succeed, and a small feasible set is listed instead.

    Several costs are quantised jointly, in as many dimensions. As their bins share the same memory, each has
    fewer. Where the costs together tie too many labels, or no draw succeeds at the finest bins that fit into
    memory, draws are made within one range, that whose members meet the others most often, and the others reject;
    where each cost alone ties too many labels, draws follow weights and constraints, and all costs reject.

    Parameters
    ----------
    ranges : sequence of Bounded
        Costs over one domain with the same constraints, and their ranges. Call `CostModel.sampler` or
        `JointRanges.sampler` rather than this class.
    weights : mapping of str to sequence of float, shape (n_label,), optional
        Prior weights of the options, not necessarily normalised. Labels left out are uniform. An option of
        weight 0 is never drawn.

    Raises
    ------
    BudgetError
        If no architecture is within the ranges; names the nearest reachable cost and what blocks the budget.
    ValueError
        If a range is empty, or weights do not fit the domain.
    UnsupportedError
        If constraints tie too many labels together.
    """

    def __init__(self, ranges: Sequence[Bounded], weights: Mapping[str, Sequence[float]] | None = None) -> None:
        for each in ranges:
            if not each.low <= each.high:
                raise ValueError(f"the range [{each.low}, {each.high}] is empty; give low <= high")
        given = _normalised(ranges[0].model, weights)
        self._n_labels = ranges[0].model.n_labels
        try:
            self._draws = Draws(ranges, given)
        except NothingError as nothing:
            raise explain(ranges, given, undecided=nothing.undecided) from None

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
        return self._draws.draw(n, np.random.default_rng(seed))[:, : self._n_labels]


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
