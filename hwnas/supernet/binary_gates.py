"""One or two paths at a time with binary gates: the relaxation of Proxyless."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from hwnas.space import CategoricalMultiple, LabeledMutable
from hwnas.supernet.sampled_softmax import Active, SampledSoftmax, gumbel_noise, straight_through


class _Draw(NamedTuple):
    """A drawn value, two that compete (in ascending order), and which of these two is open."""

    position: int
    pair: tuple[int, ...]
    open: int


class BinaryGates(SampledSoftmax):
    """Values have gates of which one is open: it has weight 1 and the others 0.

    Where no gradient of the architecture is wanted, the drawn value alone runs and the weights of the other
    candidates have no gradient at all. Where it is wanted, the gates are 0 and 1 and the gradient of a logit is
    ``sum_j dL/dg_j p_j (delta_ij - p_i)``, for which the output of every candidate is needed. With two paths, two
    candidates are drawn by their probabilities without replacement, the gate of one of them is opened by the
    renormalised probabilities, and the gradient is that of these two.

    Choices of several items always have the gates of all subsets: their candidates are computed in any case, and
    subsets that share items cannot change without changing others.

    Parameters
    ----------
    mutables : iterable of LabeledMutable
        The dimensions of the space, all of them choices among listed values.
    paths : 2 or None, default 2
        How many candidates compete in a step of the architecture; None for all.
    seed : int, default 0
        See `SampledSoftmax`.

    Raises
    ------
    ValueError
        When `paths` is something else.
    UnsupportedError
        See `SampledSoftmax`.

    References
    ----------
    Cai, Zhu, Han: ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware, ICLR 2019.

    Examples
    --------
    >>> from hwnas.space import Categorical
    >>> layer = Categorical(["conv", "pool", "skip"], label="layer")
    >>> relaxation = BinaryGates([layer])
    >>> len(relaxation.mixture(layer).values)
    2
    >>> _ = relaxation.requires_grad_(False)
    >>> len(relaxation.mixture(layer).values)
    1
    """

    def __init__(self, mutables: Iterable[LabeledMutable], *, paths: int | None = 2, seed: int = 0) -> None:
        if paths not in (2, None):
            raise ValueError(f"BinaryGates: paths is {paths!r}; expected 2, or None for all candidates")
        self.paths = paths
        self._draws: dict[str, _Draw] = {}
        super().__init__(mutables, seed=seed)

    def draw(self, label: str, given: int | None, generator: torch.Generator) -> int:
        """Draw a value, and two that compete; a given value is drawn, competes, and is open."""
        logits = self.logits(label).detach().to("cpu", torch.float64)
        # The largest perturbed logits are draws without replacement.
        order = (logits + gumbel_noise(len(logits), generator)).argsort(descending=True).tolist()
        again = logits + gumbel_noise(len(logits), generator)
        if given is not None:
            order = [given, *(position for position in order if position != given)]
        pair = tuple(sorted(order[:2]))
        is_open = max(pair, key=again.tolist().__getitem__) if given is None else given
        self._draws[label] = _Draw(order[0], pair, is_open)
        return int(order[0])

    def active(self, label: str) -> Active:
        """Return the drawn value, or those that compete with their gates."""
        drawn = self._draws[label]
        if not self.trains_architecture():
            return Active((drawn.position,), None)
        logits = self.logits(label)
        if not self._has_pair(label):
            return Active(tuple(range(len(logits))), straight_through(torch.softmax(logits, 0), drawn.position))
        shares = torch.softmax(logits[list(drawn.pair)], 0)
        return Active(drawn.pair, straight_through(shares, drawn.pair.index(drawn.open)))

    @contextmanager
    def others_unchanged(self) -> Iterator[None]:
        """Keep, over an update of the architecture parameters, the probabilities of all that did not compete.

        The two that did share what they had together. Only with two paths; else nothing is done.
        """
        before = {label: self.alpha(label).detach().clone() for label in self._draws if self._has_pair(label)}
        yield
        with torch.no_grad():
            for label, old in before.items():
                alpha, pair = self.alpha(label), list(self._draws[label].pair)
                new = alpha[pair]
                old[pair] = new + (old[pair].logsumexp(0) - new.logsumexp(0))
                alpha.copy_(old)

    def _has_pair(self, label: str) -> bool:
        return self.paths == 2 and not isinstance(self.dimension(label), CategoricalMultiple)
