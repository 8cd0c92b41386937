"""What makes two samples the same architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hwnas.space import Mutable, Sample
from hwnas.space.node import Dimension, Node

Key = tuple[tuple[str, str], ...]


def active_labels(space: Mutable, sample: Sample) -> list[str]:
    """Return the labels that have an effect under a sample, in the order of the space.

    A label that only a constraint looks at has no effect on what is built.
    """
    found: dict[str, None] = {}
    structure = space.structure()

    def visit(mutable: Node) -> None:
        if mutable.is_constraint:
            return
        label = mutable.own_label()
        if label is not None:
            found[str(label)] = None
        for sub in structure.active(mutable, sample):
            visit(sub)

    visit(space)
    return list(found)


def architecture_key(space: Mutable, dimensions: Mapping[str, Dimension], sample: Sample) -> Key:
    """Return a key that is equal for samples that give the same architecture.

    Parameters
    ----------
    space : Mutable
        The space.
    dimensions : mapping of str to Dimension
        Its `simplify()`.
    sample : dict
        A valid sample.

    Returns
    -------
    tuple
        The active labels and their values as text, sorted by label. Keys can be compared, whatever the types
        of the values.
    """

    def text(label: str) -> str:
        value: Any = dimensions[label].canonical(sample[label])
        return repr(value)

    return tuple(sorted((label, text(label)) for label in active_labels(space, sample)))
