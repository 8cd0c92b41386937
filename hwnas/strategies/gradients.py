"""Gradients as autograd gives them: None stands for nothing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Gradients = Sequence[Tensor | None]


def added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the sum of two gradients of one parameter."""
    return one if other is None else other if one is None else one + other
