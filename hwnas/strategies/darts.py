"""DARTS: architecture parameters and weights trained in turn by gradient descent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import lightning as L
import numpy as np

from hwnas.evaluators import Evaluator, Lightning
from hwnas.nn import ModelSpace
from hwnas.profilers.penalties import ExpectationProfilerPenalty, as_expectation_penalty
from hwnas.space import Sample
from hwnas.space.sampling import fresh
from hwnas.strategies.architecture_key import Key, architecture_key
from hwnas.strategies.architecture_step import ArchitectureStep
from hwnas.strategies.cost_labels import cost_labels
from hwnas.strategies.most_probable import most_probable, ranked_options
from hwnas.strategies.oneshot import OneShotStrategy
from hwnas.supernet import MutationHook, Relaxation, Softmax

MAX_COMBINATIONS = 10_000
"""Most probable combinations that are checked against the constraints."""

RANDOM_FALLBACK = 1_000
"""Random valid samples that are compared when all of those violate them."""


class DARTS(OneShotStrategy):
    """Differentiable search, first order.

    Every decision is the softmax of architecture parameters, one vector for each label. Before each step of
    the weights on a training batch the architecture makes one step on a validation batch, with the weights as
    they are. Where the trainer accumulates gradients, both steps happen once in so many batches.

    In the architecture step no gradient of a weight is computed, nothing is logged by the module, and batch
    normalisation uses the statistics of the batch but does not add them to its running statistics, which
    therefore come from training data only. In the step of the weights no gradient of the architecture is
    computed.

    Every `log_prob_every_n_step` architecture steps the loggers of the trainer receive ``arch/loss``,
    ``arch/entropy``, ``arch/expected_cost`` with a penalty, and ``arch/<label>/<value>``, the probabilities.

    Parameters
    ----------
    arc_learning_rate, arc_betas, arc_weight_decay
        Of the Adam optimiser of the architecture.
    warmup_epochs : int
        Epochs at the beginning in which only weights are trained.
    penalty : ExpectationProfilerPenalty or mapping, optional
        Joined with the loss in the architecture step; a mapping holds its arguments.
    log_prob_every_n_step : int
        At least 1.
    mutation_hooks, seed
        See `OneShotStrategy`.

    Raises
    ------
    ValueError
        When an argument is out of its range.
    TypeError
        When the penalty is not one on expectations.

    References
    ----------
    Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019.
    """

    step_type: ClassVar[type[ArchitectureStep]] = ArchitectureStep

    def __init__(
        self,
        arc_learning_rate: float = 3e-4,
        *,
        warmup_epochs: int = 0,
        penalty: ExpectationProfilerPenalty | Mapping[str, Any] | None = None,
        arc_betas: tuple[float, float] = (0.5, 0.999),
        arc_weight_decay: float = 1e-3,
        log_prob_every_n_step: int = 10,
        mutation_hooks: Sequence[MutationHook] = (),
        seed: int | np.random.Generator = 0,
    ) -> None:
        super().__init__(mutation_hooks, seed=seed)
        name = type(self).__name__
        if not arc_learning_rate > 0:
            raise ValueError(f"{name}: arc_learning_rate is {arc_learning_rate}; expected a number above 0")
        if warmup_epochs < 0:
            raise ValueError(f"{name}: warmup_epochs is {warmup_epochs}; expected at least 0")
        if log_prob_every_n_step < 1:
            raise ValueError(f"{name}: log_prob_every_n_step is {log_prob_every_n_step}; expected at least 1")
        self.penalty = as_expectation_penalty(penalty)
        if self.penalty is not None and not isinstance(self.penalty, ExpectationProfilerPenalty):
            raise TypeError(
                f"{name}: the penalty is a {type(self.penalty).__name__}; architectures are distributions "
                "here, which needs an ExpectationProfilerPenalty"
            )
        self.arc_learning_rate = arc_learning_rate
        self.arc_betas = arc_betas
        self.arc_weight_decay = arc_weight_decay
        self.warmup_epochs = warmup_epochs
        self.log_prob_every_n_step = log_prob_every_n_step

    def make_relaxation(self, space: ModelSpace) -> Relaxation:
        """Return a softmax over the values of each label."""
        return Softmax(space.simplify().values(), seed=self.seed)

    def mutate_model(self, space: ModelSpace) -> ModelSpace:
        """Turn a space into a super-net; see `OneShotStrategy.mutate_model`.

        Raises
        ------
        ValueError
            Also when the cost of the penalty is that of another space. The space is unchanged then.
        """
        if self.penalty is not None and isinstance(space, ModelSpace):
            cost_labels(self.penalty.profiler.cost_model, space.simplify(), "penalty")
        return super().mutate_model(space)

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

    def callback(self) -> L.Callback:
        """Return a new callback that makes the architecture steps."""
        return self.step_type(
            self,
            learning_rate=self.arc_learning_rate,
            betas=self.arc_betas,
            weight_decay=self.arc_weight_decay,
            warmup_epochs=self.warmup_epochs,
            penalty=self.penalty,
            log_every=self.log_prob_every_n_step,
        )

    def ranked_samples(self) -> Iterator[Sample]:
        """Yield feasible samples, the most probable first; without constraints the first is the argmax.

        Labels are independent, so the order is exact. Samples that violate the constraints are left out, and
        of samples of one architecture the first is kept. Only the `MAX_COMBINATIONS` most probable
        combinations are looked at; where all of them violate the constraints, `RANDOM_FALLBACK` seeded random
        samples come instead, the most probable first.

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
        structure = space.structure()
        options = {str(label): ranked_options(self.relaxation, label) for label in structure.dimensions}
        seen: set[Key] = set()

        def candidates() -> Iterator[Sample]:
            yield from itertools.islice(most_probable(options), MAX_COMBINATIONS)
            if not seen:
                rng = np.random.default_rng(self.seed)
                drawn = [space.random(random_state=rng) for _ in range(RANDOM_FALLBACK)]
                yield from sorted(drawn, key=lambda sample: -_score(options, sample))

        for sample in candidates():
            if structure.verdict(sample) is True:
                key = architecture_key(space, structure.dimensions, sample)
                if key not in seen:
                    seen.add(key)
                    yield fresh(sample)


def _score(options: Mapping[str, Sequence[tuple[Any, float]]], sample: Sample) -> float:
    """Return the logarithm of the probability of a sample."""
    return math.fsum(
        next((score for option, score in options[label] if option == value), -math.inf)
        for label, value in sample.items()
    )
