"""Random one-shot: a super-net trained on one random member at a time, and searched afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn

from hwnas.evaluators import Evaluator, recalibrate_batch_norm
from hwnas.nn import ModelSpace
from hwnas.profilers.filters import as_filter
from hwnas.space import Sample
from hwnas.space.sampling import fresh
from hwnas.strategies.batches import load_batches, single_loader
from hwnas.strategies.feasible import AnyFilter, FeasibleSampler, Filter
from hwnas.strategies.oneshot import OneShotCallback, OneShotStrategy
from hwnas.strategies.subnet_search import RankedSubnet, SubnetSearch
from hwnas.supernet import MutationHook, OneHot, Relaxation


class RandomOneShot(OneShotStrategy):
    """Train a super-net on random feasible members, a new one for each batch, then search it.

    Members follow the weights of the labels, the constraints and the filter. While the super-net is trained,
    each validation scores one and the same member, the default one where it is feasible: the curve shows
    whether the shared weights learn, no more. The best member is searched for with `SubnetSearch` when it is
    first asked for.

    Parameters
    ----------
    filter : ProfilerFilter, callable or mapping, optional
        Which samples are trained and returned; a mapping is the dictionary form, ``{"profiler": ..., "min":
        ..., "max": ...}``.
    search : SubnetSearch, optional
        How the best member is found.
    mutation_hooks, seed
        See `OneShotStrategy`.

    References
    ----------
    Li, Talwalkar: Random Search and Reproducibility for Neural Architecture Search, UAI 2019.
    Guo et al.: Single Path One-Shot Neural Architecture Search with Uniform Sampling, ECCV 2020.
    """

    def __init__(
        self,
        filter: AnyFilter | None = None,
        *,
        search: SubnetSearch | None = None,
        mutation_hooks: Sequence[MutationHook] = (),
        seed: int | np.random.Generator = 0,
    ) -> None:
        super().__init__(mutation_hooks, seed=seed)
        self.filter: Filter | None = as_filter(filter) if isinstance(filter, Mapping) else filter
        self.search = SubnetSearch(seed=self.seed) if search is None else search
        self._ranking: list[RankedSubnet] | None = None

    def make_relaxation(self, space: ModelSpace) -> Relaxation:
        """Return a relaxation with one active value for each label."""
        return OneHot(space.simplify().values())

    def mutate_model(self, space: ModelSpace) -> ModelSpace:
        """Turn a space into a super-net; see `OneShotStrategy.mutate_model`.

        Raises
        ------
        ValueError
            Also when the filter is that of another space, or accepts nothing. The space is unchanged then.
        """
        if isinstance(space, ModelSpace):
            FeasibleSampler(space, self.filter, seed=self.seed).sample(0)
        return super().mutate_model(space)

    def callback(self) -> L.Callback:
        """Return a new callback that draws a member for each batch."""
        return MemberForEachBatch(self, FeasibleSampler(self.supernet, self.filter, seed=self.seed))

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
            relaxation = self.relaxation
            assert isinstance(relaxation, OneHot)
            self._ranking = self.search.run(
                self.supernet,
                relaxation,
                train_batches=single_loader(self.evaluator.train_dataloaders, "train_dataloaders"),
                val_batches=single_loader(self.evaluator.val_dataloaders, "val_dataloaders"),
                filter=self.filter,
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
        loader = single_loader(self.evaluator.train_dataloaders, "train_dataloaders")
        search = self.search
        recalibrate_batch_norm(model, load_batches(loader, search.max_recalibration_batches, seed=search.seed))
        return model

    def _device(self) -> torch.device | None:
        """Return the device of the training; the trainer leaves the super-net on the CPU."""
        return None if self._trainer is None else self._trainer.strategy.root_device


class MemberForEachBatch(OneShotCallback):
    """Draw a new member before each training batch.

    Parameters
    ----------
    strategy : RandomOneShot
        With a super-net.
    sampler : FeasibleSampler
        Gives the members, by number.
    """

    def __init__(self, strategy: RandomOneShot, sampler: FeasibleSampler) -> None:
        super().__init__(strategy)
        self.sampler = sampler
        self.drawn = 0
        self._fixed = sampler.first()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw."""
        self.relaxation.resample(self.sampler.sample(self.drawn))
        self.drawn += 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the same member every time."""
        self.relaxation.resample(fresh(self._fixed))

    def state_dict(self) -> dict[str, Any]:
        """Return how many members have been drawn; they depend on nothing else."""
        return {**super().state_dict(), "drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        super().load_state_dict(state_dict)
        self.drawn = state_dict["drawn"]
