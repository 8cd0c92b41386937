"""Freezing: from a model with choices and a sample to a plain PyTorch model.

The idea is `copy.deepcopy` with a prepared memo: every topmost mutable is lowered first and put into the
memo under its identity, then an ordinary deep copy of the module around it finds the replacement wherever
the original was referred to. Tied weights stay tied, nothing is shared with the original, and the code of
the user's modules is used as it is.
"""

from __future__ import annotations

import copy
import functools
import operator
import types
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from hwnas.nn.holding import module_mutables
from hwnas.space import Constraint, Mutable, Sample

if TYPE_CHECKING:
    from collections.abc import Callable


KEPT_BY_HWNAS = ("_registered_mutables", "_known_structure", "_variants", "_compiled_call_impl")
"""Attributes of mutable modules that a frozen model does not have; that of `compile` would run the original."""


class Lowerable(Protocol):
    """Anything that can become a plain module: the mutable modules and the super-net modules."""

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Build the frozen module."""


def freeze_module(module: nn.Module, sample: Sample, memo: dict[int, Any]) -> nn.Module:
    """Freeze any module, mutable or not.

    Parameters
    ----------
    module : torch.nn.Module
        A module that may hold mutables at any depth.
    sample : dict
        A validated sample.
    memo : dict
        See `hwnas.nn.MutableModule.lower`.

    Returns
    -------
    torch.nn.Module
        A plain module, the same object for the same `module` as long as the memo is the same.
    """
    if id(module) not in memo:
        if isinstance(module, Mutable):
            # By the class: `torch.nn.RReLU` has a number of this name.
            kind: type[Lowerable] = type(module)  # type: ignore[assignment]
            memo[id(module)] = kind.lower(module, sample, memo)  # type: ignore[arg-type]
        else:
            memo[id(module)] = copy_frozen(module, sample, memo)
    frozen: nn.Module = memo[id(module)]
    return frozen


def copy_frozen(module: nn.Module, sample: Sample, memo: dict[int, Any]) -> nn.Module:
    """Deep-copy `module` with every mutable inside it replaced by what the sample makes of it."""
    for mutable in module_mutables(module):
        if id(mutable) in memo:
            continue
        if isinstance(mutable, nn.Module):
            freeze_module(mutable, sample, memo)
        elif isinstance(mutable, Constraint):
            memo[id(mutable)] = None
        else:
            memo[id(mutable)] = _constant(mutable.freeze(sample))
    copied = _deepcopy_contents(module, memo)
    for part in copied.modules():
        plain = plain_class(type(part))  # type: ignore[arg-type]
        if plain is not type(part):
            part.__class__ = plain
    return copied


def _deepcopy_contents(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    # Not copy.deepcopy(module): a module that defines __deepcopy__ through its hwnas base would loop.
    copied = module.__new__(type(module))
    memo[id(module)] = copied
    kept = {name: value for name, value in vars(module).items() if name not in KEPT_BY_HWNAS}
    vars(copied).update({name: copy.deepcopy(value, memo) for name, value in kept.items()})
    return copied


def _constant(value: Any) -> Callable[[], Any]:
    """Return what a value choice that is called in `forward` becomes: a callable of the standard library."""
    return functools.partial(operator.getitem, (value,), 0)


@functools.cache
def plain_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return `cls` without its bases from hwnas.

    Parameters
    ----------
    cls : type
        A class of modules, typically a user's subclass of `hwnas.nn.ModelSpace`.

    Returns
    -------
    type
        `cls` itself when nothing of hwnas is among its bases; otherwise a class of the same name and with the
        same methods, except the constructor, whose bases come from PyTorch and from the user alone.
    """
    if not any(base.__module__.split(".")[0] == "hwnas" for base in cls.__mro__):
        return cls
    twin_of: type[nn.Module] | None = vars(cls).get("_twin_of")
    if twin_of is not None:
        return twin_of
    kept = [plain_class(base) for base in cls.__bases__ if not _is_machinery(base) and base is not object]
    if not any(issubclass(base, nn.Module) for base in kept):
        kept.append(nn.Module)
    bases = tuple(dict.fromkeys(kept))
    if _is_machinery(cls) and len(bases) == 1:
        return bases[0]
    namespace = {
        name: value
        for name, value in vars(cls).items()
        if name not in ("__dict__", "__weakref__", "__init__") and not name.startswith(("_abc_", "__abstract"))
    }
    namespace["__module__"] = "frozen"
    cell = types.CellType()
    namespace = {name: _rebound(value, cls, cell) for name, value in namespace.items()}
    plain: type[nn.Module] = type(cls.__name__, bases, namespace)
    cell.cell_contents = plain  # what super() without arguments looks at
    return plain


def _is_machinery(cls: type) -> bool:
    """Whether a class only serves the search, and so leaves no trace in a frozen model."""
    return cls.__module__.startswith("hwnas.space") or vars(cls).get("_search_machinery", False)


def _rebound(value: Any, cls: type, cell: types.CellType, inside: frozenset[int] = frozenset()) -> Any:
    """Give functions that use `super()` or `__class__` the new class instead of `cls`, decorated ones too."""
    if isinstance(value, staticmethod | classmethod):
        return type(value)(_rebound(value.__func__, cls, cell, inside))
    if isinstance(value, property):
        fget, fset, fdel = (_rebound(part, cls, cell, inside) for part in (value.fget, value.fset, value.fdel))
        return property(fget, fset, fdel, value.__doc__)
    if not isinstance(value, types.FunctionType):
        return value
    names = value.__code__.co_names
    if "super" in names and cls.__name__ in names and value.__globals__.get(cls.__name__) is cls:
        raise TypeError(
            f"{cls.__name__}.{value.__name__} calls super({cls.__name__}, ...); the class of a frozen model is "
            "another one, without bases from hwnas, so write super() without arguments"
        )
    if value.__closure__ is None or id(value) in inside:
        return value
    closure = tuple(_rebound_cell(old, cls, cell, inside | {id(value)}) for old in value.__closure__)
    if all(new is old for new, old in zip(closure, value.__closure__, strict=True)):
        return value
    function = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, closure)
    function.__kwdefaults__ = value.__kwdefaults__
    function.__dict__.update(value.__dict__)
    return function


def _rebound_cell(old: types.CellType, cls: type, cell: types.CellType, inside: frozenset[int]) -> types.CellType:
    try:
        content = old.cell_contents
    except ValueError:  # empty
        return old
    if content is cls:
        return cell
    rebound = _rebound(content, cls, cell, inside)
    return old if rebound is content else types.CellType(rebound)
