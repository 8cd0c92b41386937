"""The base of everything that holds choices, and the base of everything that is one choice."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from hwnas.errors import SampleError
from hwnas.space import counting, grid, sampling
from hwnas.space.labels import resolve_label
from hwnas.space.node import Dimension, Node, Sample
from hwnas.space.walk import Structure, dimensions


class Mutable(Node):
    """Something that holds choices: with a sample, `freeze` turns it into a value.

    A subclass implements `freeze`, and `sub_mutables` if other mutables stand below it. The class needs no
    ``__init__`` and no attributes, so it combines with any other base, `torch.nn.Module` included.
    """

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield the direct sub-mutables; see `Node.sub_mutables` for what a subclass has to keep to."""
        return iter(())

    def path_piece(self, sub: Mutable) -> str:
        """Name a sub-mutable in the path of an error message; ``""`` adds no piece."""
        return ""

    def structure(self) -> Structure:
        """Return the dimensions of the space and where its constraints are, looked up for many walks."""
        return Structure(self)

    @abstractmethod
    def freeze(self, sample: Sample) -> Any:
        """Return the value that the sample chooses. Implementations call `validate` first."""

    def simplify(self, is_leaf: Callable[[Mutable], bool] | None = None) -> dict[str, LabeledMutable]:
        """List the dimensions of the space.

        Parameters
        ----------
        is_leaf : callable, optional
            Mutables for which it is true are not looked into.

        Returns
        -------
        dict
            Label to mutable, in order of first appearance, each label once.

        Raises
        ------
        ValueError
            If two mutables of one label differ.
        """
        found: dict[str, LabeledMutable] = dimensions(self, is_leaf)  # type: ignore[arg-type, assignment]
        return found

    def check_contains(self, sample: Sample) -> SampleError | None:
        """Look for what is wrong with a sample.

        Labels that the space does not have are ignored, and so are those that are not active under the
        sample.

        Returns
        -------
        SampleError or None
            The first fault, with the path to it; None if the sample is a point of this space.
        """
        for sub in self.sub_mutables(sample):
            error = sub.check_contains(sample)
            if error is not None:
                piece = self.path_piece(sub)
                return SampleError(error.message, (piece, *error.path)) if piece else error
        return None

    def contains(self, sample: Sample) -> bool:
        """Tell whether the sample is a point of this space."""
        return self.check_contains(sample) is None

    def validate(self, sample: Sample) -> None:
        """Raise unless the sample is a point of this space.

        Raises
        ------
        SampleError
            With the path to the mutable at fault.
        """
        error = self.check_contains(sample)
        if error is not None:
            raise error

    def default(self, memo: Sample | None = None) -> Sample:
        """Return the sample of all default values, whether or not it satisfies the constraints.

        Parameters
        ----------
        memo : dict, optional
            Labels that are already decided. What is decided here is added to it.

        Returns
        -------
        dict
            A value for each label of `simplify`.
        """
        return sampling.default(self.structure(), memo)

    def robust_default(self, memo: Sample | None = None, tries: int = 1000, seed: int = 0) -> Sample:
        """Return the default sample if it satisfies the constraints, else a seeded random one that does.

        Parameters
        ----------
        memo : dict, optional
            Labels that are already decided. What is decided here is added to it.
        tries : int, optional
            Number of random draws before the valid points are enumerated.
        seed : int, optional
            Seed of the draws.

        Returns
        -------
        dict
            A value for each label of `simplify`.

        Raises
        ------
        SampleError
            If no valid sample exists, or none was found and the space cannot be enumerated.
        """
        return sampling.robust_default(self.structure(), memo, tries, seed)

    def random(self, memo: Sample | None = None, random_state: int | np.random.Generator | None = None) -> Sample:
        """Draw a sample from the weights of the labels, conditioned on the constraints.

        Parameters
        ----------
        memo : dict, optional
            Labels that are already decided. What is decided here is added to it.
        random_state : int, Generator or None, optional
            A seed (the same seed gives the same sample), or a generator that is advanced. None is not
            reproducible.

        Returns
        -------
        dict
            A value for each label of `simplify`, active or not.

        Raises
        ------
        SampleError
            If no valid sample exists, or none was found and the space cannot be enumerated.
        """
        return sampling.draw(self.structure(), memo, random_state)

    def grid(
        self, memo: Sample | None = None, granularity: int | None = None, *, active_only: bool = False
    ) -> Iterator[Sample]:
        """Iterate over all points that satisfy the constraints, each once and each a new dict.

        Parameters
        ----------
        memo : dict, optional
            Labels that are already decided. It is read when iteration starts and never written.
        granularity : int, optional
            Number of points of a numerical dimension. None takes every value, for which the dimension must be
            quantised and bounded.
        active_only : bool, optional
            Leave inactive labels out, and give each assignment of the active ones once.

        Yields
        ------
        dict
            The last label varies fastest.
        """
        walk = grid.active_points if active_only else grid.points
        return walk(self.structure(), memo, granularity)

    def size(self, active_only: bool = False) -> int:
        """Count the points that `grid` iterates over, without iterating over them.

        Independent parts are counted apart and multiplied; the labels of a constraint are enumerated, and so
        are labels that several conditional parts share.

        Parameters
        ----------
        active_only : bool, optional
            Count assignments of active labels only.

        Returns
        -------
        int
            The exact number.

        Raises
        ------
        ValueError
            If a dimension is continuous, or the parts that hang together are too many to enumerate.
        """
        return counting.size(self.structure(), active_only)


class LabeledMutable(Mutable, Dimension):
    """One dimension of a space: a label and the values that it may take.

    Parameters
    ----------
    label : str or None
        The label, relative to the current label scope; None makes an automatic one.
    """

    kind: ClassVar[str] = "choice"

    def __init__(self, label: str | None = None) -> None:
        self.label = resolve_label(label, self.kind)

    def own_label(self) -> str | None:
        """Return the label."""
        return self.label

    def equals(self, other: Any) -> bool:
        """Tell whether the other mutable has the same label, kind, values, weights and default."""
        if other is self:
            return True
        return self.label == other.label and json.dumps(self.describe()) == json.dumps(other.describe())

    def check_contains(self, sample: Sample) -> SampleError | None:
        """Check the value of the label, then what stands below."""
        if self.label not in sample:
            return SampleError(
                f"the sample has no value for this label; it has {sorted(map(str, sample))}", (self.label,)
            )
        reason = self.check_value(sample[self.label])
        if reason is not None:
            return SampleError(reason, (self.label,))
        return super().check_contains(sample)

    def freeze(self, sample: Sample) -> Any:
        """Return the value of the label."""
        self.validate(sample)
        return self.canonical(sample[self.label])
