"""Random one-shot: a super-net trained on members that are drawn at random, and searched afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import nn

from hwnas.evaluators import Evaluator, recalibrate_batch_norm
from hwnas.nn import ModelSpace
from hwnas.profilers.filters import ProfilerFilter, as_filter
from hwnas.profilers.profiler import Profiler
from hwnas.space import Sample
from hwnas.space.sampling import fresh
from hwnas.strategies.batches import load_batches, single_loader
from hwnas.strategies.budget import Budget
from hwnas.strategies.budgeted import BudgetedOneShot
from hwnas.strategies.feasible import AnyFilter, FeasibleSampler
from hwnas.strategies.member_sampling import MemberSampling, SamplingName, as_sampling
from hwnas.strategies.member_training import MemberTraining
from hwnas.strategies.search_reading import WatchedCost
from hwnas.strategies.subnet_search import RankedSubnet, SubnetSearch
from hwnas.supernet import MutationHook, OneHot, Relaxation


class RandomOneShot(BudgetedOneShot):
    """Train a super-net on random feasible members, new ones for each batch, then search it.

    Random members follow the weights of the labels, the constraints, the filter and the budget. `sampling` says which
    are trained on a batch:

    - ``"uniform"``: a random one.
    - ``"fair"``: so many that each value of each label is used equally often; see `FairSampling`. There can be no
      filter, no budget, no constraint and no weights.
    - ``"sandwich"``: the largest one, the smallest and two random ones; see `SandwichSampling`. What is large is
      said by the profiler of the filter or the budget, or of a `SandwichSampling`.

    Of several members the gradients are averaged into one step of the weights; see `MemberTraining`. Which are
    drawn depends on the seed and the number of the batch only, so a resumed run draws what the whole run draws.
    Batch normalisation adds the statistics of each to its running statistics, which fit no member; they are
    estimated anew for each one that is scored or exported.

    While the super-net is trained, each validation scores one and the same member, the default one where it is
    feasible: the curve shows whether the shared weights learn, no more. The best member is searched for with
    `SubnetSearch` when it is first asked for.

    Parameters
    ----------
    filter : ProfilerFilter, callable or mapping, optional
        Which samples are trained and returned; a mapping is the dictionary form, ``{"profiler": ..., "min":
        ..., "max": ...}``.
    budget : Budget or mapping of str to float, optional
        Upper limits such as ``{"latency_ms": 3.0}``, of what is trained and returned; see `Budget`.
    profilers : Profiler or sequence of Profiler, optional
        Of the costs that the budget names.
    sampling : {"uniform", "fair", "sandwich"} or MemberSampling
        Which members are trained on a batch.
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
        budget: Budget | Mapping[str, float] | None = None,
        profilers: Profiler | Sequence[Profiler] | None = None,
        sampling: SamplingName | MemberSampling = "uniform",
        search: SubnetSearch | None = None,
        mutation_hooks: Sequence[MutationHook] = (),
        seed: int | np.random.Generator = 0,
    ) -> None:
        super().__init__(mutation_hooks, budget=budget, profilers=profilers, seed=seed)
        self.filter = as_filter(filter) if isinstance(filter, Mapping) else filter
        self.sampling = as_sampling(sampling)
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
            Also when the filter is that of another space, or accepts nothing, or `sampling` does not fit the
            space. The space is unchanged then.
        """
        if isinstance(space, ModelSpace):
            self.sampling.plan(FeasibleSampler(space, self.feasible(), seed=self.seed), self.seed).of(0)
        return super().mutate_model(space)

    def callback(self) -> L.Callback:
        """Return a new callback that draws members for each batch."""
        sampler = FeasibleSampler(self.supernet, self.feasible(), seed=self.seed)
        return MemberTraining(self, self.sampling.plan(sampler, self.seed), sampler.first())

    def draws(self, n: int) -> list[Sample]:
        """Return random feasible members; see `OneShotStrategy.draws`."""
        sampler = FeasibleSampler(self.supernet, self.feasible(), seed=self.seed)
        return [sampler.sample(number) for number in range(n)]

    def watched_costs(self) -> dict[str, WatchedCost]:
        """Return also the cost of the filter; see `OneShotStrategy.watched_costs`."""
        found = super().watched_costs()
        if isinstance(self.filter, ProfilerFilter):
            found["arch/expected_cost"] = WatchedCost(self.filter.profiler)
        return found

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
        loader = single_loader(self.evaluator.train_dataloaders, "train_dataloaders")
        search = self.search
        recalibrate_batch_norm(model, load_batches(loader, search.max_recalibration_batches, seed=search.seed))
        return model

    def _device(self) -> torch.device | None:
        """Return the device of the training; the trainer leaves the super-net on the CPU."""
        return None if self._trainer is None else self._trainer.strategy.root_device
