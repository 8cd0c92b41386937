"""What whole nets say about the costs of their parts: Bayesian linear regression with a hierarchical prior."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

Array = NDArray[np.float64]

# Relative standard deviations over which a posterior averages.
SPREADS: Final = (0.01, 0.03, 0.1, 0.3, 1.0)
MISFITS: Final = (0.003, 0.01, 0.02, 0.04, 0.08)

_NEGLIGIBLE: Final = 9.0  # in log evidence below the best


@dataclass(frozen=True)
class Prior:
    """What is known about coefficients before any net is seen.

    Parameters
    ----------
    mean : ndarray, shape (n_coefficients,)
        Expected values.
    variance : ndarray, shape (n_coefficients,)
        Of the part of the error whose size is known, such as that of measuring.
    groups : sequence of ndarray, shape (n_coefficients,)
        Of the part whose size is not known: coefficient j deviates in addition by ``s_g groups[g][j]`` standard
        deviations for every group g. Each s_g is one of `SPREADS`, and the nets tell which.
    """

    mean: Array
    variance: Array
    groups: Sequence[Array]


@dataclass(frozen=True)
class _Component:
    """The posterior for one choice of the unknown sizes."""

    log_evidence: float
    mean: Array  # (n_coefficients,)
    variance: Array  # (n_coefficients,), of the prior
    explained: Array  # (n_nets, n_coefficients); prior covariance less its square is the posterior one
    misfit: float
    left_out: Array  # (n_nets,), measured less predicted from the other nets


class Posterior:
    """Coefficients given some nets.

    A net takes ``features @ coefficients`` with independent normal errors: that of measuring it, and a misfit, the same
    share of each net, for what the features do not say. The size of the misfit and the sizes of the groups of the prior
    are integrated out over a grid, so that a few nets that happen to agree do not make for too narrow intervals.

    Parameters
    ----------
    prior : Prior
        Of the coefficients.
    features : ndarray, shape (n_nets, n_coefficients)
        Of the nets that were measured; there may be none.
    measured : ndarray, shape (n_nets,)
        Their costs.
    stderr : ndarray, shape (n_nets,)
        Standard errors of the measurements.

    Attributes
    ----------
    mean : ndarray, shape (n_coefficients,)
        Posterior means.
    left_out : ndarray, shape (n_nets,)
        What each net costs more than it is predicted to from all the other nets.
    misfit : float
        Root of the mean square of the misfit: the least relative standard deviation of what another net takes.

    References
    ----------
    Rasmussen, Williams: Gaussian Processes for Machine Learning, MIT Press 2006, chapters 2.1 and 5.4.
    """

    def __init__(self, prior: Prior, features: Array, measured: Array, stderr: Array) -> None:
        everything = [
            _condition(prior, sizes, misfit, features, measured, stderr)
            for sizes in itertools.product(SPREADS, repeat=len(prior.groups))
            for misfit in MISFITS
        ]
        evidence = np.array([component.log_evidence for component in everything])
        kept = evidence > evidence.max() - _NEGLIGIBLE
        weights = np.exp(evidence[kept] - evidence.max())
        weights /= weights.sum()
        components = [component for component, keep in zip(everything, kept, strict=True) if keep]

        def average(values: Sequence[Array]) -> Array:
            return np.asarray(np.tensordot(weights, np.stack(values), 1))

        self.mean: Array = average([component.mean for component in components])
        self.left_out: Array = average([component.left_out for component in components])
        self.misfit = float(np.sqrt(weights @ [component.misfit**2 for component in components]))
        # The variance is asked for member by member, so what the components have in common is added up once.
        self._variance = average([component.variance for component in components])
        roots = np.sqrt(weights)[:, None]
        self._explained = _root_of_gram(
            np.concatenate([root * c.explained for root, c in zip(roots, components, strict=True)])
        )
        self._scatter = _root_of_gram(roots * np.stack([c.mean - self.mean for c in components]))

    def variance(self, features: Array) -> Array:
        """Return the variance of what other nets take.

        Parameters
        ----------
        features : ndarray, shape (n, n_coefficients)
            Of the nets.

        Returns
        -------
        ndarray, shape (n,)
            Of coefficients and misfit; the error of measuring comes on top.
        """
        touched = np.flatnonzero(features.any(0))  # a net has few of the parts
        x = features[:, touched]
        predicted = x @ self.mean[touched]
        known = ((x @ self._explained[touched]) ** 2).sum(1)
        between = ((x @ self._scatter[touched]) ** 2).sum(1)
        return np.asarray(x**2 @ self._variance[touched] - known + between + (self.misfit * predicted) ** 2)


def _root_of_gram(rows: Array) -> Array:
    """Return R, shape (n, r), with R R^T = rows^T rows for rows of length n; r is at most n and their number."""
    if len(rows) > rows.shape[1]:
        rows = np.asarray(np.linalg.qr(rows, mode="r"), dtype=np.float64)
    return np.ascontiguousarray(rows.T)


def _condition(
    prior: Prior, sizes: Sequence[float], misfit: float, features: Array, measured: Array, stderr: Array
) -> _Component:
    """Return the posterior given some sizes, and the log of their evidence."""
    variance = prior.variance + sum(((s * g) ** 2 for s, g in zip(sizes, prior.groups, strict=True)), np.zeros(1))
    spread = features * variance  # (nets, coefficients)
    covariance = spread @ features.T + np.diag(stderr**2 + (misfit * measured) ** 2)
    root = np.linalg.cholesky(covariance)
    residual = measured - features @ prior.mean
    whitened = solve_triangular(root, residual, lower=True)
    explained = solve_triangular(root, spread, lower=True)
    inverse_root = solve_triangular(root, np.eye(len(measured)), lower=True)
    precision = inverse_root.T @ inverse_root
    log_evidence = -0.5 * float(whitened @ whitened) - float(np.log(np.diag(root)).sum())
    return _Component(
        log_evidence=log_evidence,
        mean=prior.mean + explained.T @ whitened,
        variance=variance,
        explained=explained,
        misfit=misfit,
        left_out=precision @ residual / np.diag(precision),
    )
