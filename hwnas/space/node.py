"""What the algorithms on a space need to know of the mutables that it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from hwnas.space.labels import Label

Sample = dict[str, Any]
"""One point of a space: the value of every label."""


class Node(ABC):  # noqa: B024 - everything has a default; a subclass says what differs
    """A part of a space: what stands below it, and what it adds itself."""

    is_constraint: ClassVar[bool] = False

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Node]:
        """Yield the direct sub-mutables.

        Parameters
        ----------
        sample : dict, optional
            Without a sample, all sub-mutables are yielded; with one, only those that are *active* under it.

        Yields
        ------
        Mutable
            A mutable that decides which others are active must come before them: the iterator is advanced
            only after what it has yielded was found valid. Read the sample by label (``sample[label]``) and
            pass it on as it is, without copying it: samples under construction are handed in as well. What is
            active depends on nothing but the values that are read.
        """
        return iter(())

    def own_label(self) -> str | None:
        """Return the label that this mutable itself adds to the space, None if it adds none."""
        return None

    def holds(self, sample: Sample) -> bool:
        """Tell whether a sample meets the mutable's own condition; constraints override this."""
        return True


class Dimension(Node):
    """A label and the values that it may take."""

    label: Label

    @abstractmethod
    def check_value(self, value: Any) -> str | None:
        """Say what is wrong with a value, None if it is one of this dimension."""

    @abstractmethod
    def default_value(self) -> Any:
        """Return the default value."""

    @abstractmethod
    def random_value(self, rng: np.random.Generator) -> Any:
        """Draw a value from the weights."""

    @abstractmethod
    def grid_values(self, granularity: int | None = None) -> Iterator[Any]:
        """Iterate over the values; see `Mutable.grid`."""

    @abstractmethod
    def count_values(self) -> int:
        """Return the number of values.

        Raises
        ------
        ValueError
            If they cannot be counted.
        """

    @abstractmethod
    def probability(self, value: Any) -> float:
        """Return the probability with which `random_value` draws a value of a countable dimension."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe the dimension, apart from its label, in JSON types. What is described alike is equal."""

    @abstractmethod
    def equals(self, other: Any) -> bool:
        """Tell whether the other dimension has the same label and description."""

    def canonical(self, value: Any) -> Any:
        """Return the dimension's own object for a valid value, for example 1 for ``numpy.int64(1)``."""
        return value

    def restore(self, data: Any) -> Any:
        """Undo what JSON did to a value, where lists stand for tuples. Unknown data is returned as is."""
        return data
