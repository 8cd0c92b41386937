"""What strategies with shared weights do to keep a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import lightning as L
import numpy as np

from hwnas.evaluators import Evaluator
from hwnas.nn import ModelSpace
from hwnas.profilers.profiler import Profiler
from hwnas.space import Sample
from hwnas.strategies.budget import Budget, as_budget, joined
from hwnas.strategies.feasible import Filter
from hwnas.strategies.oneshot import OneShotStrategy
from hwnas.strategies.search_reading import WatchedCost
from hwnas.supernet import MutationHook


class BudgetedOneShot(OneShotStrategy):
    """A one-shot strategy that returns members within a budget.

    Subclasses search, and rank members, within `feasible`. Where a limit is one of measured latency, the members that
    are exported are measured as a whole, best first, and those that take too long are passed over; see
    `Budget.measured`.

    Parameters
    ----------
    mutation_hooks : sequence of callable
        See `OneShotStrategy`.
    budget : Budget or mapping of str to float, optional
        The largest cost for each name, such as ``{"latency_ms": 3.0}``; see `Budget`.
    profilers : Profiler or sequence of Profiler, optional
        Of the costs that it names.
    seed : int or numpy.random.Generator
        See `OneShotStrategy`.
    """

    filter: Filter | None = None

    def __init__(
        self,
        mutation_hooks: Sequence[MutationHook] = (),
        *,
        budget: Budget | Mapping[str, float] | None = None,
        profilers: Profiler | Sequence[Profiler] | None = None,
        seed: int | np.random.Generator = 0,
    ) -> None:
        super().__init__(mutation_hooks, seed=seed)
        self.budget = as_budget(budget, profilers)

    def feasible(self) -> Filter | None:
        """Return what tells whether a sample is within the budget and passes the filter; None without either.

        Raises
        ------
        BudgetError
            When a limit is below the minimum; it names the minimum and what blocks it.
        ValueError
            When a profiler is missing.
        """
        return joined(self.filter, self.budget)

    def run(
        self,
        space: ModelSpace,
        evaluator: Evaluator,
        *,
        callbacks: Sequence[L.Callback] = (),
        ckpt_path: str | Path | None = None,
    ) -> None:
        """Turn the space into a super-net and train it; see `OneShotStrategy.run`.

        Profilers that the budget lacks are built first; see `Budget`.
        """
        if self.budget is not None and self.budget.missing and isinstance(space, ModelSpace):
            self.check_evaluator(evaluator)
            self.budget = self.budget.completed(space, evaluator)
        super().run(space, evaluator, callbacks=callbacks, ckpt_path=ckpt_path)

    def watched_costs(self) -> dict[str, WatchedCost]:
        """Return the costs of the budget; see `OneShotStrategy.watched_costs`."""
        if self.budget is None:
            return {}
        bounds, profilers = self.budget.bounds, self.budget.profilers
        return {f"budget/{name}/expected": WatchedCost(profilers[name], bound) for name, bound in bounds.items()}

    def best_samples(self) -> Iterator[Sample]:
        """Yield the samples of `ranked_samples` that meet measured limits; see `Budget.measured`."""
        ranked = self.ranked_samples()
        return ranked if self.budget is None else self.budget.measured(ranked)

    def best_sample(self) -> Sample:
        """Return the best feasible sample."""
        return next(self.best_samples())
