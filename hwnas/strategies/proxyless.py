"""Proxyless: differentiable search in which one path runs at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from hwnas.export.mode import evaluation_mode
from hwnas.nn import ModelSpace
from hwnas.space import Sample
from hwnas.strategies.architecture_step import ArchitectureStep, training_loss
from hwnas.strategies.darts import DARTS
from hwnas.strategies.drawn_search import DrawnSearch
from hwnas.strategies.feasible import FeasibleSampler
from hwnas.strategies.most_probable import probable_draws
from hwnas.strategies.scored import ScoredOneShot
from hwnas.supernet import BinaryGates, Relaxation
from hwnas.supernet.most_probable import ranked_options


class GateStep(ArchitectureStep):
    """The architecture step of a `Proxyless`, which leaves candidates alone that did not compete."""

    def update(self) -> None:
        """Update the parameters, then rescale those of the two that competed."""
        assert isinstance(self.relaxation, BinaryGates)
        with self.relaxation.others_unchanged():
            super().update()


class Proxyless(ScoredOneShot, DARTS):
    """Differentiable search with binary gates.

    In the step of the weights one architecture is drawn and only it runs, so a step takes the memory and the time of
    one member. In the step of the architecture two candidates of each decision run, or all of them. Validation runs
    the most probable architecture. See `hwnas.supernet.BinaryGates`.

    Labels are independent in the distribution. Under a budget the best members need not be the most probable ones then:
    a large width goes well with cheap operators and a small one with dear ones, and both sides may stay likely. So at
    the end, when the best member is first asked for, the most probable one and members drawn within the budget are
    scored with the weights of the super-net, each with batch normalisation statistics of its own, by the loss of
    `training_step` on the validation data, joined with the penalty. Weights here were trained one member at a time, as
    they are scored.

    The defaults of the optimiser are those of ProxylessNAS, which differ from DARTS: without momentum, and without
    weight decay, a candidate only changes when it was drawn.

    Parameters
    ----------
    arc_learning_rate, arc_betas, arc_weight_decay
        Of the Adam optimiser of the architecture.
    paths : 2 or None
        How many candidates compete in a step of the architecture; None for all. With 2, the probabilities of the
        others stay as they are.
    normalise_candidates : bool
        As for `DARTS`, but off unless asked for: one path runs with weight one, as it does when it is frozen, so no
        candidate gains by the scale of its output, and weights that are trained without a normalisation are those of
        the frozen member.
    candidates : int
        How many members are scored at the end; with 1 the most probable one is taken.
    **options
        Those of `DARTS`; of them `warmup_epochs` counts most, as a candidate trains only when it is drawn.

    Raises
    ------
    ValueError, TypeError
        When an argument is out of its range or of another type.
    UnsupportedError
        With ``unrolled=True``: weights of one path have no second derivative that tells of the other paths.

    References
    ----------
    Cai, Zhu, Han: ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware, ICLR 2019.
    """

    step_type = GateStep
    unrolled_step_type = None

    def __init__(
        self,
        arc_learning_rate: float = 1e-3,
        *,
        paths: int | None = 2,
        arc_betas: tuple[float, float] = (0.0, 0.999),
        arc_weight_decay: float = 0.0,
        normalise_candidates: bool = False,
        candidates: int = 100,
        **options: Any,
    ) -> None:
        super().__init__(
            arc_learning_rate,
            arc_betas=arc_betas,
            arc_weight_decay=arc_weight_decay,
            normalise_candidates=normalise_candidates,
            **options,
        )
        if paths not in (2, None):
            raise ValueError(f"Proxyless: paths is {paths!r}; expected 2, or None for all candidates")
        if candidates < 1:
            raise ValueError(f"Proxyless: candidates is {candidates}; expected at least 1")
        self.paths = paths
        self.candidates = candidates
        self.search = DrawnSearch(
            self._draws,
            evaluations=candidates,
            metric=self._score,
            value=self._penalised,
            max_recalibration_batches=self.max_recalibration_batches,
            seed=self.seed,
        )

    def make_relaxation(self, space: ModelSpace) -> Relaxation:
        """Return binary gates for the values of each label."""
        return BinaryGates(space.simplify().values(), paths=self.paths, seed=self.seed)

    def ranked_samples(self) -> Iterator[Sample]:
        """Yield the members that were scored, best first; with ``candidates=1`` see `DARTS.ranked_samples`."""
        return DARTS.ranked_samples(self) if self.candidates == 1 else super().ranked_samples()

    def present_sample(self) -> Sample:
        """Return the most probable member; see `OneShotStrategy.present_sample`."""
        return next(DARTS.ranked_samples(self))

    def _draws(self, sampler: FeasibleSampler) -> Iterator[Sample]:
        """Yield the most probable member, then draws without end; the same at every call."""
        yield self.present_sample()
        options = {str(label): ranked_options(self.relaxation, label) for label in sampler.dimensions}
        yield from probable_draws(sampler.space, options, sampler.filter, seed=self.seed)

    def _score(self, member: nn.Module, batches: Sequence[Any]) -> float:
        """Return the negative loss of a member, the mean over the batches."""
        assert self._trainer is not None
        module = self.evaluator.module
        module.set_model(member)
        module.to(next((tensor.device for tensor in member.parameters()), torch.device("cpu")))
        try:
            with evaluation_mode(module), torch.no_grad():
                losses = [training_loss(self._trainer, module, batch, i) for i, batch in enumerate(batches)]
        finally:
            module.set_model(self.supernet)
        return -float(torch.stack([loss for loss in losses if loss is not None]).mean())

    def _penalised(self, score: float, sample: Sample) -> float:
        """Return the negative loss of a member, joined with the penalty."""
        if self.penalty is None:
            return score
        joined = torch.tensor(-score, dtype=torch.float64)
        for part in self.penalty.parts:
            joined = part.join(joined, torch.tensor(part.profiler.profile(sample), dtype=torch.float64))
        return -float(joined)
