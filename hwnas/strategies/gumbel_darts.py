"""GumbelDARTS: differentiable search with samples that become harder from epoch to epoch."""

from __future__ import annotations

from typing import Any

import lightning as L

from hwnas.nn import ModelSpace
from hwnas.strategies.architecture_step import ArchitectureStep
from hwnas.strategies.darts import DARTS
from hwnas.strategies.temperature import Temperature, as_temperature_scheduler
from hwnas.strategies.unrolled_step import UnrolledStep
from hwnas.supernet import GumbelSoftmax, Relaxation


class AnnealedArchitectureStep(ArchitectureStep):
    """The architecture step of a `GumbelDARTS`, which sets the temperature of each epoch."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise also when the temperature is to fall over an unknown number of epochs."""
        super().on_fit_start(trainer, pl_module)
        self._temperature(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the temperature."""
        assert isinstance(self.relaxation, GumbelSoftmax)
        self.relaxation.temperature = self._temperature(trainer)

    def record(self) -> dict[str, float]:
        """Return the temperature as well."""
        assert isinstance(self.relaxation, GumbelSoftmax)
        return {**super().record(), "arch/temperature": self.relaxation.temperature}

    def _temperature(self, trainer: L.Trainer) -> float:
        assert isinstance(self.strategy, GumbelDARTS)
        return self.strategy.temperature.at(trainer.current_epoch, trainer.max_epochs)


class UnrolledAnnealedStep(AnnealedArchitectureStep, UnrolledStep):
    """The architecture step of second order, which sets the temperature of each epoch."""


class GumbelDARTS(DARTS):
    """Differentiable search on Gumbel-softmax samples.

    Each step, of the weights and of the architecture, draws new noise for every label. The temperature falls over
    the epochs of the trainer, so that the weights of a mixture come nearer to one drawn architecture. Validation runs
    the most probable architecture, without noise. The penalty is charged with the expected cost of the
    distribution; see `hwnas.supernet.GumbelSoftmax`.

    Loggers receive ``arch/temperature`` besides what `DARTS` writes.

    Parameters
    ----------
    arc_learning_rate : float
        See `DARTS`.
    temperature : float, (float, float), mapping or LinearTemperatureScheduler
        A constant; the temperatures of the first and of the last epoch; or these under the keys ``init`` and
        ``min``.
    hard : bool
        Whether each forward pass takes the drawn architecture alone, with a straight-through gradient.
    normalise_candidates : bool, optional
        As for `DARTS`; unless given, not with `hard`, where one architecture runs, as in `Proxyless`.
    **options
        Those of `DARTS`.

    Raises
    ------
    ValueError, TypeError
        When an argument is out of its range or of another type.

    References
    ----------
    Wu et al.: FBNet: Hardware-Aware Efficient ConvNet Design via Differentiable Neural Architecture Search, CVPR 2019.
    Xie, Zheng, Liu, Lin: SNAS: Stochastic Neural Architecture Search, ICLR 2019.
    """

    step_type = AnnealedArchitectureStep
    unrolled_step_type = UnrolledAnnealedStep

    def __init__(
        self,
        arc_learning_rate: float = 3e-4,
        *,
        temperature: Temperature = (1.0, 0.33),
        hard: bool = False,
        normalise_candidates: bool | None = None,
        **options: Any,
    ) -> None:
        normalised = not hard if normalise_candidates is None else normalise_candidates
        super().__init__(arc_learning_rate, normalise_candidates=normalised, **options)
        self.temperature = as_temperature_scheduler(temperature)
        self.hard = hard

    def make_relaxation(self, space: ModelSpace) -> Relaxation:
        """Return a Gumbel softmax over the values of each label."""
        return GumbelSoftmax(
            space.simplify().values(), temperature=self.temperature.init, hard=self.hard, seed=self.seed
        )
