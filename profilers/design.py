"""Which whole members to measure: those that tell the most about the costs of all the others."""

from __future__ import annotations

from typing import Final

import numpy as np

from hwnas.profilers.posterior import Array, Prior

POOL: Final = 400  # random members from which some are chosen

# What time is taken for before anything is measured, relative to one multiply-add: an element that is read or written,
# and an operator. Only the shares in a net matter, and of them only the order of magnitude.
ELEMENT: Final = 4.0
OPERATOR: Final = 50_000.0
# An element that is averaged in integers, for want of vector instructions there.
AVERAGED_INTEGER: Final = 40.0

_SPREAD: Final = 0.1  # by which a group of coefficients is assumed to deviate
_NOISE: Final = 0.02  # by which a net is assumed to deviate from what its coefficients say


def rough_costs(macs: Array, elements: Array) -> Array:
    """Return what operators may take, in multiply-adds, before anything is measured.

    Parameters
    ----------
    macs, elements : ndarray, shape (n,)
        Multiply-adds, and elements that are read or written.

    Returns
    -------
    ndarray, shape (n,)
        Positive.
    """
    return macs + ELEMENT * elements + OPERATOR


def most_telling(features: Array, prior: Prior, n: int) -> list[int]:
    """Choose nets one after the other so that the costs of all nets are known best.

    Each choice minimises the mean over all nets of the relative variance that is left of what a net takes. With normal
    errors that variance does not depend on what will be measured.

    Parameters
    ----------
    features : ndarray, shape (n_nets, n_coefficients)
        How often each coefficient counts in each net.
    prior : Prior
        Of the coefficients; groups are taken to deviate by a tenth.
    n : int
        How many nets; no more than there are.

    Returns
    -------
    list of int
        Positions of distinct nets, the most telling first.

    References
    ----------
    Atkinson, Donev, Tobias: Optimum Experimental Designs, with SAS, Oxford University Press 2007, chapter 10.6
    (V-optimality).
    """
    variance = prior.variance + sum(((_SPREAD * group) ** 2 for group in prior.groups), np.zeros(1))
    expected = features @ prior.mean
    relative = features / np.where(expected > 0, expected, 1.0)[:, None]
    left = (relative * variance) @ relative.T  # (nets, nets): covariance of what nets take given the choices so far
    chosen: list[int] = []
    for _ in range(min(n, len(features))):
        gain = (left**2).sum(0) / (np.diag(left) + _NOISE**2)
        gain[chosen] = -1.0
        best = int(np.argmax(gain))
        chosen.append(best)
        left = left - np.outer(left[:, best], left[:, best]) / (left[best, best] + _NOISE**2)
    return chosen
