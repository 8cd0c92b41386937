"""Choices from a finite list: one value, or several."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from hwnas.space.expression import MutableExpression
from hwnas.space.mutable import LabeledMutable

_UNSET: Any = object()
_TOLERANCE = 1e-6


class _ListChoice(LabeledMutable, MutableExpression):
    """What a choice of one and a choice of several values have in common."""

    values: list[Any]
    weights: list[float] | None

    def __init__(self, values: Iterable[Any], label: str | None) -> None:
        super().__init__(label)
        self.values = [_plain(value, self.label) for value in values]
        if not self.values:
            raise ValueError(f"{self.kind} {self.label!r} has no values; give at least one")
        self._places: dict[Any, int] = {}
        for place, value in enumerate(self.values):
            if value in self._places:
                raise ValueError(
                    f"{self.kind} {self.label!r} has the value {value!r} twice, in {self.values!r}; "
                    "values must differ (1, 1.0 and True count as equal)"
                )
            self._places[value] = place

    def _check_weights(self, weights: Sequence[float] | None, *, normalised: bool) -> list[float] | None:
        if weights is None:
            return None
        numbers = [float(weight) for weight in weights]
        where = f"weights of {self.kind} {self.label!r}"
        if len(numbers) != len(self.values):
            raise ValueError(f"{where}: got {len(numbers)} weights for {len(self.values)} values")
        if not all(0 <= number <= 1 for number in numbers):
            raise ValueError(f"{where}: each must lie between 0 and 1, got {numbers!r}")
        if normalised and abs(math.fsum(numbers) - 1) > _TOLERANCE:
            raise ValueError(f"{where}: they must sum to 1, got {numbers!r} with sum {math.fsum(numbers)!r}")
        return numbers

    def compute(self, lookup: Callable[[LabeledMutable], Any]) -> Any:
        """Look the value up."""
        return lookup(self)

    def text(self) -> str:
        """Return the label in braces."""
        return f"{{{self.label}}}"

    def _place(self, value: Any) -> int | None:
        try:
            return self._places.get(value)
        except TypeError:  # unhashable, so surely none of the values
            return None

    def _restore_one(self, data: Any) -> Any:
        for value in self.values:
            if type(_jsonable(value)) is type(data) and _jsonable(value) == data:
                return value
        return data


class Categorical(_ListChoice):
    """A choice of one value from a list.

    Parameters
    ----------
    values : iterable of bool, int, float, str, None, or tuples of those
        The values, all different.
    weights : sequence of float, optional
        Probability of each value; they sum to 1. All equal by default.
    default : Any, optional
        The default value; the first one if not given.
    label : str, optional
        The label, relative to the current label scope.

    Raises
    ------
    ValueError
        If values are missing, repeated or not finite, or the weights do not fit.
    TypeError
        If a value is of another type.
    """

    kind = "categorical"

    def __init__(
        self,
        values: Iterable[Any],
        *,
        weights: Sequence[float] | None = None,
        default: Any = _UNSET,
        label: str | None = None,
    ) -> None:
        super().__init__(values, label)
        self.weights = self._check_weights(weights, normalised=True)
        self._cumulative = list(itertools.accumulate(self.weights or [1.0] * len(self.values)))
        self._default = self.values[0]
        if default is not _UNSET:
            reason = self.check_value(default)
            if reason is not None:
                raise ValueError(f"default of {self.kind} {self.label!r}: {reason}")
            self._default = self.canonical(default)

    def check_value(self, value: Any) -> str | None:
        """Say what is wrong with a value, None if it is one of the list."""
        return None if self._place(value) is not None else f"{value!r} is not one of the values {self.values!r}"

    def canonical(self, value: Any) -> Any:
        """Return the equal value of the list."""
        place = self._place(value)
        return value if place is None else self.values[place]

    def restore(self, data: Any) -> Any:
        """Return the value that JSON wrote as `data`."""
        return self._restore_one(data)

    def default_value(self) -> Any:
        """Return the default value."""
        return self._default

    def random_value(self, rng: np.random.Generator) -> Any:
        """Draw a value from the weights."""
        total = self._cumulative[-1]
        # Rounding may give the total itself, which is to the right of the last value of positive weight.
        number = min(rng.random() * total, math.nextafter(total, 0))
        return self.values[bisect.bisect_right(self._cumulative, number)]

    def grid_values(self, granularity: int | None = None) -> Iterator[Any]:
        """Iterate over the values in order; the granularity does not matter."""
        return iter(self.values)

    def count_values(self) -> int:
        """Return the number of values."""
        return len(self.values)

    def probability(self, value: Any) -> float:
        """Return the weight of a value, 0 if it is none of the list."""
        place = self._place(value)
        if place is None:
            return 0.0
        return 1 / len(self.values) if self.weights is None else self.weights[place] / math.fsum(self.weights)

    def describe(self) -> dict[str, Any]:
        """Describe the choice in JSON types."""
        return {
            "kind": self.kind,
            "values": _jsonable(self.values),
            "weights": self.weights,
            "default": _jsonable(self._default),
        }

    def __repr__(self) -> str:
        """Return the values, the weights and the label."""
        weights = "" if self.weights is None else f", weights={self.weights!r}"
        default = "" if self._place(self._default) == 0 else f", default={self._default!r}"
        return f"{type(self).__name__}({self.values!r}{weights}{default}, label={str(self.label)!r})"


class CategoricalMultiple(_ListChoice):
    """A choice of several values from a list. The value in a sample is a list, in the order of `values`.

    In arithmetic it stands for that list: ``choice[0]`` is the first value that is chosen.

    Parameters
    ----------
    values : iterable of bool, int, float, str, None, or tuples of those
        The values, all different.
    n_chosen : int, optional
        How many values are chosen. None chooses any subset but the empty one: what is chosen is usually added
        or concatenated, and nothing has no sum.
    weights : sequence of float, optional
        With `n_chosen`: weights that sum to 1, of drawing one after the other without replacement. Without
        it: the probability with which each value is in the subset, independently, given that the subset is
        not empty (0.5 by default, which makes all subsets equally likely).
    default : list, optional
        The default value; the first `n_chosen` values if not given, all of them if `n_chosen` is None.
    label : str, optional
        The label, relative to the current label scope.

    Raises
    ------
    ValueError
        If values are missing, repeated or not finite, or `n_chosen`, the weights or the default do not fit.
    TypeError
        If a value is of another type.
    """

    kind = "categorical_multiple"

    def __init__(
        self,
        values: Iterable[Any],
        n_chosen: int | None = None,
        *,
        weights: Sequence[float] | None = None,
        default: Sequence[Any] | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__(values, label)
        if n_chosen is not None and not (isinstance(n_chosen, int) and 1 <= n_chosen <= len(self.values)):
            raise ValueError(
                f"n_chosen of {self.kind} {self.label!r} must be None or an int from 1 to "
                f"{len(self.values)}, the number of values; got {n_chosen!r}"
            )
        self.n_chosen = n_chosen
        self.weights = self._check_weights(weights, normalised=n_chosen is not None)
        if self.weights is not None and sum(weight > 0 for weight in self.weights) < (n_chosen or 1):
            raise ValueError(
                f"weights of {self.kind} {self.label!r}: {n_chosen or 1} values are chosen but fewer have "
                f"a positive weight, in {self.weights!r}"
            )
        self._default = self.values[:n_chosen]
        if default is not None:
            reason = self.check_value(list(default))
            if reason is not None:
                raise ValueError(f"default of {self.kind} {self.label!r}: {reason}")
            self._default = self.canonical(list(default))

    def check_value(self, value: Any) -> str | None:
        """Say what is wrong with a value, None if it is a list of the right number of values in order."""
        expected = "any but no" if self.n_chosen is None else self.n_chosen
        if not isinstance(value, list):
            return f"{value!r} is not a list; expected a list of {expected} of {self.values!r}"
        places = []
        for item in value:
            place = self._place(item)
            if place is None:
                return f"{item!r} in {value!r} is not one of the values {self.values!r}"
            places.append(place)
        if len(set(places)) < len(places):
            return f"{value!r} names a value twice"
        if not places or (self.n_chosen is not None and len(places) != self.n_chosen):
            return f"{value!r} has {len(places)} values; expected {self.n_chosen or 'at least 1'}"
        if places != sorted(places):
            ordered = [self.values[place] for place in sorted(places)]
            return f"{value!r} is not in the order of the values; write {ordered!r}"
        return None

    def canonical(self, value: Any) -> Any:
        """Return a new list with the equal values of this choice."""
        places = [self._place(item) for item in value]
        return [item if place is None else self.values[place] for item, place in zip(value, places, strict=True)]

    def restore(self, data: Any) -> Any:
        """Return the value that JSON wrote as `data`."""
        return [self._restore_one(item) for item in data] if isinstance(data, list) else data

    def default_value(self) -> list[Any]:
        """Return the default value, a new list."""
        return list(self._default)

    def random_value(self, rng: np.random.Generator) -> list[Any]:
        """Draw a value from the weights, a new list."""
        n = len(self.values)
        if self.n_chosen is not None:
            weights = None if self.weights is None else np.array(self.weights) / math.fsum(self.weights)
            places = sorted(rng.choice(n, self.n_chosen, replace=False, p=weights).tolist())
            return [self.values[place] for place in places]
        chosen: list[Any] = []
        # While nothing is taken, a value is taken with its probability given that not all stay out.
        for share, some, value in zip(self._shares(), self._some_from(), self.values, strict=True):
            if rng.random() < (share if chosen else share / some if some else 0.0):
                chosen.append(value)
        return chosen

    def grid_values(self, granularity: int | None = None) -> Iterator[list[Any]]:
        """Iterate over the lists, small ones first, each a new list; the granularity does not matter."""
        sizes = range(1, len(self.values) + 1) if self.n_chosen is None else [self.n_chosen]
        return (list(chosen) for size in sizes for chosen in itertools.combinations(self.values, size))

    def count_values(self) -> int:
        """Return the number of lists."""
        n = len(self.values)
        return 2**n - 1 if self.n_chosen is None else math.comb(n, self.n_chosen)

    def probability(self, value: Any) -> float:
        """Return the probability with which `random_value` draws a list."""
        if self.check_value(value) is not None:
            return 0.0
        if self.n_chosen is None:
            inside = {self._place(item) for item in value}
            shares = self._shares()
            mass = math.prod(share if place in inside else 1 - share for place, share in enumerate(shares))
            return mass / self._some_from()[0]
        if self.weights is None:
            return 1 / self.count_values()
        total = math.fsum(self.weights)
        return _without_replacement(tuple(self.weights[self._places[item]] / total for item in value))

    def describe(self) -> dict[str, Any]:
        """Describe the choice in JSON types."""
        return {
            "kind": self.kind,
            "values": _jsonable(self.values),
            "n_chosen": self.n_chosen,
            "weights": self.weights,
            "default": _jsonable(self._default),
        }

    def _some_from(self) -> list[float]:
        """Return, for each place, the probability that any value from there on is in the subset."""
        some = [0.0]
        for share in reversed(self._shares()):
            some.append(share + (1 - share) * some[-1])
        return some[:0:-1]

    def _shares(self) -> list[float]:
        return [0.5] * len(self.values) if self.weights is None else self.weights

    def __repr__(self) -> str:
        """Return the values, their number, the weights and the label."""
        weights = "" if self.weights is None else f", weights={self.weights!r}"
        default = "" if self._default == self.values[: self.n_chosen] else f", default={self._default!r}"
        return (
            f"{type(self).__name__}({self.values!r}, n_chosen={self.n_chosen!r}{weights}{default}, "
            f"label={str(self.label)!r})"
        )


@lru_cache(maxsize=4096)
def _without_replacement(weights: tuple[float, ...]) -> float:
    """Return the probability of drawing just the items of these weights, in any order, without replacement.

    The weights are a part of weights that sum to 1. The item drawn last is taken out in turn: 2^n terms, not
    n!.
    """
    if not weights:
        return 1.0
    total = 0.0
    for last, weight in enumerate(weights):
        before = weights[:last] + weights[last + 1 :]
        rest = 1 - math.fsum(before)
        if weight > 0 and rest > 0:
            total += _without_replacement(before) * min(weight / rest, 1.0)
    return total


def _plain(value: Any, label: str) -> Any:
    """Return a value in plain Python types, or raise."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple):
        return tuple(_plain(item, label) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{label!r}: the value {value!r} is not finite, so it cannot be stored")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    advice = "; use a tuple" if isinstance(value, list) else ""
    raise TypeError(
        f"{label!r}: the value {value!r} is of type {type(value).__name__}; expected bool, int, float, str, "
        f"None, or a tuple of those{advice}"
    )


def _jsonable(value: Any) -> Any:
    return [_jsonable(item) for item in value] if isinstance(value, (list, tuple)) else value
