"""Scores the members that a search draws, instead of evolving members."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hwnas.space import Sample
from hwnas.strategies.architecture_key import Key, architecture_key
from hwnas.strategies.feasible import FeasibleSampler
from hwnas.strategies.subnet_search import RankedSubnet, SubnetSearch

_DRAWS_IN_VAIN = 1_000


class DrawnSearch(SubnetSearch):
    """Scores members in the order in which they are drawn.

    Parameters
    ----------
    draws : callable
        Takes the sampler, whose `accepts` says what is feasible; yields feasible samples.
    value : callable, optional
        Takes the score of a member and the member; gives by what it is ranked, the score unless given.
    **kwargs
        See `SubnetSearch`.
    """

    def __init__(
        self,
        draws: Callable[[FeasibleSampler], Iterator[Sample]],
        *,
        value: Callable[[float, Sample], float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.draws = draws
        self.value = value

    def _value(self, score: float, sample: Sample) -> float:
        return score if self.value is None else self.value(score, sample)

    def _candidates(self, sampler: FeasibleSampler, scored: dict[Key, RankedSubnet]) -> Iterator[tuple[Sample, Key]]:
        in_vain = 0
        for sample in self.draws(sampler):
            key = architecture_key(sampler.space, sampler.dimensions, sample)
            if key not in scored:
                in_vain = 0
                yield sample, key
            else:
                in_vain += 1
            if len(scored) >= self.evaluations or in_vain >= _DRAWS_IN_VAIN:
                return
