"""What the latency of a member adds up to, and of what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hwnas.cost import CostModel
from hwnas.space import Sample


@dataclass(frozen=True)
class Addition:
    """A sum of parts or kernels for every member of a space.

    Parameters
    ----------
    cost_model : CostModel
        Gives the sum, in milliseconds.
    breakdown : callable
        Gives for a member the name of each addend and its milliseconds, the largest first.
    """

    cost_model: CostModel
    breakdown: Callable[[Sample], list[tuple[str, float]]]
