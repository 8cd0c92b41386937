"""One sampled architecture at a time: the relaxation of RandomOneShot and of ENAS."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hwnas.space import CategoricalMultiple, LabeledMutable, MutableExpression, Sample
from hwnas.supernet.mixture import Mixture
from hwnas.supernet.relaxation import Relaxation


class OneHot(Relaxation):
    """Every decision has exactly one active value, that of the present sample.

    Parameters
    ----------
    mutables : iterable of LabeledMutable
        The dimensions of the space. The first sample is made of their defaults.
    """

    def __init__(self, mutables: Iterable[LabeledMutable]) -> None:
        super().__init__(mutables)
        self.sample: Sample = {label: mutable.default_value() for label, mutable in self.dimensions.items()}

    def mixture(self, decision: MutableExpression) -> Mixture:
        """Return the value of `decision` in the present sample."""
        return Mixture((decision.evaluate(self.sample),))

    def subset(self, decision: CategoricalMultiple) -> Mixture:
        """Return the items that are chosen in the present sample."""
        return Mixture((self.sample[decision.label],))

    def resample(self, memo: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Take over `memo` and draw what it lacks by the weights of each dimension.

        Constraints join labels, so they are the business of whoever draws whole samples: `memo` then holds
        all of them.
        """
        rng = np.random.default_rng() if rng is None else rng
        decided = {
            label: memo[label] if label in memo else mutable.random_value(rng)
            for label, mutable in self.dimensions.items()
        }
        for label, value in decided.items():
            if reason := self.dimensions[label].check_value(value):
                raise ValueError(f"label {label!r}: {reason}")
        self.sample = decided
        return {label: value for label, value in decided.items() if label not in memo}

    def export(self, label: str) -> Any:
        """Return the value in the present sample."""
        return self.sample[self.dimension(label).label]
