"""The callback that watches a search: what it prefers, and whether that collapses."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from hwnas.strategies.search_reading import SearchReading, read_search, skip_candidates

if TYPE_CHECKING:
    from hwnas.strategies.oneshot import OneShotStrategy

MIN_CHOICES = 3
"""With fewer layer choices nothing is called a collapse: that all of them prefer the same is no pattern."""

NEAR = 0.9
"""The part of a baseline or limit from which on costs are taken to be the reason for cheap candidates."""

_BAR_EVERY = 10


class SearchMonitor(L.Callback):
    """Watches what a search with shared weights prefers, and says so when it collapses.

    Differentiable search often ends in architectures of skip connections: they need no training, so they look good as
    long as the weights beside them are not trained well, the more so the longer the search. After each epoch the
    monitor looks at those layer choices of the preferred architecture that offer both candidates with and candidates
    without parameters (skip connections, pooling, zeros). It is a collapse when

    - there are at least `MIN_CHOICES` of them, and
    - the share of them that prefer a candidate without is above `threshold`, and
    - their mean probability of such candidates is at least `rise` above what it was before the search, and
    - no expected cost is above `NEAR` of the baseline of a penalty or the limit of a budget: where one is, cheap
      candidates are what was asked for.

    The first collapse is a warning. With `stop_on_collapse` training ends there, and the architecture (parameters of
    the relaxation, or the controller of an `ENAS`) is put back to that of the last epoch without a collapse, so
    that `best_sample` gives the best architecture of that time. The weights stay as they are.

    After each epoch all loggers receive ``arch/entropy`` and ``arch/entropy/<label>`` (nats),
    ``arch/<label>/<value>`` (probabilities), ``arch/skips``, ``arch/skip_share`` and ``arch/skip_probability`` (number,
    share, and mean probability of candidates without parameters, as above), and the expected costs:
    ``arch/expected_cost`` with a penalty or a filter, ``budget/<name>/expected`` with a budget. A progress bar, where
    there is one, shows the entropy and the costs.

    Every one-shot strategy adds a monitor to its trainer; pass one of your own among the `callbacks` of `run` to
    replace it. Of a strategy that trains no architecture, such as `RandomOneShot`, only the costs are of interest.

    Parameters
    ----------
    threshold : float
        From 0 to 1; with 1 nothing is a collapse.
    rise : float
        From 0 to 1.
    stop_on_collapse : bool
        Whether to end the training and go back.

    Attributes
    ----------
    reading : SearchReading or None
        What was seen last.
    collapsed_after : int or None
        The number of epochs after which a collapse was first seen.
    healthy_after : int
        The number of epochs after which there was no collapse, the last time.

    Raises
    ------
    ValueError
        When a number is out of its range.

    References
    ----------
    Liang et al.: DARTS+: Improved Differentiable Architecture Search with Early Stopping, 2019. Stops when a cell
    has more than one skip connection; a share serves spaces without cells too.
    Zela et al.: Understanding and Robustifying Differentiable Architecture Search, ICLR 2020. Goes back to the
    architecture from before the collapse.

    Examples
    --------
    >>> from hwnas.strategies import DARTS, SearchMonitor
    >>> monitor = SearchMonitor(stop_on_collapse=True)
    >>> DARTS().run(space, evaluator, callbacks=[monitor])  # doctest: +SKIP
    """

    def __init__(self, *, threshold: float = 0.5, rise: float = 0.1, stop_on_collapse: bool = False) -> None:
        for name, value in (("threshold", threshold), ("rise", rise)):
            if not 0 <= value <= 1:
                raise ValueError(f"SearchMonitor: {name} is {value}; expected a number from 0 to 1")
        self.threshold = threshold
        self.rise = rise
        self.stop_on_collapse = stop_on_collapse
        self._strategy: OneShotStrategy | None = None
        self._forget()

    def _forget(self) -> None:
        self.reading: SearchReading | None = None
        self.collapsed_after: int | None = None
        self.healthy_after = 0
        self._epochs = 0  # after which it has looked
        self._at_first: dict[str, float] | None = None
        self._healthy: dict[str, Tensor] = {}
        self._free: dict[str, list[Any]] = {}

    @property
    def state_key(self) -> str:
        """The name under which checkpoints hold the state."""
        return "hwnas.SearchMonitor"

    def watch(self, strategy: OneShotStrategy) -> None:
        """Watch a strategy from now on, which is about to begin; what is known of an earlier search is forgotten.

        `OneShotStrategy.run` calls it.
        """
        self._strategy = strategy
        self._forget()
        self._free = skip_candidates(strategy.supernet)

    @property
    def strategy(self) -> OneShotStrategy:
        """The strategy that is watched.

        Raises
        ------
        RuntimeError
            When there is none.
        """
        if self._strategy is None:
            raise RuntimeError("the SearchMonitor watches no strategy; pass it to run(..., callbacks=[monitor])")
        return self._strategy

    # -- when it looks ---------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember how the search begins.

        A trainer that goes on from a checkpoint of the last batch of an epoch does not end that epoch; what was still
        to be done then is done now.
        """
        if self._at_first is None:
            self._at_first = self._read().skip_probabilities
            self._keep(epochs=0)
        self._look(trainer, epochs=trainer.current_epoch)
        if self.stop_on_collapse and self.collapsed_after is not None:
            trainer.should_stop = True  # as it did before

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look, record, and judge."""
        self._look(trainer, epochs=trainer.current_epoch + 1)
        self._show(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the progress bar up to date."""
        if trainer.progress_bar_callback is not None and batch_idx % _BAR_EVERY == 0:
            if next(self.strategy.relaxation.parameters(), None) is not None:  # the others change between epochs
                self._read()
            self._show(trainer, pl_module)

    def _look(self, trainer: L.Trainer, *, epochs: int) -> None:
        if self._epochs >= epochs:
            return
        self._epochs = epochs
        reading = self._read()
        record = reading.record(self.strategy.relaxation.dimensions)
        for logger in trainer.loggers if record else ():
            logger.log_metrics(record, step=trainer.global_step)
        if self._has_collapsed(reading):
            self._report(reading, epochs)
            if self.stop_on_collapse:
                self._go_back(trainer)
        else:
            self._keep(epochs)

    def _read(self) -> SearchReading:
        self.reading = read_search(self.strategy, self._free)
        return self.reading

    def _show(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.progress_bar_callback is not None and self.reading is not None:
            for name, value in self.reading.headline().items():
                pl_module.log(name, value, prog_bar=True, logger=False)

    # -- collapse --------------------------------------------------------------------------------------------

    def _has_collapsed(self, reading: SearchReading) -> bool:
        targets = {name: cost.target for name, cost in self.strategy.watched_costs().items()}
        if any(expected > NEAR * targets[name] for name, expected in reading.costs.items()):
            return False
        if len(reading.choices) < MIN_CHOICES:
            return False
        return reading.skip_share > self.threshold and self._risen(reading) >= self.rise

    def _risen(self, reading: SearchReading) -> float:
        """Return by how much the probability of candidates without parameters has risen, on average."""
        before = self._at_first or {}
        rises = [reading.skip_probabilities[label] - before[label] for label in reading.choices]
        return math.fsum(rises) / len(rises)

    def _report(self, reading: SearchReading, epochs: int) -> None:
        if self.collapsed_after is not None:
            return
        self.collapsed_after = epochs
        advice = (
            "Training stops, and the architecture is that of the last epoch without a collapse"
            if self.stop_on_collapse
            else "SearchMonitor(stop_on_collapse=True) would go back to the last epoch without a collapse"
        )
        warnings.warn(
            f"the search collapses: after {_epochs(epochs)} {len(reading.skips)} of {len(reading.choices)} "
            f"layer choices prefer a candidate without parameters ({', '.join(reading.skips)}), whose probability has "
            f"risen by {self._risen(reading):.2f} on average. {advice}, {_epochs(self.healthy_after)}. Longer warm-up, "
            "fewer epochs or more weight decay prevent it; if such an architecture is wanted, raise the threshold",
            stacklevel=2,
        )

    def _keep(self, epochs: int) -> None:
        """Remember the architecture as that of the last epoch without a collapse."""
        self.healthy_after = epochs
        parameters = self.strategy.architecture.named_parameters()
        self._healthy = {name: parameter.detach().cpu().clone() for name, parameter in parameters}

    def _go_back(self, trainer: L.Trainer) -> None:
        with torch.no_grad():
            for name, parameter in self.strategy.architecture.named_parameters():
                parameter.copy_(self._healthy[name])
        trainer.should_stop = True

    # -- going on later --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, as numbers and tensors."""
        return {
            "collapsed_after": self.collapsed_after,
            "healthy_after": self.healthy_after,
            "epochs": self._epochs,
            "at_first": self._at_first,
            "healthy": self._healthy,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self.collapsed_after = state_dict["collapsed_after"]
        self.healthy_after = state_dict["healthy_after"]
        self._epochs = state_dict["epochs"]
        self._at_first = state_dict["at_first"]
        self._healthy = state_dict["healthy"]


def _epochs(number: int) -> str:
    return f"{number} epoch" if number == 1 else f"{number} epochs"
