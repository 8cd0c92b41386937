"""Which values still lead to members within a range of costs, when labels are decided one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hwnas.cost import Factor
from hwnas.cost.completion import LeastCompletion
from hwnas.profilers.filters import RangeProfilerFilter

_ROUNDING = 1e-9  # sums in another order may differ in the last digits


@dataclass(frozen=True)
class Limit:
    """An upper limit of a cost.

    Parameters
    ----------
    least : LeastCompletion
        Of the cost.
    high : float
        The limit.
    drawable : sequence of array of int
        For each label which of the values that the cost knows can be decided for.
    """

    least: LeastCompletion
    high: float
    drawable: Sequence[npt.NDArray[np.intp]]

    def reachable(self, position: int, choices: Tensor) -> Tensor | None:
        """Tell which values of a label have members within the limit, given the labels before it.

        Parameters
        ----------
        position : int
            That of the label.
        choices : Tensor of int, shape (n, at least position)
            What was decided, as positions among the drawable values.

        Returns
        -------
        Tensor of bool, shape (n, values), or None
            None when the cost does not depend on the label. True also where it is not known.
        """
        if not self.least.depends(position):
            return None
        rows = np.empty((len(choices), position), dtype=np.intp)
        for place in range(position):
            rows[:, place] = self.drawable[place][choices[:, place].numpy()]
        costs = self.least.costs(position, rows)[:, self.drawable[position]]
        return torch.from_numpy(costs <= self.high + _ROUNDING * abs(self.high))


def limits_of(within: RangeProfilerFilter, values: Mapping[str, Sequence[Any]]) -> Iterator[Limit]:
    """Yield the limits of a range; the lower one as an upper one of the negative cost.

    Parameters
    ----------
    within : RangeProfilerFilter
        The range.
    values : mapping of str to sequence
        For each label, in the order in which they are decided, the values that can be.
    """
    model = within.profiler.cost_model
    known = model.domain.values
    drawable = [
        np.array([known[label].index(value) for value in listed]) if label in known else np.arange(len(listed))
        for label, listed in values.items()
    ]
    for sign, bound in ((1, within.high), (-1, within.low)):
        if bound is not None:
            factors = [Factor(factor.labels, sign * factor.table.astype(float)) for factor in model.factors]
            least = LeastCompletion(factors, list(values), constant=sign * model.constant)
            yield Limit(least, sign * bound, drawable)
