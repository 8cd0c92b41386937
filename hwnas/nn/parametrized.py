"""Modules whose arguments may be choices: twins of plain classes of modules."""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
import reprlib
from abc import ABCMeta
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, is_lazy

from hwnas.errors import SampleError, UnsupportedError
from hwnas.nn.freezing import copy_frozen, freeze_module
from hwnas.nn.holding import module_mutables
from hwnas.nn.mutable_module import MutableModule
from hwnas.nn.reconstruction import contents, reconstruct
from hwnas.space import Mutable, MutableExpression, Sample

Int = int | MutableExpression
Size = Int  # a number of channels or of features, a length
Float = float | MutableExpression
Bool = bool | MutableExpression
Str = str | MutableExpression
Size1 = Int | tuple[Int]
Size2 = Int | tuple[Int, Int]
Size3 = Int | tuple[Int, Int, Int]

M = TypeVar("M", bound=nn.Module)


def map_argument(argument: Any, function: Callable[[MutableExpression], Any]) -> Any:
    """Replace the expressions in an argument, inside tuples, lists and dictionaries as well."""
    if isinstance(argument, MutableExpression):
        return function(argument)
    if not has_choice(argument):
        return argument
    if isinstance(argument, dict):
        return {key: map_argument(part, function) for key, part in argument.items()}
    parts = [map_argument(part, function) for part in argument]
    return type(argument)(*parts) if hasattr(argument, "_fields") else type(argument)(parts)


def expressions_in(argument: Any) -> Iterator[MutableExpression]:
    """Yield the expressions in an argument, inside tuples, lists and dictionaries as well."""
    if isinstance(argument, MutableExpression):
        yield argument
    elif isinstance(argument, tuple | list | dict):
        for part in argument.values() if isinstance(argument, dict) else argument:
            yield from expressions_in(part)


def has_choice(argument: Any) -> bool:
    """Tell whether there is an expression in an argument."""
    return any(True for _ in expressions_in(argument))  # the truth of an expression itself is not known


def arguments_at(arguments: Mapping[str, Any], sample: Sample | None) -> dict[str, Any]:
    """Return the arguments that a sample gives, or the default sample when it is None."""

    def value(expression: MutableExpression) -> Any:
        return expression.evaluate(expression.default() if sample is None else sample)

    return {name: map_argument(argument, value) for name, argument in arguments.items()}


def signature_of(cls: type[nn.Module]) -> inspect.Signature:
    """Return the signature of the constructor of a class of modules.

    The recurrent networks of PyTorch hand most of their arguments on without naming them; here they have names.
    """
    signature = inspect.signature(cls)
    if not issubclass(cls, nn.RNN | nn.LSTM | nn.GRU) or "input_size" in signature.parameters:
        return signature
    parameters = dict(inspect.signature(nn.RNNBase).parameters)
    del parameters["mode"]
    if not issubclass(cls, nn.LSTM):
        del parameters["proj_size"]
    for name in ("device", "dtype"):  # by position they would be taken for something else
        parameters[name] = parameters[name].replace(kind=inspect.Parameter.KEYWORD_ONLY)
    ordered = list(parameters.values())
    if issubclass(cls, nn.RNN):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        ordered.insert(3, inspect.Parameter("nonlinearity", kind, default="tanh"))
    return signature.replace(parameters=ordered)


