"""Modules of any class with choices among their arguments, in a super-net."""

from __future__ import annotations

import contextlib
import functools
import itertools
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from hwnas.errors import SampleError, UnsupportedError
from hwnas.nn import ParametrizedModule
from hwnas.nn.parametrized import expressions_in, has_choice
from hwnas.space import MutableExpression
from hwnas.supernet.base import BaseSuperNetModule
from hwnas.supernet.members import prefixes, run_member, without_tensors
from hwnas.supernet.mixed_operation import MixedOperation, bound_arguments, joint_values, refusal
from hwnas.supernet.relaxation import Relaxation


class MixedParametrized(MixedOperation):
    """A module of a class that hwnas knows nothing of; each member uses prefixes of the largest parameters.

    The constructor is called once for each combination of arguments, to learn the shapes of the parameters. One of
    the members must have them all at the largest size. A forward pass is that of the member, with slices in the
    place of its parameters and buffers, so attributes that are changed after construction are not seen, but for modes
    and for the momentum of a batch normalisation that re-estimates its statistics. One module without parameters is
    kept for each combination.

    One architecture at a time has a meaning: of an unknown operation nobody can say what a mixture would be.
    """

    _search_machinery = True
    _members: dict[tuple[Any, ...], nn.Module]  # by their arguments

    @classmethod
    def convert(cls, module: ParametrizedModule, relaxation: Relaxation) -> Self:
        """Make the mixed operation of a module with choices among its arguments; see `MixedOperation.convert`."""
        mixed = super().convert(module, relaxation)
        mixed._members = {}
        for combination in joint_values(list(module.arguments.values())):
            with contextlib.suppress(SampleError):  # not every combination need be a member
                mixed._member(dict(zip(module.arguments, combination, strict=True)))
        return mixed

    @classmethod
    def maximal_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a member that has every parameter at its largest size.

        Raises
        ------
        UnsupportedError
            When there is no such member.
        """
        found: list[tuple[dict[str, Any], dict[str, torch.Size]]] = []
        largest: dict[str, torch.Size] = {}
        for combination in joint_values(list(arguments.values())):
            values = dict(zip(arguments, combination, strict=True))
            try:
                member = cls.construct(values)
            except SampleError:  # not every combination need be a member
                continue
            shapes = {name: tensor.shape for name, tensor in member.state_dict().items()}
            for name, shape in shapes.items():
                sizes = itertools.zip_longest(shape, largest.get(name, shape), fillvalue=0)
                largest[name] = torch.Size(max(places) for places in sizes)
            found.append((values, shapes))
        for values, shapes in found:
            if shapes == largest:
                return values
        labels = ", ".join(sorted({leaf.label for e in expressions_in(arguments) for leaf in e.leaves()}))
        raise UnsupportedError(
            f"{cls.plain_type().__name__} (labels {labels}): no member has all parameters at their largest sizes "
            f"{ {name: tuple(shape) for name, shape in largest.items()} }, so they cannot be slices of one. Use a "
            "LayerChoice of modules, or a strategy that trains each member by itself"
        )

    @classmethod
    def construct(cls, values: dict[str, Any]) -> nn.Module:
        """Make a member; the random state of the program stays as it is.

        Raises
        ------
        SampleError
            When its class refuses the arguments.
        """
        plain = cls.plain_type()
        bound = bound_arguments(plain, values)
        symbolic = any(isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) for value in values.values())
        # Initialisers that draw until they are content cannot do so for a symbolic shape. Only shapes matter then.
        with torch.random.fork_rng(devices=[]), torch.device("meta") if symbolic else contextlib.nullcontext():
            try:
                return plain(*bound.args, **bound.kwargs)
            except (ValueError, TypeError, AssertionError, RuntimeError) as error:
                raise SampleError(f"{plain.__name__} cannot be made with {values}: {error}") from error

    def make_member(self, values: dict[str, Any]) -> nn.Module:
        """Make the module that a member has, parameters still to be filled in."""
        return self.construct(values)

    def sliced_state(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return prefixes of the parameters and buffers."""
        return prefixes(self, self._member(values))

    def forward_sliced(self, x: Any, values: dict[str, Any], *inputs: Any, **options: Any) -> Any:
        """Run the member with slices in the place of its parameters."""
        return run_member(self._member(values), self, (x, *inputs), options)

    def _member(self, values: dict[str, Any]) -> nn.Module:
        key = tuple(_keys((self.arguments[name], values[name]) for name in values))
        if key not in self._members:
            self._members[key] = without_tensors(self.construct(values))
        return self._members[key]

    @classmethod
    def mutate(
        cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> BaseSuperNetModule | bool:
        """Replace the twin of any class; see `MixedOperation.mutate`.

        Raises
        ------
        UnsupportedError
            When several architectures would be active at once, or the class has attributes whose names are needed.
        """
        if not isinstance(module, ParametrizedModule) or "_twin_of" not in vars(type(module)):
            return False
        if issubclass(module.plain_type(), nn.RNNBase) or any(_has_module(v) for v in module.arguments.values()):
            return False  # the former keep lists of their parameters; the latter would be shared by the members
        relaxation: Relaxation = mutate_kwargs["relaxation"]
        if relaxation.differentiable:
            argument = next(key for key, value in module.arguments.items() if has_choice(value))
            raise refusal(module, name, argument, "what a mixture of this class would be is not known")
        clashes = sorted(_taken_names().intersection([*vars(module), *dir(module.plain_type())]))
        if clashes:
            raise UnsupportedError(
                f"{module.plain_type().__name__} at {name} cannot be part of a super-net: {', '.join(clashes)} would "
                "hide what hwnas needs under the same name. Rename it"
            )
        plain: Any = module.plain_type()
        mixed: BaseSuperNetModule = _mixed_class(plain).convert(module, relaxation)
        return mixed


@functools.cache
def _mixed_class(plain: Any) -> Any:
    namespace = {"__module__": __name__, "__doc__": f"`{plain.__qualname__}` in a super-net."}
    return types.new_class(
        f"Mixed{plain.__name__}", (MixedParametrized, plain), exec_body=lambda ns: ns.update(namespace)
    )


@functools.cache
def _taken_names() -> frozenset[str]:
    return frozenset((set(dir(MixedParametrized)) | {"relaxation", "_members"}) - set(dir(ParametrizedModule)))


def _keys(pairs: Iterable[tuple[Any, Any]]) -> Iterator[Any]:
    """Yield something hashable for each expression in arguments, given with their values."""
    for argument, value in pairs:
        if isinstance(argument, MutableExpression):
            yield _key(value)
        elif has_choice(argument):
            parts = (argument.values(), value.values()) if isinstance(argument, dict) else (argument, value)
            yield from _keys(zip(*parts, strict=True))


def _key(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    # Of 1, 1.0 and True each has a member of its own. Symbols cannot be hashed.
    return type(value), repr(value) if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) else value


def _has_module(argument: Any) -> bool:
    if isinstance(argument, tuple | list | dict):
        return any(map(_has_module, argument.values() if isinstance(argument, dict) else argument))
    return isinstance(argument, nn.Module)
