"""Proxyless: differentiable search in which one path runs at a time."""

from __future__ import annotations

from typing import Any

from hwnas.nn import ModelSpace
from hwnas.strategies.architecture_step import ArchitectureStep
from hwnas.strategies.darts import DARTS
from hwnas.supernet import BinaryGates, Relaxation


class GateStep(ArchitectureStep):
    """The architecture step of a `Proxyless`, which leaves candidates alone that did not compete."""

    def update(self) -> None:
        """Update the parameters, then rescale those of the two that competed."""
        assert isinstance(self.relaxation, BinaryGates)
        with self.relaxation.others_unchanged():
            super().update()


class Proxyless(DARTS):
    """Differentiable search with binary gates.

    In the step of the weights one architecture is drawn and only it runs, so a step takes the memory and the time of
    one member. In the step of the architecture two candidates of each decision run, or all of them. Validation runs
    the most probable architecture. See `hwnas.supernet.BinaryGates`.

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
        self.paths = paths

    def make_relaxation(self, space: ModelSpace) -> Relaxation:
        """Return binary gates for the values of each label."""
        return BinaryGates(space.simplify().values(), paths=self.paths, seed=self.seed)
