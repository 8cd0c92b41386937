"""A check that a cost model and a space speak of the same labels."""

from __future__ import annotations

from collections.abc import Mapping

from hwnas.cost import CostModel
from hwnas.space.node import Dimension


def cost_labels(cost_model: CostModel, dimensions: Mapping[str, Dimension], role: str) -> list[str]:
    """Return the labels on which a cost depends, after checking them against the space.

    Parameters
    ----------
    cost_model : CostModel
        The cost.
    dimensions : mapping of str to Dimension
        The dimensions of the space.
    role : str
        What the cost is used for, for the message.

    Raises
    ------
    ValueError
        When the cost depends on a label that the space lacks, or knows other values of it.
    """
    labels = list(cost_model.factor_labels)
    for label in labels:
        if label not in dimensions:
            raise ValueError(
                f"{role}: its cost depends on the label {label!r}, which the space does not have; the space "
                f"has {sorted(map(str, dimensions))}. Build the profiler from this space, before the search "
                "changes it"
            )
        here, there = list(dimensions[label].grid_values()), list(cost_model.domain.values[label])
        if here != there:
            raise ValueError(
                f"{role}: its cost knows the values {there} of the label {label!r}, the space has {here}. "
                "Build the profiler from this space"
            )
    return labels
