"""The labels of a space with their values, and the way from values to option indices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from hwnas.errors import SampleError

# Samples converted at a time, so that they stay in the cache.
_SAMPLES = 1024


def canonical_key(value: Any) -> Hashable:
    """Give a hashable stand-in that is equal for equal values; lists and tuples of equal items are equal."""
    if isinstance(value, (list, tuple)):
        return tuple(canonical_key(item) for item in value)
    if isinstance(value, (set, frozenset)):
        return frozenset(canonical_key(item) for item in value)
    if isinstance(value, Mapping):
        return frozenset((canonical_key(k), canonical_key(v)) for k, v in value.items())
    if not isinstance(value, Hashable):
        raise TypeError(f"a value of type {type(value).__name__} cannot be an option: {value!r}")
    return value


class Domain:
    """Labels and their values, in order.

    Parameters
    ----------
    values : mapping of str to sequence
        For every label its values; at least one, all different.

    Raises
    ------
    ValueError
        If a label has no value or two equal ones.
    """

    def __init__(self, values: Mapping[str, Sequence[Any]]) -> None:
        self.values: dict[str, tuple[Any, ...]] = {label: tuple(options) for label, options in values.items()}
        self.labels: tuple[str, ...] = tuple(self.values)
        self.sizes: tuple[int, ...] = tuple(len(options) for options in self.values.values())
        self.position: dict[str, int] = {label: i for i, label in enumerate(self.labels)}
        self._lookup: dict[str, dict[Hashable, int]] = {}
        for label, options in self.values.items():
            if not options:
                raise ValueError(f"label {label!r} has no values; give it at least one")
            lookup = {canonical_key(option): i for i, option in enumerate(options)}
            if len(lookup) != len(options):
                raise ValueError(f"label {label!r}: two of its values are equal: {list(options)}")
            self._lookup[label] = lookup

    def __len__(self) -> int:
        """Give the number of labels."""
        return len(self.labels)

    def union(self, other: Domain) -> Domain:
        """Give the labels of both, those of this one first.

        Raises
        ------
        ValueError
            If a label has other values there than here.
        """
        for label in self.values.keys() & other.values.keys():
            if (mine := self.values[label]) != (theirs := other.values[label]):
                raise ValueError(f"the label {label!r} has the values {mine} in one model and {theirs} in the other")
        return Domain({**self.values, **other.values})

    def columns(self, labels: Sequence[str], samples: Sequence[Mapping[str, Any]]) -> list[npt.NDArray[np.intp]]:
        """Give the option indices of some labels in every sample.

        Returns
        -------
        list of ndarray, shape (n_samples,)
            One for each of `labels`.

        Raises
        ------
        SampleError
            If a label is missing from a sample or has a value that is not in the domain.
        """
        n = len(samples)
        if not labels:
            return []
        try:
            # Sample by sample, since a dictionary that has left the cache costs more than all look-ups in it.
            get = itemgetter(*labels)
            lookups = [self._lookup[label].__getitem__ for label in labels]
            listed = [_flat_lists(self.values[label]) for label in labels]
            found = np.empty((len(labels), n), dtype=np.intp)
            for start in range(0, n, _SAMPLES):
                values = [get(sample) for sample in samples[start : start + _SAMPLES]]
                columns = zip(*values, strict=True) if len(labels) > 1 else [values]
                for row, lookup, of_lists, column in zip(found, lookups, listed, columns, strict=True):
                    keys = map(tuple, column) if of_lists else column
                    row[start : start + len(values)] = np.fromiter(map(lookup, keys), np.intp, len(values))
            return list(found)
        except (
            KeyError,
            TypeError,
            ValueError,
        ):  # an unhashable value, no sample, or something to complain about
            return [
                np.array([self._index(label, s, i) for i, s in enumerate(samples)], dtype=np.intp) for label in labels
            ]

    def _index(self, label: str, sample: Mapping[str, Any], number: int) -> int:
        if label not in sample:
            raise SampleError(f"sample {number} lacks the label {label!r}, which the cost depends on", (label,))
        value = sample[label]
        try:
            return self._lookup[label][canonical_key(value)]
        except (KeyError, TypeError):
            options = self.values[label]
            shown = ", ".join(map(repr, options[:20])) + (", ..." if len(options) > 20 else "")
            raise SampleError(
                f"sample {number} has {value!r} for the label {label!r}; expected one of {shown}", (label,)
            ) from None

    def sample(self, indices: Sequence[int] | npt.NDArray[np.intp]) -> dict[str, Any]:
        """Give the sample for option indices, shape (n_labels,). Lists are copied."""
        return {
            label: list(value) if isinstance(value := options[int(index)], list) else value
            for (label, options), index in zip(self.values.items(), indices, strict=True)
        }


def _flat_lists(options: Sequence[Any]) -> bool:
    """Tell whether all options are flat lists, and of such items that no text turned into a tuple equals one."""
    return all(
        isinstance(value, (list, tuple))
        and not any(isinstance(item, (str, list, tuple, set, Mapping)) for item in value)
        for value in options
    )
