"""Twins of `torch.nn` classes that take choices as arguments."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hwnas.nn.freezing import copy_frozen
from hwnas.nn.holding import OF_PYTORCH
from hwnas.nn.mutable_module import MutableModule
from hwnas.space import MutableExpression, Sample

Size = int | MutableExpression
Sizes = Size | tuple[Size, Size]


def map_argument(argument: Any, function: Callable[[MutableExpression], Any]) -> Any:
    """Replace the expressions in an argument, inside tuples and lists as well."""
    if isinstance(argument, MutableExpression):
        return function(argument)
    if isinstance(argument, tuple | list):
        return type(argument)(map_argument(part, function) for part in argument)
    return argument


def expressions_in(argument: Any) -> Iterator[MutableExpression]:
    """Yield the expressions in an argument, inside tuples and lists as well."""
    if isinstance(argument, MutableExpression):
        yield argument
    elif isinstance(argument, tuple | list):
        for part in argument:
            yield from expressions_in(part)


def has_choice(argument: Any) -> bool:
    """Tell whether there is an expression in an argument."""
    return any(True for _ in expressions_in(argument))  # the truth of an expression itself is not known


class _Twin(ABCMeta):
    """Make a plain PyTorch module when no argument is a choice, and a twin otherwise."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        twin_of = vars(cls).get("_twin_of")
        if twin_of is not None and not has_choice((*args, *kwargs.values())):
            return twin_of(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        # Code that asks for `nn.Conv2d`, an initialiser for instance, must see the plain modules too.
        twin_of = vars(cls).get("_twin_of")
        return super().__instancecheck__(instance) if twin_of is None else isinstance(instance, twin_of)


class ParametrizedModule(MutableModule, metaclass=_Twin):
    """A module of PyTorch some of whose arguments are choices.

    Until it is frozen or made part of a super-net it computes what the default sample computes.

    Attributes
    ----------
    arguments : dict
        The arguments by name, choices among them.
    """

    _search_machinery = True
    arguments: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cls = self.plain_type()
        bound = inspect.signature(cls).bind(*args, **kwargs)
        arguments = dict(bound.arguments)
        # The constructor of the PyTorch class comes next in the order of resolution.
        super().__init__(**arguments_at(arguments, None))
        self.arguments = arguments

    @classmethod
    def plain_type(cls) -> type[nn.Module]:
        """Return the class of PyTorch that takes the arguments."""
        return next(base for base in cls.__mro__ if base.__module__.startswith("torch."))

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to a module of the PyTorch class, or of the class that a user has derived from the twin.

        It keeps the weights of this module where the shapes are those of the default sample, and is initialised
        as PyTorch does otherwise.
        """
        chosen = arguments_at(self.arguments, sample)
        copied = copy_frozen(self, sample, memo)
        del copied.arguments
        if chosen != arguments_at(self.arguments, None):
            self._reshape(copied, chosen)
        return copied

    def _reshape(self, copied: nn.Module, chosen: dict[str, Any]) -> None:
        """Give a copy the attributes and the parameters that PyTorch's class has with other arguments."""
        fresh = self.plain_type()(**chosen).train(self.training)
        reference = next(self.parameters(), None)
        if reference is not None:
            fresh.to(reference.device, reference.dtype)
        trained = {name: parameter.requires_grad for name, parameter in self.named_parameters()}
        for name, parameter in fresh.named_parameters():
            parameter.requires_grad_(trained.get(name, True))
        for name, value in vars(fresh).items():
            if name in ("_parameters", "_buffers", "_modules"):
                vars(copied)[name].update(value)
            elif name not in OF_PYTORCH:
                setattr(copied, name, value)

    def extra_repr(self) -> str:
        """Show the choices among the arguments."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())


def arguments_at(arguments: Mapping[str, Any], sample: Sample | None) -> dict[str, Any]:
    """Return the arguments that a sample gives, or the default sample when it is None."""

    def value(expression: MutableExpression) -> Any:
        return expression.evaluate(expression.default() if sample is None else sample)

    return {name: map_argument(argument, value) for name, argument in arguments.items()}


class Conv2d(ParametrizedModule, torch.nn.Conv2d):
    """`torch.nn.Conv2d` whose arguments may be choices; see there for the arguments."""

    _twin_of = torch.nn.Conv2d

    if TYPE_CHECKING:

        def __init__(
            self,
            in_channels: Size,
            out_channels: Size,
            kernel_size: Sizes,
            stride: Sizes = 1,
            padding: str | Sizes = 0,
            dilation: Sizes = 1,
            groups: Size = 1,
            bias: bool = True,
            padding_mode: str = "zeros",
            device: Any = None,
            dtype: Any = None,
        ) -> None: ...


class Linear(ParametrizedModule, torch.nn.Linear):
    """`torch.nn.Linear` whose arguments may be choices; see there for the arguments."""

    _twin_of = torch.nn.Linear

    if TYPE_CHECKING:

        def __init__(
            self, in_features: Size, out_features: Size, bias: bool = True, device: Any = None, dtype: Any = None
        ) -> None: ...


class BatchNorm2d(ParametrizedModule, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose arguments may be choices; see there for the arguments."""

    _twin_of = torch.nn.BatchNorm2d

    if TYPE_CHECKING:

        def __init__(
            self,
            num_features: Size,
            eps: float | MutableExpression = 1e-5,
            momentum: float | MutableExpression | None = 0.1,
            affine: bool = True,
            track_running_stats: bool = True,
            device: Any = None,
            dtype: Any = None,
        ) -> None: ...
