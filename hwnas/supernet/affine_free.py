"""Batch normalisations of candidates, which scale and shift nothing during a search."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self

from hwnas.space import Mutable, Sample
from hwnas.supernet.base import BaseSuperNetModule
from hwnas.supernet.relaxation import Relaxation


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
