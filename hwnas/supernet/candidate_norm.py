"""The scale of candidates: what is mixed is normalised first, so that no candidate counts for more by being larger."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self

from hwnas.errors import TrainingError
from hwnas.space import Mutable, MutableExpression, Sample
from hwnas.supernet.base import BaseSuperNetModule
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


class MixedCandidates(BaseSuperNetModule):
    """A module that mixes the outputs of candidates.

    Attributes
    ----------
    norm : CandidateNorm, optional
        Normalises them first; see `normalise_candidates`.
    """

    norm: CandidateNorm | None = None

    def named_candidates(self) -> dict[Any, list[nn.Module]]:
        """Return by its name what each candidate consists of."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its candidates are (named_candidates)")

    def mix(self, mixture: Mixture, candidates: Sequence[nn.Module], outputs: Sequence[Any]) -> Any:
        """Mix outputs, normalised where that was asked for.

        Parameters
        ----------
        mixture : Mixture
            Of the names of the candidates.
        candidates : sequence of torch.nn.Module
            Those that are active.
        outputs : sequence
            What they gave out.
        """
        if self.norm is None:
            return mixture.combine(outputs)
        return self.norm(mixture, candidates, outputs)


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
        pairs = zip(candidates, outputs, strict=True)
        return mixture.combine([y if _ends_normalised(candidate) else self._normalised(y) for candidate, y in pairs])

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


class AffineFreeBatchNorm(BaseSuperNetModule):
    """A batch normalisation in a candidate: without scale and shift during the search, with them in a frozen member.

    They are 1 and 0 then, as in the search. Until then they are no parameters, so nothing trains them.
    """

    _affine: dict[str, nn.Parameter]

    @classmethod
    def take_over(cls, module: nn.Module, relaxation: Relaxation) -> None:
        """Make a batch normalisation one of this class, in place; wherever it is held, it stays the same object."""
        if isinstance(module, cls) or not isinstance(module, _BatchNorm) or module.weight is None:
            return
        affine = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
        nn.init.ones_(affine["weight"])
        if "bias" in affine:
            nn.init.zeros_(affine["bias"])
        taken: Any = module
        kind: Any = type(module)
        taken.__class__ = _affine_free(kind)
        taken.attach(relaxation)
        taken._affine = affine
        taken._hide()

    def _hide(self) -> None:
        self._parameters.update(dict.fromkeys(self._affine))
        self.affine = False

    @contextmanager
    def _shown(self) -> Iterator[None]:
        self._parameters.update(self._affine)
        self.affine = True
        try:
            yield
        finally:
            self._hide()

    def own_mutables(self) -> Iterator[Mutable]:
        """Yield the choices among the arguments, if there are any."""
        yield from self.sub_mutables()

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to a batch normalisation with scale and shift."""
        with self._shown():
            lowered = super().lower(sample, memo)
        vars(lowered).pop("_affine", None)
        return lowered

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to another device or type, scale and shift too."""
        with self._shown():
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            self._affine = {name: found for name in self._affine if (found := self._parameters[name]) is not None}
        return self


@functools.cache
def _affine_free(kind: Any) -> Any:
    namespace = {"__module__": __name__, "__doc__": f"`{kind.__qualname__}` in a candidate, without scale and shift."}
    return types.new_class(
        f"AffineFree{kind.__name__}", (AffineFreeBatchNorm, kind), exec_body=lambda ns: ns.update(namespace)
    )


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
    if type(candidate) is nn.Sequential and len(candidate) > 0:
        return _ends_normalised(candidate[-1])
    return isinstance(candidate, AffineFreeBatchNorm)
