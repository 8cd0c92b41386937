"""ENAS: a controller learns by policy gradient which members of a super-net score well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.data import extract_batch_size
from torch import nn

from hwnas.export.mode import evaluation_mode
from hwnas.nn import ModelSpace
from hwnas.profilers.filters import ranges_in
from hwnas.profilers.penalties import PenaltyForms, SampleProfilerPenalty, as_sample_penalty
from hwnas.profilers.profiler import Profiler
from hwnas.space import Sample
from hwnas.strategies.budget import Budget
from hwnas.strategies.controller import Controller, drawable_values
from hwnas.strategies.controller_training import ControllerTraining, Mode, Reward, preferred
from hwnas.strategies.cost_labels import cost_labels
from hwnas.strategies.drawn_search import DrawnSearch
from hwnas.strategies.feasible import AnyFilter, FeasibleSampler
from hwnas.strategies.policy_gradient import ControllerLearning, PolicyGradient
from hwnas.strategies.random_oneshot import RandomOneShot
from hwnas.strategies.search_reading import WatchedCost, watched_penalties
from hwnas.supernet import MutationHook, OneHot


class ENAS(RandomOneShot):
    """Train a super-net on members that a controller draws, and the controller on how they score.

    Weights and controller are trained in turn. During an epoch each training batch trains a member that the
    controller has just drawn. At its end the controller learns from validation batches, each of which scores a
    freshly drawn member with the weights as they are; `PolicyGradient` says how. Scoring leaves no trace in the
    super-net: no gradient, no dropout, nothing logged; batch normalisation uses the statistics of the batch and adds
    nothing to its running statistics.

    While the super-net is trained, each validation of the trainer scores the member that the controller prefers. At
    the end, when the best member is first asked for, that one and members drawn from the controller are scored on all
    validation batches, each with batch normalisation statistics of its own, and ranked by the same reward.

    Every `log_prob_every_n_step` updates the loggers of the trainer receive ``controller/reward`` (mean),
    ``controller/baseline``, ``controller/entropy`` (nats), ``controller/preferred_probability`` and, with a penalty,
    ``controller/expected_cost`` (mean, in the unit of the profiler).

    Parameters
    ----------
    batches_per_update : int
        Validation batches, and members, for an update of the controller.
    updates_per_epoch : int, optional
        Updates after each epoch; as many as one pass over the validation data allows, at least one, unless given.
    reward_metric_name : str, optional
        What `validation_step` logs and the controller looks at; ``default`` unless given, or the only one.
    mode : {"max", "min"}
        Whether large or small values of the metric are good.
    penalty : SampleProfilerPenalty, mapping, or sequence of these, optional
        Joined with the metric; a mapping holds its arguments. Its `scale` is negative to punish cost with
        ``mode="max"``, positive with ``mode="min"``; see `Reward`.
    filter : ProfilerFilter, callable or mapping, optional
        Which samples are trained, scored and returned. The controller decides within the range of a
        `RangeProfilerFilter`; what another filter rejects is drawn again, so one that hardly any sample passes is slow.
    budget : Budget or mapping of str to float, optional
        Upper limits such as ``{"latency_ms": 3.0}``, of what is trained, scored and returned; see `Budget`. What has
        been said of the filter holds for it too.
    profilers : Profiler or sequence of Profiler, optional
        Of the costs that the budget names.
    warmup_epochs : int
        Epochs at the beginning in which only weights are trained, on members drawn by the priors.
    learning : ControllerLearning or mapping, optional
        How the controller is trained; a mapping holds the arguments, such as
        ``{"algorithm": "reinforce"}``.
    hidden : int
        Width of the LSTM of the controller.
    candidates : int
        How many members are scored at the end.
    max_recalibration_batches : int, optional
        Training batches for their statistics; None for all.
    log_prob_every_n_step : int
        At least 1.
    mutation_hooks, seed
        See `OneShotStrategy`.

    Raises
    ------
    ValueError
        When an argument is out of its range.
    TypeError
        When the penalty is not one on samples.

    References
    ----------
    Pham et al.: Efficient Neural Architecture Search via Parameter Sharing, ICML 2018.
    """

    def __init__(
        self,
        *,
        batches_per_update: int = 20,
        updates_per_epoch: int | None = None,
        reward_metric_name: str | None = None,
        mode: Mode = "max",
        penalty: SampleProfilerPenalty | PenaltyForms | None = None,
        filter: AnyFilter | None = None,
        budget: Budget | Mapping[str, float] | None = None,
        profilers: Profiler | Sequence[Profiler] | None = None,
        warmup_epochs: int = 0,
        learning: ControllerLearning | Mapping[str, Any] | None = None,
        hidden: int = 64,
        candidates: int = 20,
        max_recalibration_batches: int | None = 20,
        log_prob_every_n_step: int = 10,
        mutation_hooks: Sequence[MutationHook] = (),
        seed: int | np.random.Generator = 0,
    ) -> None:
        at_least_1 = {
            "batches_per_update": batches_per_update,
            "updates_per_epoch": 1 if updates_per_epoch is None else updates_per_epoch,
            "candidates": candidates,
            "hidden": hidden,
            "log_prob_every_n_step": log_prob_every_n_step,
        }
        for name, value in at_least_1.items():
            if value < 1:
                raise ValueError(f"ENAS: {name} is {value}; expected at least 1")
        if warmup_epochs < 0:
            raise ValueError(f"ENAS: warmup_epochs is {warmup_epochs}; expected at least 0")
        joined = as_sample_penalty(penalty, type(self).__name__)
        self.reward = Reward(reward_metric_name, mode, joined)
        super().__init__(filter, budget=budget, profilers=profilers, mutation_hooks=mutation_hooks, seed=seed)
        self.search = DrawnSearch(
            self._draws,
            evaluations=candidates,
            metric=self._score,
            max_recalibration_batches=max_recalibration_batches,
            profiler=None if joined is None else joined.profiler,
            seed=self.seed,
        )
        self.batches_per_update = batches_per_update
        self.updates_per_epoch = updates_per_epoch
        self.warmup_epochs = warmup_epochs
        self.hidden = hidden
        self.log_prob_every_n_step = log_prob_every_n_step
        self.learning = learning if isinstance(learning, ControllerLearning) else ControllerLearning(**(learning or {}))
        self._controller: Controller | None = None

    @property
    def penalty(self) -> SampleProfilerPenalty | None:
        """The penalty on the reward."""
        return self.reward.penalty

    @property
    def controller(self) -> Controller:
        """The policy; see `OneShotStrategy.supernet`."""
        return self._made(self._controller)

    def mutate_model(self, space: ModelSpace) -> ModelSpace:
        """Turn a space into a super-net; see `RandomOneShot.mutate_model`.

        Raises
        ------
        TypeError
            Also when a dimension is no choice among listed values.
        ValueError
            Also when the cost of the penalty is that of another space, or a choice of several has too many values.
            The space is unchanged then.
        """
        if isinstance(space, ModelSpace):
            for mutable in space.simplify().values():
                drawable_values(mutable)
            if self.penalty is not None:
                for part in self.penalty.parts:
                    cost_labels(part.profiler.cost_model, space.simplify(), "penalty")
        super().mutate_model(space)
        self._controller = Controller(space, hidden=self.hidden, ranges=ranges_in(self.feasible()), seed=self.seed)
        return space

    def callback(self) -> L.Callback:
        """Return a new callback that draws members and trains the controller."""
        return ControllerTraining(
            self,
            PolicyGradient(self.controller, self.learning),
            self.reward,
            FeasibleSampler(self.supernet, self.feasible(), seed=self.seed).accepts,
            batches_per_update=self.batches_per_update,
            updates_per_epoch=self.updates_per_epoch,
            warmup_epochs=self.warmup_epochs,
            log_every=self.log_prob_every_n_step,
        )

    @property
    def architecture(self) -> nn.Module:
        """The controller; see `OneShotStrategy.architecture`."""
        return self.controller

    def draws(self, n: int) -> list[Sample]:
        """Return feasible members that the controller draws; see `OneShotStrategy.draws`."""
        sampler = FeasibleSampler(self.supernet, self.feasible(), seed=self.seed)
        return self.controller.draw(n, torch.Generator().manual_seed(self.seed), sampler.accepts)

    def watched_costs(self) -> dict[str, WatchedCost]:
        """Return also the costs of the penalties; see `OneShotStrategy.watched_costs`."""
        found = super().watched_costs()
        if self.penalty is not None:
            found |= watched_penalties(self.penalty)
        return found

    def _draws(self, sampler: FeasibleSampler) -> Iterator[Sample]:
        """Yield the preferred member, then draws without end; the same at every call."""
        yield preferred(self.controller, sampler.accepts, self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from self.controller.draw(self.search.evaluations, generator, sampler.accepts)

    def _score(self, supernet: nn.Module, batches: Sequence[Any]) -> float:
        """Return the reward of the present member on all batches, each counting by its size."""
        module = self.evaluator.module
        module.set_model(supernet)
        module.to(next((tensor.device for tensor in supernet.parameters()), torch.device("cpu")))
        with evaluation_mode(module), torch.no_grad():
            metrics = [self.reward.metric(module, batch, position) for position, batch in enumerate(batches)]
        metric = np.average(metrics, weights=[extract_batch_size(batch) for batch in batches])
        assert isinstance(self.relaxation, OneHot)
        return self.reward.of(float(metric), self.relaxation.sample)[0]
