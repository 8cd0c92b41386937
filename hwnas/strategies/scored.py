"""What strategies do that choose among members by how these score in the super-net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning as L
import torch
from torch import nn

from hwnas.evaluators import Evaluator, recalibrate_batch_norm
from hwnas.nn import ModelSpace
from hwnas.space import Sample
from hwnas.space.sampling import fresh
from hwnas.strategies.batches import load_batches, single_loader
from hwnas.strategies.budgeted import BudgetedOneShot
from hwnas.strategies.subnet_search import RankedSubnet, SubnetSearch


class ScoredOneShot(BudgetedOneShot):
    """A one-shot strategy that scores members on validation data and returns the best one.

    Attributes
    ----------
    search : SubnetSearch
        Which members are scored, and how. Subclasses set it.
    """

    search: SubnetSearch
    _ranking: list[RankedSubnet] | None = None

    def run(
        self,
        space: ModelSpace,
        evaluator: Evaluator,
        *,
        callbacks: Sequence[L.Callback] = (),
        ckpt_path: str | Path | None = None,
    ) -> None:
        """Turn the space into a super-net and train it; see `OneShotStrategy.run`."""
        self._ranking = None
        super().run(space, evaluator, callbacks=callbacks, ckpt_path=ckpt_path)

    def ranking(self) -> list[RankedSubnet]:
        """Return all members that the search has scored, best first. The first call searches."""
        if self._ranking is None:
            self._ranking = self.search.run(
                self.supernet,
                train_batches=single_loader(self.evaluator.train_dataloaders, "train_dataloaders"),
                val_batches=single_loader(self.evaluator.val_dataloaders, "val_dataloaders"),
                filter=self.feasible(),
                device=self._device(),
            )
        return self._ranking

    def ranked_samples(self) -> Iterator[Sample]:
        """Yield the samples of `ranking`."""
        return (fresh(member.sample) for member in self.ranking())

    def freeze(self, sample: Sample) -> nn.Module:
        """Return a member as a plain model, with batch normalisation statistics of its own.

        They are estimated on the batches on which those of the search were, so the model scores what it
        scored there.
        """
        model = super().freeze(sample)
        search = self.search
        if search.max_recalibration_batches != 0:
            loader = single_loader(self.evaluator.train_dataloaders, "train_dataloaders")
            recalibrate_batch_norm(model, load_batches(loader, search.max_recalibration_batches, seed=search.seed))
        return model

    def _device(self) -> torch.device | None:
        """Return the device of the training; the trainer leaves the super-net on the CPU."""
        return None if self._trainer is None else self._trainer.strategy.root_device
