"""DARTS: architecture parameters and weights trained in turn by gradient descent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import lightning as L
import numpy as np

from hwnas.errors import UnsupportedError
from hwnas.evaluators import Evaluator, Lightning
from hwnas.nn import ModelSpace
from hwnas.profilers.penalties import ExpectationProfilerPenalty, PenaltyForms, as_expectation_penalty
from hwnas.profilers.profiler import Profiler
from hwnas.space import Sample
from hwnas.space.sampling import fresh
from hwnas.strategies.architecture_key import Key, architecture_key
from hwnas.strategies.architecture_step import ArchitectureStep
from hwnas.strategies.budget import Budget
from hwnas.strategies.budgeted import BudgetedOneShot
from hwnas.strategies.cost_labels import cost_labels
from hwnas.strategies.dual_ascent import DualAscent
from hwnas.strategies.feasible import FeasibleSampler
from hwnas.strategies.most_probable import most_probable_within
from hwnas.strategies.search_reading import WatchedCost, watched_penalties
from hwnas.strategies.unrolled_step import UnrolledStep
from hwnas.supernet import MutationHook, Relaxation, Softmax, normalise_candidates
from hwnas.supernet.most_probable import ranked_options


class DARTS(BudgetedOneShot):
    """Differentiable search.

    Every decision is the softmax of architecture parameters, one vector for each label. Before each step of
    the weights on a training batch the architecture makes one step on a validation batch, with the weights as
    they are, or with `unrolled` as the coming step would make them. Where the trainer accumulates gradients, both
    steps happen once in so many batches.

    In the architecture step no gradient of a weight is computed, nothing is logged by the module, and batch
    normalisation uses the statistics of the batch but does not add them to its running statistics, which
    therefore come from training data only. In the step of the weights no gradient of the architecture is
    computed.

    Each validation of the trainer scores the architecture that is best so far, the first of `ranked_samples`, with
    batch normalisation statistics of its own; see `hwnas.strategies.best_member`.

    Every `log_prob_every_n_step` architecture steps the loggers of the trainer receive ``arch/loss``,
    ``arch/entropy``, ``arch/expected_cost`` with a penalty, and ``arch/<label>/<value>``, the probabilities.

    Parameters
    ----------
    arc_learning_rate, arc_betas, arc_weight_decay
        Of the Adam optimiser of the architecture.
    warmup_epochs : int
        Epochs at the beginning in which only weights are trained.
    penalty : ExpectationProfilerPenalty, mapping, or sequence of these, optional
        Joined with the loss in the architecture step; a mapping holds its arguments.
    budget : Budget or mapping of str to float, optional
        Upper limits such as ``{"latency_ms": 3.0}``; see `Budget`. Multipliers make costs meet them, see
        `DualAscent`, and only members within them are returned. Loggers receive ``budget/<name>/multiplier`` and
        ``budget/<name>/charged``.
    profilers : Profiler or sequence of Profiler, optional
        Of the costs that the budget names.
    dual_learning_rate : float, optional
        Of the multipliers; five times `arc_learning_rate` unless given.
    log_prob_every_n_step : int
        At least 1.
    unrolled : bool
        Whether the architecture is trained through the coming step of the weights: DARTS of second order, see
        `hwnas.strategies.unrolled_step.UnrolledStep`. The weights need one plain `torch.optim.SGD`.
    max_recalibration_batches : int, optional
        Training batches for the statistics in a validation; None for all, 0 for none: the running statistics of the
        super-net are then used.
    normalise_candidates : bool
        Whether the candidates of a layer choice are normalised before they are mixed, so that their weights compare
        them and not the scale of their outputs; see `hwnas.supernet.normalise_candidates`. Frozen members are not.
    mutation_hooks, seed
        See `OneShotStrategy`.

    Raises
    ------
    ValueError
        When an argument is out of its range.
    TypeError
        When the penalty is not one on expectations.
    UnsupportedError
        When `unrolled` is not defined for the strategy, or, when the search begins, for the training.

    References
    ----------
    Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019.
    """

    step_type: ClassVar[type[ArchitectureStep]] = ArchitectureStep
    unrolled_step_type: ClassVar[type[ArchitectureStep] | None] = UnrolledStep

    def __init__(
        self,
        arc_learning_rate: float = 3e-4,
        *,
        warmup_epochs: int = 0,
        penalty: ExpectationProfilerPenalty | PenaltyForms | None = None,
        budget: Budget | Mapping[str, float] | None = None,
        profilers: Profiler | Sequence[Profiler] | None = None,
        dual_learning_rate: float | None = None,
        arc_betas: tuple[float, float] = (0.5, 0.999),
        arc_weight_decay: float = 1e-3,
        log_prob_every_n_step: int = 10,
        unrolled: bool = False,
        max_recalibration_batches: int | None = 20,
        normalise_candidates: bool = True,
        mutation_hooks: Sequence[MutationHook] = (),
        seed: int | np.random.Generator = 0,
    ) -> None:
        super().__init__(mutation_hooks, budget=budget, profilers=profilers, seed=seed)
        name = type(self).__name__
        if not arc_learning_rate > 0:
            raise ValueError(f"{name}: arc_learning_rate is {arc_learning_rate}; expected a number above 0")
        if dual_learning_rate is not None and not dual_learning_rate > 0:
            raise ValueError(f"{name}: dual_learning_rate is {dual_learning_rate}; expected a number above 0, or None")
        if warmup_epochs < 0:
            raise ValueError(f"{name}: warmup_epochs is {warmup_epochs}; expected at least 0")
        if log_prob_every_n_step < 1:
            raise ValueError(f"{name}: log_prob_every_n_step is {log_prob_every_n_step}; expected at least 1")
        if unrolled and self.unrolled_step_type is None:
            raise UnsupportedError(f"{name}: unrolled=True is not defined for it; use DARTS or GumbelDARTS")
        if max_recalibration_batches is not None and max_recalibration_batches < 0:
            raise ValueError(
                f"{name}: max_recalibration_batches is {max_recalibration_batches}; expected at least 0, or None"
            )
        self.penalty = as_expectation_penalty(penalty, type(self).__name__)
        self.arc_learning_rate = arc_learning_rate
        self.dual_learning_rate = 5 * arc_learning_rate if dual_learning_rate is None else dual_learning_rate
        self.arc_betas = arc_betas
        self.arc_weight_decay = arc_weight_decay
        self.warmup_epochs = warmup_epochs
        self.log_prob_every_n_step = log_prob_every_n_step
        self.unrolled = unrolled
        self.max_recalibration_batches = max_recalibration_batches
        self.normalise_candidates = normalise_candidates

    def make_relaxation(self, space: ModelSpace) -> Relaxation:
        """Return a softmax over the values of each label."""
        return Softmax(space.simplify().values(), seed=self.seed)

    def mutate_model(self, space: ModelSpace) -> ModelSpace:
        """Turn a space into a super-net; see `OneShotStrategy.mutate_model`.

        Raises
        ------
        ValueError
            Also when the cost of the penalty or of the budget is that of another space. The space is unchanged then.
        BudgetError
            When no member is within the budget; it names the minimum. The space is unchanged then.
        """
        if self.penalty is not None and isinstance(space, ModelSpace):
            for part in self.penalty.parts:
                cost_labels(part.profiler.cost_model, space.simplify(), "penalty")
        if self.budget is not None and isinstance(space, ModelSpace):
            FeasibleSampler(space, self.feasible(), seed=self.seed).sample(0)
        supernet = super().mutate_model(space)
        if self.normalise_candidates:
            normalise_candidates(supernet)
        return supernet

    def check_evaluator(self, evaluator: Evaluator) -> None:
        """Raise also when the module optimises by itself: it would train weights on validation data."""
        super().check_evaluator(evaluator)
        assert isinstance(evaluator, Lightning)
        if not evaluator.module.automatic_optimization:
            raise ValueError(
                f"{type(self).__name__}: the module sets automatic_optimization = False. Its training_step runs on "
                "validation data too, where it must not train weights; return the loss and leave the step "
                "to the trainer"
            )

    def watched_costs(self) -> dict[str, WatchedCost]:
        """Return also the costs of the penalties; see `OneShotStrategy.watched_costs`."""
        found = super().watched_costs()
        if self.penalty is not None:
            found |= watched_penalties(self.penalty)
        return found

    def callback(self) -> L.Callback:
        """Return a new callback that makes the architecture steps."""
        step_type = self.unrolled_step_type if self.unrolled else self.step_type
        assert step_type is not None
        return step_type(
            self,
            learning_rate=self.arc_learning_rate,
            betas=self.arc_betas,
            weight_decay=self.arc_weight_decay,
            warmup_epochs=self.warmup_epochs,
            penalty=self.penalty,
            dual=self._dual(),
            log_every=self.log_prob_every_n_step,
            max_recalibration_batches=self.max_recalibration_batches,
        )

    def _dual(self) -> DualAscent | None:
        if self.budget is None:
            return None
        return DualAscent(self.budget, self.relaxation.dimensions, learning_rate=self.dual_learning_rate)

    def ranked_samples(self) -> Iterator[Sample]:
        """Yield feasible samples within the budget, the most probable first; without either the first is the argmax.

        Of samples of one architecture the first is kept. How many are looked at is said in
        `hwnas.strategies.most_probable.most_probable_within`.

        Yields
        ------
        dict
            A value for each label.

        Raises
        ------
        SampleError
            When no sample satisfies the constraints.
        """
        space = self.supernet
        dimensions = space.structure().dimensions
        options = {str(label): ranked_options(self.relaxation, label) for label in dimensions}
        seen: set[Key] = set()
        for sample in most_probable_within(space, options, self.feasible(), seed=self.seed):
            key = architecture_key(space, dimensions, sample)
            if key not in seen:
                seen.add(key)
                yield fresh(sample)
