"""The scale of candidates: what is mixed is normalised first, so that no candidate counts for more by being larger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from hwnas.errors import TrainingError
from hwnas.kernels import mixed_bn_sum
from hwnas.space import MutableExpression
from hwnas.supernet.affine_free import AffineFreeBatchNorm
from hwnas.supernet.last_norm import BeforeNorm, last_layer, mismatch, update_statistics, whole_reason
from hwnas.supernet.mixed_candidates import MixedCandidates
from hwnas.supernet.mixed_operation import MixedOperation, width_mask
from hwnas.supernet.mixture import Mixture
from hwnas.supernet.relaxation import Relaxation

EPS = 1e-5
"""Added to variances, as PyTorch does."""

_OUTPUT_WIDTHS = ("out_channels", "num_features", "out_features", "num_channels")

_ONE_DIMENSIONAL = (
    nn.Conv1d,
    nn.ConvTranspose1d,
    nn.BatchNorm1d,
    nn.MaxPool1d,
    nn.AvgPool1d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveAvgPool1d,
)


class _Term(NamedTuple):
    """An output as `mixed_bn_sum` takes it."""

    y: Any
    eps: float | None  # None: it is added as it is
    norm: _BatchNorm | None = None  # has running statistics to be updated


class CandidateNorm:
    """Normalises the outputs of the active candidates of one choice, and mixes them.

    Each output goes through a batch normalisation over dimension 1 without any parameter or state: it always uses the
    statistics of the batch. A candidate that ends with a batch normalisation needs no second one.

    Images, shape (N, C, H, W), and volumes, shape (N, C, D, H, W), are normalised. In shapes (N, C) and (N, C, L)
    dimension 1 is a channel only by convention: they are normalised where a candidate holds a one-dimensional
    convolution, pooling or batch normalisation of PyTorch, so sequences of tokens, shape (N, L, C), and outputs of
    linear layers pass as they are. So does everything that is no tensor of floating-point numbers, such as a tuple.

    A normalisation undoes the mask of a width that is a mixture; it is applied again. The width of the output is
    that of the last layer of a candidate which tells one. Where none does, for pooling and skip alone, and the
    super-net mixes widths, outputs pass as they are.

    Where several candidates are active, normalising and mixing are one operation, `hwnas.kernels.mixed_bn_sum`; a batch
    normalisation at the end of a candidate is part of it, and its running statistics are updated as always.
    `unfused_reason` says why not, and `hwnas.supernet.last_norm.whole_reason` why a candidate runs as a whole. Neither
    changes what is computed.

    In evaluation mode of the relaxation one architecture runs, and what it computes is what it computes when it is
    frozen: nothing is normalised there.

    Parameters
    ----------
    where : str
        Names the choice in messages.
    candidates : sequence of torch.nn.Module
        All of them.
    relaxation : Relaxation
        Of the super-net.
    mixes_widths : bool
        Whether widths in the super-net are choices.
    """

    def __init__(
        self, where: str, candidates: Sequence[nn.Module], relaxation: Relaxation, *, mixes_widths: bool
    ) -> None:
        self.where = where
        self.relaxation = relaxation
        self.mixes_widths = mixes_widths
        parts = _parts(candidates)
        self._one_dimensional = any(isinstance(part, _ONE_DIMENSIONAL) for part in parts)
        self._widths = [width for part in reversed(parts) for width in _output_width(part)]

    def __call__(self, mixture: Mixture, candidates: Sequence[nn.Module], outputs: Sequence[Any]) -> Any:
        """Normalise and mix; see `MixedCandidates.mix`.

        Raises
        ------
        TrainingError
            When a channel has one value only.
        """
        if mixture.weights is None and not self.relaxation.training:
            return outputs[0]
        terms = [self._term(*pair) for pair in zip(candidates, outputs, strict=True)]
        if self._unfused_reason(mixture, terms) is None:
            return _fused(mixture, terms)
        return mixture.combine(
            [
                y.finish() if isinstance(y, BeforeNorm) else y if _ends_normalised(candidate) else self._normalised(y)
                for candidate, y in zip(candidates, outputs, strict=True)
            ]
        )

    def takes_over(self, mixture: Mixture, candidate: nn.Module) -> bool:
        """Tell whether a candidate leaves its last batch normalisation to this."""
        return mixture.weights is not None and _ends_normalised(candidate) and whole_reason(candidate) is None

    def unfused_reason(self, mixture: Mixture, candidates: Sequence[nn.Module], outputs: Sequence[Any]) -> str | None:
        """Say why outputs are normalised one by one and mixed then, and not in one operation.

        Parameters
        ----------
        mixture, candidates, outputs
            See `MixedCandidates.mix`.

        Returns
        -------
        str or None
            The reason, None when normalising and mixing are one operation. The results are the same.
        """
        terms = [self._term(*pair) for pair in zip(candidates, outputs, strict=True)]
        return self._unfused_reason(mixture, terms)

    def _unfused_reason(self, mixture: Mixture, terms: Sequence[_Term]) -> str | None:
        if mixture.weights is None:
            return "one candidate is active"
        first = terms[0].y
        for term in terms:
            if not (isinstance(term.y, Tensor) and term.y.is_floating_point()):
                return f"a candidate gave out a {type(term.y).__name__} that is no tensor of floating-point numbers"
            if (term.y.dtype, term.y.device, term.y.shape) != (first.dtype, first.device, first.shape):
                return "the outputs differ in type, device or shape"
        if all(term.eps is None for term in terms):
            return "no output is to be normalised"
        if first.numel() <= first.shape[1]:
            return f"shape {tuple(first.shape)} has not two values for each channel"
        norms = [term.norm for term in terms if term.norm is not None]
        if len(set(map(id, norms))) < len(norms):
            return "candidates share a batch normalisation"
        return next((reason for norm in norms if (reason := mismatch(norm, first))), None)

    def _term(self, candidate: nn.Module, output: Any) -> _Term:
        if isinstance(output, BeforeNorm):
            return _Term(output.y, output.norm.eps, output.norm)
        if _ends_normalised(candidate) or not self._has_channels(output):
            return _Term(output, None)
        width = self._width(output.shape[1])
        if width is None and self.mixes_widths:
            return _Term(output, None)
        if isinstance(width, Mixture):
            return _Term(self._normalised(output), None)
        return _Term(output, EPS)

    def _normalised(self, y: Any) -> Any:
        if not self._has_channels(y):
            return y
        channels = y.shape[1]
        width = self._width(channels)
        if width is None and self.mixes_widths:
            return y
        if y.numel() == channels:
            raise TrainingError(
                f"{self.where}: a candidate gave out one value for each channel, shape {tuple(y.shape)}, which cannot "
                "be normalised. Use larger batches, leave a last batch of one sample out (drop_last=True), or search "
                "with normalise_candidates=False"
            )
        normalised = F.batch_norm(y, None, None, training=True, eps=EPS)
        mask = width_mask(width, channels, normalised)
        return normalised if mask is None else normalised * mask.view(-1, *[1] * (y.dim() - 2))

    def _has_channels(self, y: Any) -> bool:
        if not (isinstance(y, Tensor) and y.is_floating_point()):
            return False
        return y.dim() in (4, 5) or (y.dim() in (2, 3) and self._one_dimensional)

    def _width(self, channels: int) -> int | Mixture | None:
        """Return the present width of the output, None if no candidate tells it."""
        for width in self._widths:
            present = self.relaxation.value(width) if isinstance(width, MutableExpression) else width
            if channels == (max(present.values) if isinstance(present, Mixture) else present):
                found: int | Mixture = present
                return found
        return None


def normalise_candidates(supernet: nn.Module) -> None:
    """Let every candidate of a super-net enter its mixture with the same scale, in place.

    The weight of a candidate in a mixture means little as long as training can make its output ten times as large. So
    the outputs of all candidates of every layer choice, pooling and skip included, are normalised before they are
    mixed (see `CandidateNorm`), and batch normalisations inside candidates run without scale and shift. A frozen
    member has none of this: its batch normalisations have a scale of 1 and a shift of 0, to be trained.

    Call it after `make_supernet` and before an optimiser is made.

    Parameters
    ----------
    supernet : torch.nn.Module
        Made by `make_supernet`. A batch normalisation that is part of a candidate and of something else
        loses scale and shift in both places.

    References
    ----------
    Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019, appendix A.1.1.

    Examples
    --------
    >>> import torch
    >>> import hwnas.nn as nn
    >>> from hwnas.supernet import Softmax, make_supernet, normalise_candidates
    >>> class Space(nn.ModelSpace):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.LayerChoice([nn.Conv2d(2, 2, 1), nn.Identity()])
    ...     def forward(self, x):
    ...         return self.layer(x)
    >>> space = Space()
    >>> supernet = make_supernet(space, Softmax(space.simplify().values()))
    >>> normalise_candidates(supernet)
    >>> x = torch.randn(4, 2, 3, 3)
    >>> before = supernet(x)
    >>> _ = supernet.layer[0].weight.data.mul_(10)
    >>> torch.allclose(supernet(x), before, atol=1e-3)
    True
    """
    parts = list(supernet.modules())
    mixes_widths = any(isinstance(width, MutableExpression) for part in parts for width in _output_width(part))
    for choice in parts:
        if isinstance(choice, MixedCandidates):
            where = " and ".join(choice.search_space_spec()) or type(choice).__name__
            candidates = [module for modules in choice.named_candidates().values() for module in modules]
            choice.norm = CandidateNorm(where, candidates, choice.relaxation, mixes_widths=mixes_widths)
            for part in _parts(candidates):
                AffineFreeBatchNorm.take_over(part, choice.relaxation)


def _parts(candidates: Sequence[nn.Module]) -> list[nn.Module]:
    return [part for candidate in candidates for part in candidate.modules()]


def _output_width(part: nn.Module) -> Iterator[int | MutableExpression]:
    """Yield how many channels a layer gives out, if it tells."""
    told = part.arguments if isinstance(part, MixedOperation) else {n: getattr(part, n, None) for n in _OUTPUT_WIDTHS}
    for name in _OUTPUT_WIDTHS:
        width = told.get(name)
        if isinstance(width, int | MutableExpression):
            yield width


def _ends_normalised(candidate: nn.Module) -> bool:
    """Tell whether the last layer of a candidate is a batch normalisation without scale and shift."""
    return isinstance(last_layer(candidate), AffineFreeBatchNorm)


def _fused(mixture: Mixture, terms: Sequence[_Term]) -> Tensor:
    """Normalise and mix in one operation, and update the running statistics."""
    assert mixture.weights is not None
    ys = [term.y for term in terms]
    for term in terms:
        if term.norm is not None:
            term.norm._check_input_dim(term.y)
    eps = [0.0 if term.eps is None else term.eps for term in terms]
    found = mixed_bn_sum(mixture.weights, ys, [term.eps is not None for term in terms], eps=eps)
    norms = {k: term.norm for k, term in enumerate(terms) if term.norm is not None}
    if norms:
        means, variances = ([table[k] for k in norms] for table in (found.means, found.variances))
        update_statistics(list(norms.values()), means, variances, ys[0].numel() // ys[0].shape[1])
    return found.out
