"""What is known of the structure of a model space, and whether it still holds."""

from __future__ import annotations

from typing import Any

from torch import nn

from hwnas.space import Mutable
from hwnas.space.walk import Structure


class KnownStructure:
    """The structure of a model space, together with what was looked at to find it.

    Walking through the modules of a space costs far more than drawing a sample, so the result is kept. It
    holds as long as every module has the children and the attributes that it had. What is inside lists,
    tuples and dictionaries that are attributes is not watched.
    """

    structure: Structure

    def look_up(self, space: nn.Module) -> None:
        """Find the structure of `space`, which must hold this object already."""
        assert isinstance(space, Mutable)
        self.structure = Structure(space)
        watched = [module for module in space.modules() if _may_hold(module)]
        self._children = [(module, dict(module._modules)) for module in watched]
        self._attributes = [(vars(module), dict(vars(module))) for module in watched if not _is_plain(module)]

    def holds(self) -> bool:
        """Tell whether the space is as it was."""
        try:
            # Dictionaries compare their values by identity before they compare them in any other way.
            return all(module._modules == before for module, before in self._children) and all(
                now == before for now, before in self._attributes
            )
        except (TypeError, RuntimeError):  # choices and tensors that are not the same object have no truth value
            return False

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Give a copied space nothing: what is known is about the original."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Give a pickled space nothing."""
        return type(None), ()


def _may_hold(module: nn.Module) -> bool:
    """Tell whether choices may appear in a module later on; a layer of PyTorch without children holds none."""
    return bool(module._modules) or not isinstance(module, _LAYERS) or isinstance(module, _CONTAINERS)


def _is_plain(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_LAYERS = tuple(
    kind
    for kind in vars(nn).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind is not nn.Module
)
