"""Measures the operators against PyTorch and against what the machine allows.

An operator has a file here with a function `cases`, which stands in `OPERATORS`.
"""

from __future__ import annotations

from collections.abc import Sequence

from hwnas.kernels.bench import bn_clamp, dwconv2d, mask_scale, mixed_bn_sum, mixed_sum, separable_conv2d, slice_pack
from hwnas.kernels.bench.case import PHASES, Case, Limit, Problem
from hwnas.kernels.bench.machine import machine
from hwnas.kernels.bench.measure import Quartiles, Row, measure
from hwnas.kernels.bench.plot import plot
from hwnas.kernels.bench.table import table

__all__ = [
    "OPERATORS",
    "PHASES",
    "Case",
    "Limit",
    "Problem",
    "Quartiles",
    "Row",
    "cases",
    "machine",
    "measure",
    "plot",
    "table",
]

OPERATORS = (
    mixed_sum.cases,
    mixed_bn_sum.cases,
    bn_clamp.cases,
    dwconv2d.cases,
    separable_conv2d.cases,
    mask_scale.cases,
    slice_pack.cases,
)
"""Functions that return the cases of an operator."""


def cases(operators: Sequence[str] = ()) -> list[Case]:
    """Return the cases to measure.

    Parameters
    ----------
    operators : sequence of str, optional
        Names of operators; all when there are none.

    Returns
    -------
    list of Case
        Their cases. Data are made only when a case is measured.

    Raises
    ------
    ValueError
        There are no cases of an operator of that name.
    """
    every = [case for of_one in OPERATORS for case in of_one()]
    known = list(dict.fromkeys(case.operator for case in every))
    for name in operators:
        if name not in known:
            raise ValueError(f"there is no benchmark of {name!r}; there are {', '.join(known)}")
    return [case for case in every if not operators or case.operator in operators]
