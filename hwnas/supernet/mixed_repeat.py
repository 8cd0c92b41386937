"""`Repeat` in a super-net."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from hwnas.nn import Repeat
from hwnas.space import Mutable, MutableExpression
from hwnas.supernet.base import BaseSuperNetModule


class MixedRepeat(BaseSuperNetModule, Repeat):
    """The mixture over the depths of a `Repeat`: what comes out after each possible number of blocks.

    The blocks run once; a depth of zero contributes the input itself.
    """

    _search_machinery = True

    def own_mutables(self) -> Iterator[Mutable]:
        """Yield the depth."""
        if isinstance(self.depth, MutableExpression):
            yield self.depth

    def forward(self, x: Any) -> Any:
        """Run as many blocks as the deepest active depth needs, and mix.

        Parameters
        ----------
        x : Tensor
            Input of the first block.

        Returns
        -------
        Tensor
            The weighted sum of the outputs at the active depths.
        """
        if not isinstance(self.depth, MutableExpression):
            return super().forward(x)
        mixture = self.relaxation.mixture(self.depth)
        outputs = {0: x}
        for index in range(max(mixture.values)):
            with mixture.where(index.__lt__):
                x = self.blocks[index](x)
            outputs[index + 1] = x
        return mixture.combine([outputs[depth] for depth in mixture.values])

    @classmethod
    def mutate(
        cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> BaseSuperNetModule | bool:
        """Replace a `Repeat`."""
        if not isinstance(module, Repeat) or isinstance(module, BaseSuperNetModule):
            return False
        return cls.adopt(module, mutate_kwargs["relaxation"])
