"""The callback that trains a controller between the epochs of the weights, and the rewards that it learns from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import lightning as L
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from hwnas.errors import TrainingError
from hwnas.evaluators import captured_logs
from hwnas.evaluators.lightning import DEFAULT_METRIC
from hwnas.evaluators.seeding import isolated_seed
from hwnas.export.mode import evaluation_mode
from hwnas.profilers.penalties import SampleProfilerPenalty
from hwnas.space import Sample
from hwnas.strategies.architecture_step import on_device
from hwnas.strategies.batches import CyclingBatches, single_loader
from hwnas.strategies.controller import Controller
from hwnas.strategies.oneshot import OneShotCallback, OneShotStrategy
from hwnas.strategies.policy_gradient import PolicyGradient
from hwnas.strategies.ranks import mean_number
from hwnas.supernet import kept_statistics

Mode = Literal["max", "min"]


class Reward:
    """What a controller is to make large: a metric of `validation_step`, with a penalty.

    The penalty joins the metric as it was logged. So with ``mode="max"`` a positive `scale` would reward cost, and
    punishing it takes a negative one; with ``mode="min"``, for losses, punishing takes a positive one. The reward of
    ``mode="min"`` is the negative of the joint value.

    Parameters
    ----------
    metric_name : str, optional
        The name under which it is logged. Unless given ``default`` where that is logged, else the only one.
    mode : {"max", "min"}
        Whether large or small values of the metric are good.
    penalty : SampleProfilerPenalty, optional
        On the cost of the member.

    Raises
    ------
    ValueError
        When the mode is another.
    """

    def __init__(
        self, metric_name: str | None = None, mode: Mode = "max", penalty: SampleProfilerPenalty | None = None
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode is {mode!r}; expected 'max' or 'min'")
        for part in () if penalty is None else penalty.parts:
            if (part.scale > 0) == (mode == "max"):
                warnings.warn(
                    f"mode is {mode!r} and the scale of the penalty {part.scale}: this rewards cost. Give a "
                    f"{'negative' if mode == 'max' else 'positive'} scale to punish it",
                    stacklevel=3,
                )
        self.metric_name = metric_name
        self.mode = mode
        self.penalty = penalty

    def metric(self, module: L.LightningModule, batch: Any, batch_idx: int) -> float:
        """Return the metric that `validation_step` logs for a batch. Nothing reaches a trainer or a logger.

        Raises
        ------
        TrainingError
            When it logs no such metric, or one that is no finite number.
        """
        with captured_logs(module) as logged:
            module.validation_step(batch, batch_idx)
        name = self._name(logged)
        try:
            value = float(logged[name])
        except (TypeError, ValueError):
            raise TrainingError(
                f"validation_step logs {name!r} as a {type(logged[name]).__name__}; a reward is a number for each "
                "batch. Log a number or a tensor of one element"
            ) from None
        if not math.isfinite(value):
            raise TrainingError(
                f"the metric {name!r} of a validation batch is {value}. Lower the learning rate, clip gradients with "
                "gradient_clip_val, and look for infinite or missing values in the data"
            )
        return value

    def _name(self, logged: Mapping[str, Any]) -> str:
        wanted = DEFAULT_METRIC if self.metric_name is None else self.metric_name
        if wanted in logged:
            return wanted
        if self.metric_name is None and len(logged) == 1:
            return next(iter(logged))
        raise TrainingError(
            f"validation_step logs no metric named {wanted!r}; it logs {sorted(logged) or 'nothing'}. Log it with "
            f"self.log({wanted!r}, value), or name another one as reward_metric_name"
        )

    def of(self, metric: float, sample: Sample) -> tuple[float, float | None]:
        """Return the reward of a member, and its cost in the unit of the profiler where there is a penalty."""
        joint, cost = (metric, None) if self.penalty is None else self.penalty(metric, sample)
        return (joint if self.mode == "max" else -joint), cost


class ControllerTraining(OneShotCallback):
    """Weights are trained on members that the controller draws; the controller after each epoch, on validation data.

    Several processes score the same members, each on validation batches of its own. The metric of a member is the mean
    over the processes, so the controller is the same in all of them.

    Parameters
    ----------
    strategy : OneShotStrategy
        With a super-net whose relaxation takes whole samples.
    learner : PolicyGradient
        With the controller.
    reward : Reward
        What it learns from.
    accepts : callable
        Which samples are used at all.
    batches_per_update : int
        Members, each scored on a validation batch of its own, for an update.
    updates_per_epoch : int, optional
        Updates after an epoch; as many as one pass over the validation data allows, at least one, unless given.
    warmup_epochs : int
        Epochs at the beginning without updates.
    log_every : int
        Updates from one record to the next.

    Raises
    ------
    ValueError
        When `updates_per_epoch` is not given and the loader has no length.
    """

    def __init__(
        self,
        strategy: OneShotStrategy,
        learner: PolicyGradient,
        reward: Reward,
        accepts: Callable[[Sample], bool],
        *,
        batches_per_update: int,
        updates_per_epoch: int | None,
        warmup_epochs: int,
        log_every: int,
    ) -> None:
        super().__init__(strategy)
        self.learner = learner
        self.reward = reward
        self.accepts = accepts
        self.batches_per_update = batches_per_update
        self.warmup_epochs = warmup_epochs
        self.log_every = log_every
        loader = single_loader(strategy.evaluator.val_dataloaders, "val_dataloaders")
        self.batches_in_a_pass = None if updates_per_epoch else _length(loader)
        self.updates_per_epoch = updates_per_epoch or 1  # `setup` knows how many processes share the data
        self.batches = CyclingBatches(loader, seed=strategy.seed)
        self.generator = torch.Generator().manual_seed(strategy.seed)
        self.updates = 0
        self.epochs = 0  # after which the controller has had its turn

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember the trainer, and which part of the validation data is that of this process."""
        super().setup(trainer, pl_module, stage)
        self.batches.share(trainer.global_rank, trainer.world_size)
        if self.batches_in_a_pass is not None:
            self.updates_per_epoch = max(self.batches_in_a_pass // (self.batches_per_update * trainer.world_size), 1)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Follow the model to its device; the controller stays on the CPU."""
        super().on_fit_start(trainer, pl_module)
        self.warn_if_only_warmup(trainer, self.warmup_epochs, "the controller")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw the member on which the weights are trained."""
        (sample,) = self.learner.controller.draw(1, self.generator, self.accepts)
        self.resample(trainer, sample)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the member that the controller prefers."""
        self.relaxation.resample(preferred(self.learner.controller, self.accepts, self.strategy.seed))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Train the controller if that is still to be done.

        A trainer that goes on from a checkpoint of the last batch of an epoch does not end that epoch.
        """
        super().on_train_start(trainer, pl_module)
        self._train_controller(trainer, pl_module, epochs=trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Train the controller."""
        self._train_controller(trainer, pl_module, epochs=trainer.current_epoch + 1)

    def _train_controller(self, trainer: L.Trainer, pl_module: L.LightningModule, *, epochs: int) -> None:
        if self.epochs < epochs:
            self.epochs = epochs
            if epochs > self.warmup_epochs:
                for _ in range(self.updates_per_epoch):
                    self._update(trainer, pl_module)

    def _update(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        samples = self.learner.controller.draw(self.batches_per_update, self.generator, self.accepts)
        scored = []
        # Metrics may be random; the numbers that the training draws must not depend on that.
        with _scoring(pl_module), isolated_seed(self.strategy.seed + self.updates):
            for position, sample in enumerate(samples):
                self.relaxation.resample(sample)
                batch = on_device(next(self.batches), trainer, pl_module)
                with trainer.precision_plugin.val_step_context():
                    metric = mean_number(trainer, self.reward.metric(pl_module, batch, position))
                scored.append(self.reward.of(metric, sample))
        rewards = [reward for reward, _ in scored]
        entropy = self.learner.update(samples, rewards)
        if self.updates % self.log_every == 0 and trainer.loggers:
            self._log(trainer, rewards, [cost for _, cost in scored if cost is not None], entropy)
        self.updates += 1

    def _log(self, trainer: L.Trainer, rewards: list[float], costs: list[float], entropy: float) -> None:
        controller = self.learner.controller
        best = preferred(controller, self.accepts, self.strategy.seed)
        assert self.learner.baseline is not None
        record = {
            "controller/reward": sum(rewards) / len(rewards),
            "controller/baseline": self.learner.baseline,
            "controller/entropy": entropy,
            "controller/preferred_probability": math.exp(controller.log_probability(best)),
        }
        if costs:
            record["controller/expected_cost"] = sum(costs) / len(costs)
        for logger in trainer.loggers:
            logger.log_metrics(record, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the controller, its optimiser and generator, and the place in the validation data."""
        return {
            **super().state_dict(),
            "learner": self.learner.state_dict(),
            "generator": self.generator.get_state(),
            "batches": self.batches.state_dict(),
            "updates": self.updates,
            "epochs": self.epochs,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        super().load_state_dict(state_dict)
        self.learner.load_state_dict(state_dict["learner"])
        self.generator.set_state(state_dict["generator"].cpu())
        self.batches.load_state_dict(state_dict["batches"])
        self.updates = state_dict["updates"]
        self.epochs = state_dict["epochs"]


def preferred(controller: Controller, accepts: Callable[[Sample], bool], seed: int, draws: int = 64) -> Sample:
    """Return the greedy sample of a controller where it is accepted, else the most probable of some draws."""
    greedy = controller.greedy()
    if greedy is not None and accepts(greedy):
        return greedy
    return max(controller.draw(draws, torch.Generator().manual_seed(seed), accepts), key=controller.log_probability)


@contextmanager
def _scoring(pl_module: L.LightningModule) -> Iterator[None]:
    """Evaluate without a trace: no gradients, no dropout, batch normalisation by the statistics of the batch.

    The running statistics of a super-net fit none of its members. Layers of the batch normalisation that are in
    evaluation mode use theirs all the same.
    """
    norms = [module for module in pl_module.modules() if isinstance(module, _BatchNorm) and module.training]
    with evaluation_mode(pl_module), torch.no_grad(), kept_statistics(pl_module):
        for norm in norms:
            norm.training = True
        yield


def _length(loader: Any) -> int:
    try:
        return len(loader)
    except TypeError:
        raise ValueError(
            "val_dataloaders: the loader has no length, so it is unknown how many updates one pass allows. Give "
            "updates_per_epoch"
        ) from None
