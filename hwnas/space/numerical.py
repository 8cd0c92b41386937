"""Choices from an interval of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np

from hwnas.space.expression import MutableExpression
from hwnas.space.mutable import LabeledMutable
from hwnas.space.walk import UncountableError

_STANDARD = NormalDist()
_MAX_STEPS = 1_000_000


class Numerical(LabeledMutable, MutableExpression):
    """A choice of a number, drawn from a uniform or a normal distribution.

    Parameters
    ----------
    low, high : float, optional
        Bounds. Without `mu` and `sigma` both are needed, and the number is uniform between them. With `mu`
        and `sigma`, numbers beyond a bound are moved to it.
    mu, sigma : float, optional
        Mean and standard deviation of a normal distribution.
    log_distributed : bool, optional
        The logarithm of the number is uniform (between the logarithms of the bounds) or normal (`mu` and
        `sigma` are those of the logarithm).
    quantize : float, optional
        The number is rounded to a multiple of this, then clipped to the bounds.
    default : float, optional
        The default value; the median, rounded and clipped, if not given.
    label : str, optional
        The label, relative to the current label scope.

    Raises
    ------
    ValueError
        If the parameters contradict each other.
    """

    kind = "numerical"

    def __init__(
        self,
        low: float = -math.inf,
        high: float = math.inf,
        *,
        mu: float | None = None,
        sigma: float | None = None,
        log_distributed: bool = False,
        quantize: float | None = None,
        default: float | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__(label)
        where = f"{self.kind} {self.label!r}"
        self.low, self.high = float(low), float(high)
        if not self.low < self.high:
            raise ValueError(f"{where}: low must be less than high, got low={low!r} and high={high!r}")
        if (mu is None) != (sigma is None):
            raise ValueError(f"{where}: give both mu and sigma or none of them, got mu={mu!r} and sigma={sigma!r}")
        self.mu = None if mu is None else float(mu)
        self.sigma = None if sigma is None else float(sigma)
        if self.mu is not None and self.sigma is not None:
            if not (math.isfinite(self.mu) and math.isfinite(self.sigma) and self.sigma > 0):
                raise ValueError(f"{where}: mu must be finite and sigma positive, got mu={mu!r} and sigma={sigma!r}")
        elif not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"{where}: give both low and high, or mu and sigma; got low={low!r} and high={high!r}")
        elif log_distributed and self.low <= 0:
            raise ValueError(f"{where}: low must be positive for log_distributed, got {low!r}")
        self.log_distributed = bool(log_distributed)
        if quantize is not None and not (math.isfinite(quantize) and quantize > 0):
            raise ValueError(f"{where}: quantize must be a positive number, got {quantize!r}")
        self.quantize = None if quantize is None else float(quantize)
        self._default = self._quantile(0.5)
        if default is not None:
            reason = self.check_value(default)
            if reason is not None:
                raise ValueError(f"default of {where}: {reason}")
            self._default = self.canonical(default)

    def check_value(self, value: Any) -> str | None:
        """Say what is wrong with a value, None if it is a number within the bounds and on the steps."""
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            return f"{value!r} of type {type(value).__name__} is not a number"
        number = float(value)
        if not (math.isfinite(number) and self.low <= number <= self.high):
            return f"{value!r} does not lie between {self.low!r} and {self.high!r}"
        if self.log_distributed and (number < 0 or (number == 0 and self.quantize is None)):
            return f"{value!r} is not positive, as a log-distributed number is"
        if self._match(number) is None:
            return (
                f"{value!r} is not a multiple of {self.quantize!r} clipped to [{self.low!r}, {self.high!r}]; "
                f"the nearest is {self._settle(number)!r}"
            )
        return None

    def canonical(self, value: Any) -> float:
        """Return the value as a float, exactly on its step."""
        match = self._match(float(value))
        return float(value) if match is None else match

    def default_value(self) -> float:
        """Return the default value."""
        return self._default

    def random_value(self, rng: np.random.Generator) -> float:
        """Draw a value."""
        return self._quantile(rng.random())

    def grid_values(self, granularity: int | None = None) -> Iterator[float]:
        """Iterate over values in increasing order.

        Parameters
        ----------
        granularity : int, optional
            Number of points before rounding merges some: equally spaced from bound to bound (in the
            logarithm, if log-distributed), or the quantiles ``(i + 0.5) / granularity`` of a normal
            distribution. A single point is the median. None gives every step between the bounds.

        Raises
        ------
        UncountableError
            If no granularity is given and the values are continuous or unbounded.
        ValueError
            If the granularity is not a positive int.
        """
        if granularity is None:
            return iter(self._steps)
        if not isinstance(granularity, int) or granularity < 1:
            raise ValueError(f"granularity must be None or a positive int, got {granularity!r}")
        if self.mu is None and granularity > 1:
            places = [i / (granularity - 1) for i in range(granularity)]
        else:
            places = [(i + 0.5) / granularity for i in range(granularity)]
        return iter(dict.fromkeys(map(self._quantile, places)))

    def count_values(self) -> int:
        """Return the number of steps.

        Raises
        ------
        UncountableError
            If the values are continuous or unbounded.
        """
        return len(self._steps)

    def probability(self, value: Any) -> float:
        """Return the probability of the step of a value."""
        steps = self._steps
        if self.check_value(value) is not None:
            return 0.0
        first, last = steps[self.canonical(value)]
        below = 0.0 if first is None else self._distribution(first)
        above = 1.0 if last is None else self._distribution(last)
        return above - below

    def compute(self, lookup: Callable[[LabeledMutable], Any]) -> Any:
        """Look the value up."""
        return lookup(self)

    def text(self) -> str:
        """Return the label in braces."""
        return f"{{{self.label}}}"

    def describe(self) -> dict[str, Any]:
        """Describe the choice in JSON types; None stands for an infinite bound."""
        return {
            "kind": self.kind,
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
            "mu": self.mu,
            "sigma": self.sigma,
            "log_distributed": self.log_distributed,
            "quantize": self.quantize,
            "default": self._default,
        }

    def __repr__(self) -> str:
        """Return the parameters that are set and the label."""
        given = {key: value for key, value in self.describe().items() if value is not None and value is not False}
        del given["kind"]
        parts = [f"{key}={value!r}" for key, value in given.items()]
        return f"{type(self).__name__}({', '.join(parts)}, label={str(self.label)!r})"

    def _settle(self, number: float) -> float:
        """Round to a multiple, then clip."""
        if self.quantize is not None:
            number = round(number / self.quantize) * self.quantize
        return min(max(number, self.low), self.high)

    def _quantile(self, place: float) -> float:
        """Return the number below which a share `place` of the draws lies, rounded and clipped."""
        if self.mu is not None and self.sigma is not None:
            # inv_cdf is infinite at 0, which a generator can return.
            number = self.mu + self.sigma * _STANDARD.inv_cdf(max(place, 2.0**-54))
        else:
            low, high = self.low, self.high
            if self.log_distributed:
                low, high = math.log(low), math.log(high)
            number = low + (high - low) * place
        return self._settle(math.exp(number) if self.log_distributed else number)

    def _distribution(self, number: float) -> float:
        """Return the share of the draws that lie below `number`, before rounding and clipping."""
        if self.log_distributed:
            if number <= 0:
                return 0.0
            number = math.log(number)
        if self.mu is not None and self.sigma is not None:
            return _STANDARD.cdf((number - self.mu) / self.sigma)
        low, high = self.low, self.high
        if self.log_distributed:
            low, high = math.log(low), math.log(high)
        return min(max((number - low) / (high - low), 0.0), 1.0)

    def _match(self, number: float) -> float | None:
        """Return the step that a number stands for, None if it lies between steps."""
        steps = [self._settle(number)]
        if self.mu is not None:
            # Draws beyond a bound end on it, wherever the multiples lie.
            steps += [self.low, self.high]
        if number in steps:
            return number
        return next((s for s in steps if math.isclose(number, s, rel_tol=1e-9, abs_tol=1e-12)), None)

    @cached_property
    def _steps(self) -> dict[float, tuple[float | None, float | None]]:
        """Each step and the interval that is rounded to it; None is an end without bound."""
        if self.quantize is None or not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise UncountableError(
                f"{self.kind} {self.label!r} is continuous or unbounded; give it low, high and quantize, "
                "or ask for a granularity where a grid is made"
            )
        first, last = round(self.low / self.quantize), round(self.high / self.quantize)
        if last - first > _MAX_STEPS:
            raise UncountableError(f"{self.kind} {self.label!r} has more than {_MAX_STEPS} steps")
        if self.mu is not None:
            first, last = first - 1, last + 1
        steps: dict[float, tuple[float | None, float | None]] = {}
        for k in range(first, last + 1):
            step = self._settle(k * self.quantize)
            start = steps[step][0] if step in steps else None if k == first else (k - 0.5) * self.quantize
            steps[step] = (start, None if k == last else (k + 0.5) * self.quantize)
        return steps
