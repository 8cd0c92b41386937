"""Default and random samples of a space."""

from __future__ import annotations

from typing import Any

import numpy as np

from hwnas.errors import SampleError
from hwnas.space import counting
from hwnas.space.node import Dimension
from hwnas.space.walk import Structure, UncountableError

FIRST_TRIES = 100
"""Draws before the valid points are enumerated."""

LAST_TRIES = 10_000
"""Draws when they cannot be enumerated."""


def default(structure: Structure, memo: dict[str, Any] | None) -> dict[str, Any]:
    """Return the sample of all defaults; see `Mutable.default`."""
    return finish(_default(structure, decided(structure.dimensions, memo)), memo)


def robust_default(structure: Structure, memo: dict[str, Any] | None, tries: int, seed: int) -> dict[str, Any]:
    """Return the default, or a random sample if it is not valid; see `Mutable.robust_default`."""
    fixed = decided(structure.dimensions, memo)
    sample = _default(structure, fixed)
    if structure.verdict(sample) is not True:
        sample = _draw(structure, fixed, np.random.default_rng(seed), tries)
    return finish(sample, memo)


def draw(
    structure: Structure, memo: dict[str, Any] | None, random_state: int | np.random.Generator | None
) -> dict[str, Any]:
    """Draw a sample; see `Mutable.random`."""
    fixed = decided(structure.dimensions, memo)
    return finish(_draw(structure, fixed, np.random.default_rng(random_state), FIRST_TRIES), memo)


def _default(structure: Structure, fixed: dict[str, Any]) -> dict[str, Any]:
    return {
        label: fixed[label] if label in fixed else dimension.default_value()
        for label, dimension in structure.dimensions.items()
    }


def decided(dimensions: dict[str, Dimension], memo: dict[str, Any] | None) -> dict[str, Any]:
    """Return the part of `memo` that belongs to these dimensions.

    Raises
    ------
    SampleError
        If a value in `memo` is not one of its dimension.
    """
    fixed: dict[str, Any] = {}
    if not memo:
        return fixed
    for label, dimension in dimensions.items():
        if label in memo:
            reason = dimension.check_value(memo[label])
            if reason is not None:
                raise SampleError(f"the value given in memo is wrong: {reason}", (label,))
            fixed[label] = dimension.canonical(memo[label])
    return fixed


def fresh(sample: dict[str, Any]) -> dict[str, Any]:
    """Copy a sample so that no list in it is shared."""
    return {label: list(value) if isinstance(value, list) else value for label, value in sample.items()}


def finish(sample: dict[str, Any], memo: dict[str, Any] | None) -> dict[str, Any]:
    """Note in `memo` what was decided, and return the sample."""
    if memo is not None:
        for label, value in sample.items():
            memo.setdefault(label, value)
    return fresh(sample)


def _independent(structure: Structure, fixed: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Draw every label that is not fixed from its own weights."""
    return {
        label: fixed[label] if label in fixed else dimension.random_value(rng)
        for label, dimension in structure.dimensions.items()
    }


def _draw(structure: Structure, fixed: dict[str, Any], rng: np.random.Generator, tries: int) -> dict[str, Any]:
    """Draw given the constraints: by rejection, then exactly, then by long rejection."""
    for _ in range(tries):
        sample = _independent(structure, fixed, rng)
        if structure.verdict(sample) is True:
            return sample
    try:
        chosen = counting.draw(structure, fixed, rng)
    except UncountableError as problem:
        for _ in range(LAST_TRIES):
            sample = _independent(structure, fixed, rng)
            if structure.verdict(sample) is True:
                return sample
        raise SampleError(
            f"none of {tries + LAST_TRIES} random samples satisfies the constraints ({_texts(structure)}), "
            f"and the valid ones cannot be enumerated: {problem}. Loosen the constraints or shrink the space"
        ) from problem
    if chosen is None:
        given = f" with {fixed!r} given" if fixed else ""
        raise SampleError(
            f"no sample of positive weight satisfies the constraints ({_texts(structure)}){given}. "
            "Loosen the constraints, or add values that satisfy them"
        )
    return _independent(structure, {**fixed, **chosen}, rng)


def _texts(structure: Structure) -> str:
    return "; ".join(repr(constraint) for constraint in structure.constraints())
