"""What all strategies that score members one by one have in common."""

from __future__ import annotations

import json
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch import nn

from hwnas.errors import HwnasError, TrainingError
from hwnas.evaluators import Evaluator, Lightning
from hwnas.evaluators.seeding import isolated_seed
from hwnas.nn import ModelSpace
from hwnas.profilers.filters import as_filter
from hwnas.profilers.profiler import Profiler
from hwnas.space import Mutable, MutableList, Sample
from hwnas.space.sampling import fresh
from hwnas.strategies.architecture_key import Key, architecture_key
from hwnas.strategies.base import Strategy, integer_seed
from hwnas.strategies.budget import Budget, as_budget, joined
from hwnas.strategies.feasible import AnyFilter, FeasibleSampler, Filter
from hwnas.strategies.members import Members
from hwnas.strategies.trial import Outcome, Trial, check_state, outcomes_from_state, outcomes_to_state

_KNOWN_IN_A_ROW = 2_000
_log = logging.getLogger(__name__)


class MultiTrialStrategy(Strategy):
    """Hands members to the evaluator, one after the other, and goes by the scores.

    A subclass says which members, in `proposals`. Here each architecture is evaluated once: samples that differ in
    inactive labels only are one, and what is proposed again has the score that it had. A member for which the
    evaluator raises a `HwnasError`, or gives a score that is not finite, is a failed trial, and the search goes on
    with others. Any other exception ends the search.

    Members of a super-net inherit its weights. Its batch normalisation statistics fit none of them, so those of a
    member are estimated on training batches before it is scored, provided that the evaluator is a
    `hwnas.evaluators.Lightning` that does not train (``max_epochs=0``): training adapts them itself, and other
    evaluators have no training data, so that a function has to call `hwnas.evaluators.recalibrate_batch_norm`. Members
    of any other space start from the weights that the space gives them.

    Parameters
    ----------
    evaluations : int
        How many architectures are tried at most, failed ones included.
    mode : {"max", "min"}
        Whether greater or smaller scores are better.
    filter : ProfilerFilter, callable or mapping, optional
        Which samples are tried; a mapping is the dictionary form, ``{"profiler": ..., "min": ..., "max": ...}``.
        The cost that it looks at decides between equal scores. For a super-net, build its profiler before the space is
        changed.
    budget : Budget or mapping of str to float, optional
        Upper limits such as ``{"latency_ms": 3.0}``, of what is tried and returned; see `Budget`. A cost that is
        measured is predicted for what is tried; `best_sample` and `list_models` measure the best members as a whole and
        pass over those that take too long.
    profilers : Profiler or sequence of Profiler, optional
        Of the costs that the budget names.
    max_recalibration_batches : int, optional
        Training batches for the statistics; None for all, 0 to score with those of the super-net.
    probation : int
        The search stops when as many trials as this have all failed at its start.
    on_evaluation : callable, optional
        Called after each evaluation with the trial, the number of trials so far, and the budget.
    seed : int or numpy.random.Generator
        Of everything random, in a function that evaluates too. A Lightning evaluator has a seed of its own.

    Raises
    ------
    ValueError
        When an argument is out of its range.
    """

    def __init__(
        self,
        *,
        evaluations: int = 500,
        mode: str = "max",
        filter: AnyFilter | None = None,
        budget: Budget | Mapping[str, float] | None = None,
        profilers: Profiler | Sequence[Profiler] | None = None,
        max_recalibration_batches: int | None = 20,
        probation: int = 10,
        on_evaluation: Callable[[Trial, int, int], None] | None = None,
        seed: int | np.random.Generator = 0,
    ) -> None:
        name = type(self).__name__
        if evaluations < 1:
            raise ValueError(f"{name}: evaluations is {evaluations}; expected at least 1")
        if mode not in ("max", "min"):
            raise ValueError(f"{name}: mode is {mode!r}; expected 'max' or 'min'")
        if max_recalibration_batches is not None and max_recalibration_batches < 0:
            raise ValueError(
                f"{name}: max_recalibration_batches is {max_recalibration_batches}; expected at least 0, or None"
            )
        self.evaluations = evaluations
        self.mode = mode
        self.filter: Filter | None = as_filter(filter)
        self.budget = as_budget(budget, profilers)
        self.max_recalibration_batches = max_recalibration_batches
        self.probation = probation
        self.on_evaluation = on_evaluation
        self.seed = integer_seed(seed)
        self._members: Members | None = None
        self._trials: dict[Key, Trial] = {}
        self._outcomes: dict[Key, Outcome] = {}
        self._loaded: Mapping[str, Any] | None = None

    @abstractmethod
    def proposals(self, sampler: FeasibleSampler) -> Generator[Sample, Trial, None]:
        """Yield feasible samples; each ``yield`` gives back the trial, an earlier one where it has been tried before.

        The same seed and the same trials have to give the same samples: going on from a state relies on that.

        Parameters
        ----------
        sampler : FeasibleSampler
            Of the space and the filter.
        """

    # -- the search ------------------------------------------------------------------------------------------

    def run(
        self,
        space: ModelSpace,
        evaluator: Evaluator,
        *,
        callbacks: Sequence[L.Callback] = (),
        ckpt_path: str | Path | None = None,
    ) -> None:
        """Search anew, or go on from the state that was loaded since the last run.

        The search ends with the budget, with the proposals, or when nothing new has been proposed for long.

        Parameters
        ----------
        space : ModelSpace
            Plain, or a trained super-net. It is not changed.
        evaluator : Evaluator
            Scores a member. Choices in it are searched too.
        callbacks : sequence of lightning.Callback
            For each fit of a Lightning evaluator; the same objects every time.
        ckpt_path : path-like, optional
            A JSON file that holds what `state_dict` gave.

        Raises
        ------
        TypeError
            When the space, the evaluator or the callbacks are something else.
        ValueError
            When the space has no choices, or the evaluator has no data for what is asked.
        BudgetError
            When nothing feasible was found, or a limit of the budget is below the minimum, which it names.
        SampleError
            When the loaded state belongs to another space.
        TrainingError
            When every trial failed.
        """
        evaluator = self._checked(space, evaluator, callbacks)
        if ckpt_path is not None:
            self.load_state_dict(json.loads(Path(ckpt_path).read_text(encoding="utf-8")))
        if self.budget is not None:
            self.budget = self.budget.completed(space, evaluator)
        feasible = joined(self.filter, self.budget)
        sampler = FeasibleSampler(_searched(space, evaluator), feasible, seed=self.seed)
        members = Members(space, evaluator, max_batches=self.max_recalibration_batches, seed=self.seed)
        self._outcomes = outcomes_from_state(self._loaded or {}, sampler)
        self._members, self._trials, self._loaded = members, {}, None
        proposals = self.proposals(sampler)
        sample = next(proposals, None)
        known_in_a_row = 0
        while sample is not None:
            key = architecture_key(sampler.space, sampler.dimensions, sample)
            known_in_a_row = known_in_a_row + 1 if key in self._trials else 0
            if key not in self._trials:
                self._try(sample, key, evaluator, sampler)
            if len(self._trials) >= self.evaluations or known_in_a_row >= _KNOWN_IN_A_ROW:
                break
            try:
                sample = proposals.send(self._trials[key])
            except StopIteration:
                break
        self._check_success()

    def _try(self, sample: Sample, key: Key, evaluator: Evaluator, sampler: FeasibleSampler) -> None:
        """Add a trial to the history."""
        remembered = self._outcomes.get(key)
        if remembered is None:
            self._outcomes[key] = self._evaluate(sample, evaluator)
        _, score, error = self._outcomes[key]
        number = len(self._trials)
        trial = Trial(number, fresh(sample), score, sampler.cost(sample), key, error)
        self._trials[key] = trial
        if remembered is None:
            if error is not None:
                _log.warning("trial %d failed: %s", number, error)
            if self.on_evaluation is not None:
                self.on_evaluation(trial, number + 1, self.evaluations)
        if number + 1 == self.probation:
            self._check_success()

    def _evaluate(self, sample: Sample, evaluator: Evaluator) -> Outcome:
        try:
            # Weights and whatever the evaluator draws do not depend on what was evaluated before.
            with isolated_seed(self.seed):
                plain = evaluator.freeze(sample) if isinstance(evaluator, Mutable) else evaluator
                score = float(plain.evaluate(self._after_search().freeze(sample)))
        except HwnasError as error:
            return Outcome(fresh(sample), None, f"{type(error).__name__}: {error}")
        if not math.isfinite(score):
            return Outcome(fresh(sample), None, f"the score is {score}; expected a finite number")
        return Outcome(fresh(sample), score, None)

    def _check_success(self) -> None:
        errors = [trial.error for trial in self._trials.values()]
        if errors and None not in errors:
            raise TrainingError(
                f"{type(self).__name__}: all of the {len(errors)} members that were tried failed; the last error: "
                f"{errors[-1]}"
            )

    def _checked(self, space: ModelSpace, evaluator: Evaluator, callbacks: Sequence[L.Callback]) -> Evaluator:
        """Return the evaluator, with the callbacks, after looking at everything."""
        name = type(self).__name__
        if not isinstance(space, ModelSpace):
            raise TypeError(
                f"{name}: expected a hwnas.nn.ModelSpace, got a {type(space).__name__}; derive your model from it"
            )
        if not isinstance(evaluator, Evaluator):
            raise TypeError(
                f"{name}: the evaluator is a {type(evaluator).__name__}; expected a hwnas.evaluators.Evaluator. Wrap a "
                "function in FunctionalEvaluator"
            )
        if not _searched(space, evaluator).simplify():
            raise ValueError(f"{name}: this {type(space).__name__} has no choices, so there is nothing to search")
        if not callbacks:
            return evaluator
        if not isinstance(evaluator, Lightning):
            raise TypeError(
                f"{name}: callbacks are for hwnas.evaluators.Lightning; the evaluator is a {type(evaluator).__name__}"
            )
        given = evaluator.trainer_kwargs.get("callbacks") or []
        given = [given] if isinstance(given, L.Callback) else given
        return evaluator.replace(callbacks=[*given, *callbacks])

    # -- results ---------------------------------------------------------------------------------------------

    def trials(self) -> list[Trial]:
        """Return all trials of the last run in their order, each architecture once."""
        return list(self._trials.values())

    def ranking(self) -> list[Trial]:
        """Return the trials that did not fail, best first; of equal ones the cheapest first.

        Raises
        ------
        RuntimeError
            Before the first search.
        """
        self._after_search()
        sign = -1.0 if self.mode == "max" else 1.0

        def rank(trial: Trial) -> tuple[float, float, Key]:
            assert trial.score is not None
            return sign * trial.score, 0.0 if trial.cost is None else trial.cost, trial.key

        return sorted((trial for trial in self._trials.values() if trial.score is not None), key=rank)

    def ranked_samples(self) -> Iterator[Sample]:
        """Yield the samples of `ranking`."""
        return (fresh(trial.sample) for trial in self.ranking())

    def best_samples(self) -> Iterator[Sample]:
        """Yield the samples of `ranking` that meet measured limits; see `Budget.measured`."""
        ranked = self.ranked_samples()
        return ranked if self.budget is None else self.budget.measured(ranked)

    def best_sample(self) -> Sample:
        """Return the sample of the best trial.

        Raises
        ------
        RuntimeError
            When no trial has succeeded.
        BudgetError
            When none of the members meets a measured limit.
        """
        best = next(self.best_samples(), None)
        if best is None:
            raise RuntimeError(f"{type(self).__name__}: no trial has succeeded; trials() says why")
        return best

    def freeze(self, sample: Sample) -> nn.Module:
        """Return a member as the evaluator gets it, the same at every call.

        It has the weights that it has in the super-net; of a plain space it is untrained.

        Parameters
        ----------
        sample : dict
            A value for each active label.

        Raises
        ------
        RuntimeError
            Before the first search.
        """
        members = self._after_search()
        with isolated_seed(self.seed):
            return members.freeze(sample)

    def _after_search(self) -> Members:
        if self._members is None:
            raise RuntimeError(f"{type(self).__name__} has not searched yet; call run(space, evaluator) first")
        return self._members

    # -- going on later --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what has been evaluated so far, in types that JSON has.

        It can be called at any time, from `on_evaluation` for example.
        """
        if self._loaded is not None:
            return dict(self._loaded)
        return outcomes_to_state(self._outcomes)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next `run` take from the state what has been evaluated there.

        The search itself is done again from the start, without evaluating, so with the same settings it goes on as if
        it had never stopped; with a larger budget it goes further.

        Raises
        ------
        ValueError
            When it is no such state.
        """
        check_state(state)
        self._loaded = state


def _searched(space: ModelSpace, evaluator: Evaluator) -> Mutable:
    """Return the space together with the choices of the evaluator, if it has any."""
    if isinstance(evaluator, Mutable) and evaluator.simplify():
        return MutableList([space, evaluator])
    return space
