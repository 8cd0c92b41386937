"""`Strategy`: what every search offers."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch import nn

from hwnas.evaluators import Evaluator
from hwnas.nn import ModelSpace
from hwnas.space import Sample


class Strategy(ABC):
    """Explores a model space with an evaluator and names the best members that it finds."""

    @abstractmethod
    def run(
        self,
        space: ModelSpace,
        evaluator: Evaluator,
        *,
        callbacks: Sequence[L.Callback] = (),
        ckpt_path: str | Path | None = None,
    ) -> None:
        """Search.

        Parameters
        ----------
        space : ModelSpace
            The space.
        evaluator : Evaluator
            Trains and scores.
        callbacks : sequence of lightning.Callback
            For whatever is trained with Lightning.
        ckpt_path : path-like, optional
            A checkpoint of the same search to go on from.
        """

    @abstractmethod
    def ranked_samples(self) -> Iterator[Sample]:
        """Yield the samples of the members found, best first."""

    def best_samples(self) -> Iterator[Sample]:
        """Yield the samples of `ranked_samples` that may be exported: all of them, unless a budget is measured."""
        return self.ranked_samples()

    @abstractmethod
    def freeze(self, sample: Sample) -> nn.Module:
        """Return a member as a plain model."""

    def list_models(self, limit: int = 1) -> Iterator[nn.Module]:
        """Yield the best members found, best first, as `freeze` gives them.

        Parameters
        ----------
        limit : int
            How many at most.

        Raises
        ------
        ValueError
            When the limit is less than 1.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}; expected at least 1")
        return (self.freeze(sample) for sample in itertools.islice(self.best_samples(), limit))

    @abstractmethod
    def best_sample(self) -> Sample:
        """Return the sample of the best member found."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on later."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, before `run`."""


def integer_seed(seed: int | np.random.Generator) -> int:
    """Return an integer seed; a generator is drawn from once.

    Raises
    ------
    ValueError
        When the seed is negative.
    """
    number = int(seed.integers(2**31)) if isinstance(seed, np.random.Generator) else int(seed)
    if number < 0:
        raise ValueError(f"seed is {number}; expected at least 0")
    return number
