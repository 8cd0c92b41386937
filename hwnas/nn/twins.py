"""Everything public of `torch.nn`, the classes of modules replaced by their twins.

What editors and type checkers see stands in ``twins.pyi``.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from hwnas.nn.parametrized import parametrized, signature_of

# Their arguments are modules and parameters, or have nothing to do with the architecture.
_WITHOUT_TWINS = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList, nn.DataParallel)
_UNNAMED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _takes_choices(value: Any) -> bool:
    """Tell whether something of `torch.nn` is a class of modules with arguments that can be chosen."""
    if not (isinstance(value, type) and issubclass(value, nn.Module)) or value in _WITHOUT_TWINS:
        return False
    return any(parameter.kind not in _UNNAMED for parameter in signature_of(value).parameters.values())


def _offered(name: str) -> Any:
    value = getattr(nn, name)
    if not _takes_choices(value):
        return value
    twin: Any = parametrized(value)
    twin.__module__ = "hwnas.nn"
    return twin


_OFFERED = {name: _offered(name) for name in dir(nn) if not name.startswith("_")}

__all__ = sorted(_OFFERED)


def __getattr__(name: str) -> Any:
    try:
        return _OFFERED[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return __all__
