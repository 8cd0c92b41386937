"""The base of modules that mix the outputs of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hwnas.supernet.base import BaseSuperNetModule
from hwnas.supernet.fused import is_observed
from hwnas.supernet.fused_sequence import run_fused
from hwnas.supernet.last_norm import run_before_norm
from hwnas.supernet.mixture import Mixture

if TYPE_CHECKING:
    from hwnas.supernet.candidate_norm import CandidateNorm
    from hwnas.supernet.sharing import SharedResults


class MixedCandidates(BaseSuperNetModule):
    """A module that mixes the outputs of candidates.

    Attributes
    ----------
    norm : CandidateNorm, optional
        Normalises them first; see `normalise_candidates`.
    shared : SharedResults, optional
        Of the operations of a cell, during its forward pass; see `hwnas.supernet.sharing`.
    """

    norm: CandidateNorm | None = None
    shared: SharedResults | None = None

    def named_candidates(self) -> dict[Any, list[nn.Module]]:
        """Return by its name what each candidate consists of."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its candidates are (named_candidates)")

    def run(self, mixture: Mixture, candidates: Sequence[nn.Module], *args: Any, **kwargs: Any) -> Any:
        """Run the active candidates on one input, and mix their outputs.

        A candidate with an attribute ``always_zero`` that is true gives out zeros whatever it reads. Where others are
        active too it is left out, which changes nothing: normalised zeros are zeros.

        Parameters
        ----------
        mixture : Mixture
            Of the names of the candidates.
        candidates : sequence of torch.nn.Module
            Those that are active.
        *args, **kwargs
            What they read.
        """
        kept = nonzero_positions(mixture, [candidates], args)
        if len(kept) < len(candidates):
            mixture, candidates = part_of(mixture, kept), [candidates[k] for k in kept]
        return self.mix(mixture, candidates, self.run_each(mixture, candidates, *args, **kwargs))

    def run_each(self, mixture: Mixture, candidates: Sequence[nn.Module], *args: Any, **kwargs: Any) -> list[Any]:
        """Run the active candidates on one input; see `run`."""
        outputs = []
        for name, candidate in zip(mixture.values, candidates, strict=True):
            with mixture.where(name.__eq__):
                outputs.append(self.run_one(mixture, candidate, *args, **kwargs))
        return outputs

    def run_one(self, mixture: Mixture, candidate: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run an active candidate: up to its last batch normalisation where `mix` does that for all at once."""
        if kwargs or len(args) != 1:
            return candidate(*args, **kwargs)
        if self.norm is not None and self.norm.takes_over(mixture, candidate):
            return run_before_norm(candidate, args[0], self.shared)
        return run_fused(candidate, args[0], self.shared)

    def mix(self, mixture: Mixture, candidates: Sequence[nn.Module], outputs: Sequence[Any]) -> Any:
        """Mix outputs, normalised where that was asked for.

        Parameters
        ----------
        mixture : Mixture
            Of the names of the candidates.
        candidates : sequence of torch.nn.Module
            Those that are active.
        outputs : sequence
            What `run_one` gave out.
        """
        if self.norm is None:
            return mixture.combine(outputs)
        return self.norm(mixture, candidates, outputs)


def nonzero_positions(mixture: Mixture, candidates: Sequence[Sequence[nn.Module]], inputs: Sequence[Any]) -> list[int]:
    """Return which values of a mixture have to run: all, or those that give out more than zeros.

    Parameters
    ----------
    mixture : Mixture
        Of the names of candidates.
    candidates : sequence of sequence of torch.nn.Module
        Rows with one candidate for each name. One is left out where all rows have zeros.
    inputs : sequence
        What they read.
    """
    every = list(range(len(mixture.values)))
    if mixture.weights is None or type(mixture) is not Mixture:
        return every
    kept = [k for k in every if not all(_is_zero(row[k]) for row in candidates)]
    if not kept or not all(isinstance(x, Tensor) and not torch.is_autocast_enabled(x.device.type) for x in inputs):
        return every  # zeros may decide about the type of the sum
    return kept


def part_of(mixture: Mixture, kept: Sequence[int]) -> Mixture:
    """Return a mixture of some of the values, with the weights that they have."""
    assert mixture.weights is not None
    # Slices, because a list of indices would have to be copied to the device.
    weights = torch.cat([mixture.weights[k : k + 1] for k in kept])
    return Mixture([mixture.values[k] for k in kept], weights)


def _is_zero(candidate: nn.Module) -> bool:
    return getattr(candidate, "always_zero", False) is True and not is_observed(candidate)