class _Twin(ABCMeta):
    """Make a plain module when no argument is a choice, and a twin otherwise."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        twin_of = vars(cls).get("_twin_of")
        if twin_of is not None and not has_choice((*args, *kwargs.values())):
            return twin_of(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        # Code that asks for `nn.Conv2d`, an initialiser for instance, must see the plain modules too.
        twin_of = vars(cls).get("_twin_of")
        return super().__instancecheck__(instance) if twin_of is None else isinstance(instance, twin_of)

    @property
    def __signature__(cls) -> inspect.Signature:
        """Show editors and `help` the arguments of the plain class."""
        owner = next(base for base in cls.__mro__ if "_twin_of" in vars(base) or "__init__" in vars(base))
        if "_twin_of" in vars(owner):
            return signature_of(vars(owner)["_twin_of"])
        of_init = inspect.signature(vars(owner)["__init__"])
        return of_init.replace(parameters=list(of_init.parameters.values())[1:])


def _reduce_twin(cls: _Twin) -> Any:
    """Pickle a twin by its plain class, as which it need not have a name of its own."""
    twin_of = vars(cls).get("_twin_of")
    return cls.__qualname__ if twin_of is None else (parametrized, (twin_of,))


copyreg.pickle(_Twin, _reduce_twin)


class ParametrizedModule(MutableModule, metaclass=_Twin):
    """A module some of whose arguments are choices.

    Until it is frozen or made part of a super-net it computes what the default sample computes.

    Attributes
    ----------
    arguments : dict
        The arguments by name, choices among them.

    See Also
    --------
    parametrized : makes such a class of a class of modules.
    """

    _search_machinery = True
    arguments: dict[str, Any]
    _constructed: frozenset[Any]  # what the plain constructor made, as opposed to what was added later

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        plain = self.plain_type()
        signature = signature_of(plain)
        try:
            arguments = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise TypeError(f"{plain.__name__}: {error}; it takes {', '.join(signature.parameters)}") from None
        # The constructor of the plain class comes next in the order of resolution.
        _construct(super().__init__, plain, arguments, None, arguments_at(arguments, None))
        self._check_constructed(arguments)
        self._constructed = frozenset(contents(self))
        self.arguments = arguments

    @classmethod
    def plain_type(cls) -> type[nn.Module]:
        """Return the class that takes the arguments."""
        return next(base for base in cls.__mro__ if issubclass(base, nn.Module) and not issubclass(base, Mutable))

    def _check_constructed(self, arguments: dict[str, Any]) -> None:
        """Refuse what could not be frozen: children whose names are taken, and choices that the constructor made."""
        name = self.plain_type().__name__
        _check_names(name, self._modules)
        own = _labels(_mutables_of(self.children()))
        if own:
            given = {*_labels(expressions_in(arguments)), *_labels(_mutables_of(_modules_in(arguments)))}
            own = [label for label in own if label not in given]
        if own:
            raise UnsupportedError(
                f"{name}: its constructor makes choices of its own ({', '.join(own)}), and is called again for each "
                "sample. Pass these choices as arguments, or use the class itself: if it passes its arguments on to "
                "modules of hwnas.nn, it takes expressions without a twin"
            )

    def freeze(self, sample: Sample) -> Any:
        """Return the plain module; see `MutableModule.freeze`."""
        self.validate(sample)
        return type(self).lower(self, sample, {})  # RReLU has a number of this name

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to a module of the plain class, or of the class that a user has derived from the twin.

        Parameters and buffers whose initial values do not depend on the arguments that the sample changes are those
        of this module; the others are initialised anew.

        Raises
        ------
        SampleError
            When the plain class refuses the arguments.
        """
        memo[id(self.arguments)] = {}  # not copied
        for buffer in filter(is_lazy, self.buffers()):  # which PyTorch cannot copy
            uninitialized: Any = UninitializedBuffer
            memo[id(buffer)] = uninitialized(buffer.requires_grad, buffer.device, buffer.dtype)
        copied = copy_frozen(self, sample, memo)
        del copied.arguments, copied._constructed
        if any(e.evaluate(sample) != e.evaluate(e.default()) for e in expressions_in(self.arguments)):
            self._make_anew(copied, sample, memo)
        if isinstance(copied, LazyModuleMixin) and copied.cls_to_become and not copied.has_uninitialized_params():
            copied.__class__ = copied.cls_to_become
        return copied

    def _make_anew(self, copied: nn.Module, sample: Sample, memo: dict[int, Any]) -> None:
        for part in _modules_in(self.arguments):
            freeze_module(part, sample, memo)
        plain = self.plain_type()
        make = functools.partial(_construct, plain, plain, self.arguments)
        leaves = [leaf for expression in expressions_in(self.arguments) for leaf in expression.leaves()]
        canonical: Sample = {leaf.label: leaf.canonical(sample[leaf.label]) for leaf in leaves}
        chosen = copy.deepcopy(arguments_at(self.arguments, canonical), memo)
        default = copy.deepcopy(arguments_at(self.arguments, None), memo)
        reconstruct(
            copied,
            functools.partial(make, sample, chosen),
            lambda: make(None, copy.deepcopy(default)),  # a constructor may change the modules that it is given
            self._constructed,
        )

    def extra_repr(self) -> str:
        """Show the arguments, choices among them."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())


def parametrized(cls: type[M]) -> Callable[..., M]:
    """Return the twin of a class of modules: its constructor takes choices and expressions as arguments.

    The class itself is plain PyTorch and needs to know nothing of choices: it is constructed with the values of the
    default sample, and once more with those of a sample that is frozen. Without choices among the arguments the twin
    makes a module of the class itself.

    Modules that only pass their arguments on, to modules of `hwnas.nn`, take expressions as they are. A twin serves
    where the arguments are used as numbers: in `torch.zeros`, in `range`, in an ``if``.

    Give the twin a name of its own. As a decorator it hides the class, so that `pickle` cannot find it.

    Parameters
    ----------
    cls : type
        A subclass of `torch.nn.Module`.

    Returns
    -------
    type
        A subclass of `cls` and of `ParametrizedModule`, always the same one for the same class.

    Raises
    ------
    TypeError
        When `cls` is no class of modules.
    UnsupportedError
        When `cls` takes choices already, or has attributes whose names a twin needs.

    Examples
    --------
    >>> import torch
    >>> import hwnas.nn as nn
    >>> class Shift(torch.nn.Module):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.shift = torch.nn.Parameter(torch.zeros(width))
    ...     def forward(self, x):
    ...         return x + self.shift
    >>> shift = nn.parametrized(Shift)(nn.ValueChoice([4, 8], label="width"))
    >>> model = shift.freeze({"width": 8})
    >>> type(model).__name__, model.shift.shape
    ('Shift', torch.Size([8]))
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"parametrized takes a class of modules, got {cls!r}")
    if issubclass(cls, Mutable):
        raise UnsupportedError(f"{cls.__name__} takes choices already; use it as it is")
    twin: Callable[..., M] = _twin(cls)  # type: ignore[arg-type]
    return twin


