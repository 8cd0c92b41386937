"""`LayerChoice` in a super-net."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from hwnas.nn import LayerChoice
from hwnas.space import Mutable
from hwnas.supernet.base import BaseSuperNetModule
from hwnas.supernet.mixed_candidates import MixedCandidates


class MixedLayer(MixedCandidates, LayerChoice):
    """The mixture of the candidates of a `LayerChoice`."""

    _search_machinery = True

    def own_mutables(self) -> Iterator[Mutable]:
        """Yield the choice."""
        yield self.choice

    def named_candidates(self) -> dict[Any, list[nn.Module]]:
        """Return each candidate, by its name."""
        return {name: [self.candidate(name)] for name in self.names}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the active candidates and mix their outputs."""
        mixture = self.relaxation.mixture(self.choice)
        return self.run(mixture, [self.candidate(name) for name in mixture.values], *args, **kwargs)

    @classmethod
    def mutate(
        cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> BaseSuperNetModule | bool:
        """Replace a `LayerChoice`."""
        if not isinstance(module, LayerChoice) or isinstance(module, BaseSuperNetModule):
            return False
        return cls.adopt(module, mutate_kwargs["relaxation"])
