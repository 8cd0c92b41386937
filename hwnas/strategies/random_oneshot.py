"""Random one-shot: a super-net trained on members that are drawn at random, and searched afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning as L
import numpy as np

from hwnas.nn import ModelSpace
from hwnas.profilers.filters import as_filter, profiler_of
from hwnas.profilers.profiler import Profiler
from hwnas.space import Sample
from hwnas.strategies.budget import Budget
from hwnas.strategies.feasible import AnyFilter, FeasibleSampler
from hwnas.strategies.member_sampling import MemberSampling, SamplingName, as_sampling
from hwnas.strategies.member_training import MemberTraining
from hwnas.strategies.scored import ScoredOneShot
from hwnas.strategies.search_reading import WatchedCost
from hwnas.strategies.subnet_search import SubnetSearch
from hwnas.supernet import MutationHook, OneHot, Relaxation


class RandomOneShot(ScoredOneShot):
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
    filter : ProfilerFilter, callable, mapping, or sequence of these, optional
        Which samples are trained and returned; a mapping is the dictionary form, ``{"profiler": ..., "min":
        ..., "max": ..., "confidence": ...}``. Of a sequence all have to accept.
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
        self.filter = as_filter(filter)
        self.sampling = as_sampling(sampling)
        self.search = SubnetSearch(seed=self.seed) if search is None else search

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
        """Return also the cost of the filter, the first of several; see `OneShotStrategy.watched_costs`."""
        found = super().watched_costs()
        if (profiler := profiler_of(self.filter)) is not None:
            found["arch/expected_cost"] = WatchedCost(profiler)
        return found