@functools.cache
def _twin(cls: type[nn.Module]) -> Any:
    own = [base for base in cls.__mro__ if issubclass(base, nn.Module) and base is not nn.Module]
    _check_names(cls.__name__, [name for base in own for name in vars(base)])
    namespace = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": f"`{cls.__module__}.{cls.__qualname__}` with arguments that may be choices; see there.",
        "_twin_of": cls,
    }
    if issubclass(cls, LazyModuleMixin):
        namespace["cls_to_become"] = None  # the twin stays a twin when its parameters get their shapes
    return _Twin(cls.__name__, (ParametrizedModule, cls), namespace)


@functools.cache
def _taken_names() -> frozenset[str]:
    ours = set(dir(ParametrizedModule)) - set(dir(nn.Module))
    return frozenset(name for name in ours if not name.startswith("_"))


def _check_names(cls: str, names: Iterable[str]) -> None:
    clashes = sorted(_taken_names().intersection(names))
    if clashes:
        raise UnsupportedError(
            f"{cls} cannot have a twin: {', '.join(clashes)} would hide what hwnas needs under the same name. Rename it"
        )


def _construct(
    call: Callable[..., Any], plain: type[nn.Module], arguments: dict[str, Any], sample: Sample | None, values: Any
) -> Any:
    """Call a constructor; where it refuses what choices have given, say so."""
    bound = inspect.BoundArguments(signature_of(plain), values)
    try:
        return call(*bound.args, **bound.kwargs)
    except Exception as error:
        labels = ", ".join(_labels(expressions_in(arguments)))
        if not labels:
            raise
        shown = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in values.items())
        given, advice = (
            ("the defaults", "Give the choices defaults that fit together")
            if sample is None
            else ("the values", "Exclude such samples with an ExpressionConstraint")
        )
        raise SampleError(
            f"{plain.__name__}({shown}), as {given} of {labels} have it, cannot be made: {error}. {advice}"
        ) from error


def _labels(mutables: Iterable[Mutable]) -> list[str]:
    return list(dict.fromkeys(label for mutable in mutables for label in mutable.simplify()))


def _modules_in(argument: Any) -> Iterator[nn.Module]:
    if isinstance(argument, nn.Module):
        yield argument
    elif isinstance(argument, tuple | list | dict):
        for part in argument.values() if isinstance(argument, dict) else argument:
            yield from _modules_in(part)


def _mutables_of(modules: Iterable[nn.Module]) -> Iterator[Mutable]:
    for module in modules:
        if isinstance(module, Mutable):
            yield module
        else:
            yield from module_mutables(module)
