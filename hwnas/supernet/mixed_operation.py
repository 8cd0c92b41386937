"""The base of mixed operations: modules of PyTorch whose arguments are choices, in a super-net."""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from hwnas.errors import UnsupportedError
from hwnas.kernels import slice_pack
from hwnas.nn import ParametrizedModule
from hwnas.nn.parametrized import arguments_at, expressions_in, has_choice, map_argument, signature_of
from hwnas.space import LabeledMutable, Mutable, MutableExpression, Sample
from hwnas.space.expression import Operation
from hwnas.supernet.base import BaseSuperNetModule
from hwnas.supernet.coverage import coverage
from hwnas.supernet.mixture import Mixture
from hwnas.supernet.relaxation import Relaxation


class MixedOperation(BaseSuperNetModule, ParametrizedModule):
    """A module of maximal size of which every member uses a slice.

    Where each argument has one value, the parameters are sliced: prefixes of channels, centres of kernels.
    Where several values are active at once, the operation runs at maximal size and channels beyond a width are
    masked by the probability of that width, as in FBNetV2. The mask acts on the *output* of each operation.
    After a normalisation that is the place where it has an effect: a batch normalisation undoes any scale that
    its input was given.

    Subclasses derive from the module of PyTorch as well, and say how large it must be (`sizes`, `switches`), how
    a slice is cut (`sliced_state`), and how it runs.

    References
    ----------
    Wan et al.: FBNetV2: Differentiable Neural Architecture Search for Spatial and Channel Dimensions, CVPR 2020.
    Cai et al.: Once-for-All: Train One Network and Specialize It for Efficient Deployment, ICLR 2020.
    """

    _search_machinery = True
    mixable: ClassVar[tuple[str, ...]] = ()  # arguments that have a meaning as a mixture
    widths_of_input: ClassVar[tuple[str, ...]] = ()  # those of them that say how wide the input is
    mixes_tuples: ClassVar[bool] = False  # whether they may be tuples with choices inside
    sizes: ClassVar[tuple[str, ...]] = ()  # arguments that say how large the parameters are
    switches: ClassVar[tuple[str, ...]] = ()  # arguments that say which parameters there are

    @classmethod
    def convert(cls, module: ParametrizedModule, relaxation: Relaxation) -> Self:
        """Make the mixed operation of a module with choices among its arguments.

        Parameters
        ----------
        module : ParametrizedModule
            The twin of the same class of PyTorch.
        relaxation : Relaxation
            Gives the arguments at each forward pass.

        Returns
        -------
        MixedOperation
            With freshly initialised parameters of maximal size, on the device of `module`.
        """
        mixed = cls.__new__(cls)
        # The constructor of the PyTorch class makes the parameters, at maximal size.
        bound = bound_arguments(cls.plain_type(), cls.maximal_arguments(module.arguments))
        cls.plain_type().__init__(mixed, *bound.args, **bound.kwargs)
        mixed.arguments = module.arguments
        mixed.train(module.training)
        reference = next(module.parameters(), None)
        if reference is not None:
            mixed.to(reference.device, reference.dtype)
        mixed.attach(relaxation)
        return mixed

    @classmethod
    def maximal_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return constant arguments for a module whose parameters hold those of every member.

        Parameters
        ----------
        arguments : dict
            Those of the twin, choices among them.

        Returns
        -------
        dict
            The largest of `sizes`, switches that are on if they ever are, and the defaults of the rest.
        """
        largest_sizes = {name: widest(arguments[name]) for name in cls.sizes if name in arguments}
        ever_on = {name: ever(arguments[name]) for name in cls.switches if name in arguments}
        return arguments_at(arguments, None) | largest_sizes | ever_on

    def sliced_state(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return views of the parameters and buffers that the member with these arguments uses."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is sliced (sliced_state)")

    def member_shapes(self, values: dict[str, Any]) -> dict[str, torch.Size]:
        """Return the shapes of the parameters and buffers of the member with these arguments."""
        return {name: tensor.shape for name, tensor in self.sliced_state(values).items()}

    def forward_sliced(self, x: Any, values: dict[str, Any], *inputs: Any, **options: Any) -> Any:
        """Run with one value for each argument."""
        raise NotImplementedError(f"{type(self).__name__} does not run slices (forward_sliced)")

    def forward_mixed(self, x: Any, values: dict[str, Any], *inputs: Any, **options: Any) -> Any:
        """Run with mixtures among the arguments."""
        raise NotImplementedError(f"{type(self).__name__} does not run mixtures (forward_mixed)")

    def own_mutables(self) -> Iterator[Mutable]:
        """Yield the choices among the arguments."""
        yield from self.sub_mutables()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the operation with the arguments that the relaxation gives.

        Parameters
        ----------
        *inputs, **options
            As the PyTorch module takes them; as wide as the largest member where widths are mixed.

        Returns
        -------
        Any
            The output, masked where its width is a mixture.
        """
        values = self.present_values()
        x, *others = inputs
        if holds_mixture(values):
            return self.forward_mixed(x, values, *others, **options)
        return self.forward_sliced(x, values, *others, **options)

    def written_arguments(self) -> dict[str, Any]:
        """Return the arguments as the space has them; those of `sliced_state` are values of them."""
        return self.arguments

    def present_values(self) -> dict[str, Any]:
        """Return the arguments as the relaxation gives them at present."""
        return {name: map_argument(argument, self.relaxation.value) for name, argument in self.arguments.items()}

    def make_member(self, values: dict[str, Any]) -> nn.Module:
        """Make the PyTorch module that a member has, parameters still to be filled in."""
        # skip_init: the random state of the program must not depend on whether somebody froze a member.
        module: nn.Module = nn.utils.skip_init(self.plain_type(), **values)
        return module

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to the PyTorch module with a copy of the slice of this one's parameters."""
        values = arguments_at(self.arguments, sample)
        module = self.make_member(values)
        with torch.enable_grad():  # so that slices of parameters that are trained say that they are
            state = self.sliced_state(values)
        reference = next(self.parameters(), None)
        if reference is not None:
            module.to(reference.device, reference.dtype)
        module.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()})
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(state[name].requires_grad)
        module.train(self.training)
        return module

    @classmethod
    def mutate(
        cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> BaseSuperNetModule | bool:
        """Replace the twin of the same class of PyTorch.

        Raises
        ------
        UnsupportedError
            When an argument would be mixed for which a mixture has no meaning.
        """
        if not isinstance(module, ParametrizedModule) or vars(type(module)).get("_twin_of") is not cls.plain_type():
            return False  # a class derived from the twin has code of its own
        relaxation: Relaxation = mutate_kwargs["relaxation"]
        if relaxation.differentiable:
            cls.check_mixable(module, name)
        return cls.convert(module, relaxation)

    @classmethod
    def check_mixable(cls, module: ParametrizedModule, name: str) -> None:
        """Raise `UnsupportedError` when an argument of `module` has no meaning as a mixture."""
        for argument, value in module.arguments.items():
            expressions = list(expressions_in(value))
            if expressions and argument not in cls.mixable:
                raise refusal(module, name, argument, f"{' and '.join(cls.mixable) or 'nothing of it'} can be mixed")
            if expressions and not isinstance(value, MutableExpression) and not cls.mixes_tuples:
                raise refusal(module, name, argument, "choices inside a tuple cannot be mixed")
            if argument in cls.widths_of_input and any(_adds_choices(expression) for expression in expressions):
                # Where mixed tensors are concatenated, each has its largest width: the columns of a member are not
                # those that a prefix takes.
                raise refusal(module, name, argument, "the width of a concatenation of mixed tensors is no prefix")


class MixedExpectation(MixedOperation):
    """A mixed operation that runs every member and mixes their outputs, filled up with zeros to the largest width.

    It is exact for any argument, and for operations in which channels meet: a layer normalisation takes its
    statistics over the channels of the member, so that no scale of the output of the largest one is the output of a
    smaller one. The operation runs once for each combination of its arguments, so it should be a cheap one, or have
    few.

    Subclasses say how one member runs on an input of the largest width (`forward_member`).
    """

    _search_machinery = True
    mixes_tuples = True
    joint: MutableExpression  # the arguments that are chosen, as one tuple

    @classmethod
    def convert(cls, module: ParametrizedModule, relaxation: Relaxation) -> Self:
        """Make the mixed operation of a module with choices among its arguments; see `MixedOperation.convert`."""
        mixed = super().convert(module, relaxation)
        # Tuples, because the values of an expression have to be hashable.
        chosen = [_as_tuple(argument) for argument in module.arguments.values() if has_choice(argument)]
        mixed.joint = Operation("tuple", *chosen)
        return mixed

    def forward_member(self, x: Any, values: dict[str, Any], *inputs: Any, **options: Any) -> Any:
        """Run the member with these arguments on the prefix of the input, and fill its output up with zeros."""
        raise NotImplementedError(f"{type(self).__name__} does not run members (forward_member)")

    def forward_mixed(self, x: Any, values: dict[str, Any], *inputs: Any, **options: Any) -> Any:
        """Return the expectation over the members."""
        chosen = [name for name, argument in self.arguments.items() if has_choice(argument)]
        mixture = self.relaxation.mixture(self.joint)
        outputs = []
        for member in mixture.values:
            with mixture.where(functools.partial(operator.eq, member)):
                arguments = values | dict(zip(chosen, member, strict=True))
                outputs.append(self.forward_member(x, arguments, *inputs, **options))
        return mixture.combine(outputs)


def _as_tuple(argument: Any) -> Any:
    return tuple(argument) if isinstance(argument, list) else argument


def holds_mixture(value: Any) -> bool:
    """Tell whether a mixture is among arguments."""
    if isinstance(value, dict):
        return any(holds_mixture(part) for part in value.values())
    if isinstance(value, tuple | list):
        return any(holds_mixture(part) for part in value)
    return isinstance(value, Mixture)


def bound_arguments(plain: type[nn.Module], values: dict[str, Any]) -> inspect.BoundArguments:
    """Return arguments by name as the constructor of a class takes them: some by their position only."""
    return inspect.BoundArguments(signature_of(plain), OrderedDict(values))


def _adds_choices(expression: MutableExpression) -> bool:
    """Tell whether a sum of several choices is part of an expression."""
    operands = [operand for operand in expression.sub_mutables() if isinstance(operand, MutableExpression)]
    is_sum = isinstance(expression, Operation) and expression.name == "+" and len(operands) > 1
    return is_sum or any(_adds_choices(operand) for operand in operands)


def refusal(module: ParametrizedModule, name: str, argument: str, reason: str) -> UnsupportedError:
    """Return the error for an argument that cannot be mixed."""
    labels = sorted({leaf.label for e in expressions_in(module.arguments[argument]) for leaf in e.leaves()})
    return UnsupportedError(
        f"{module.plain_type().__name__} at {name}: argument {argument!r} (labels {', '.join(labels)}) cannot be "
        f"relaxed: {reason}. Use a strategy that samples one architecture, such as RandomOneShot"
    )


def joint_values(arguments: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield what several arguments can be together.

    Parameters
    ----------
    arguments : sequence
        Constants and expressions. Labels that they share take one value at a time.

    Yields
    ------
    tuple
        One value for each argument. Equal ones are yielded once, as far as that is known.
    """
    if not any(map(has_choice, arguments)):
        yield tuple(arguments)
    elif not any(map(_has_names, arguments)):
        yield from Operation("tuple", *arguments).all_values()  # quick for sums and the like over many labels
    else:
        leaves: dict[str, LabeledMutable] = {
            leaf.label: leaf for argument in arguments for e in expressions_in(argument) for leaf in e.leaves()
        }
        for combination in itertools.product(*(list(leaf.grid_values()) for leaf in leaves.values())):
            sample = dict(zip(leaves, combination, strict=True))
            yield tuple(arguments_at({"": argument}, sample)[""] for argument in arguments)


def _has_names(argument: Any) -> bool:
    """Tell whether an argument is, or holds, a container with names in it, of which no expression can be made."""
    if isinstance(argument, tuple | list):
        return hasattr(argument, "_fields") or any(map(_has_names, argument))
    return isinstance(argument, dict)


def ever(argument: Any) -> bool:
    """Return whether an argument that switches parameters on is ever true."""
    return any(bool(value) for (value,) in joint_values([argument]))


def largest(argument: Any) -> int:
    """Return the largest value that an integer argument can take."""
    return max(int(value) for (value,) in joint_values([argument]))


def widest(argument: Any) -> Any:
    """Return the largest size that an argument can take: of tuples, the largest in each place."""
    values = [value for (value,) in joint_values([argument])]
    if not any(isinstance(value, tuple | list) for value in values):
        return max(int(value) for value in values)
    sizes = [tuple(value) if isinstance(value, tuple | list) else (value,) for value in values]
    if len({len(size) for size in sizes}) > 1:
        raise UnsupportedError(f"sizes of one length are needed to share weights, got {values}; write all of them out")
    return tuple(max(places) for places in zip(*sizes, strict=True))


def prefix(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the first entries of a tensor in each of its last dimensions.

    Parameters
    ----------
    tensor : Tensor, shape (..., at least sizes)
        What to cut.
    sizes : sequence of int
        How many entries to keep in the last ``len(sizes)`` dimensions.

    Returns
    -------
    Tensor, shape (..., *sizes)
        A view.
    """
    index: tuple[Any, ...] = (..., *map(slice, sizes))
    return tensor[index]


def filled_up(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor with zeros behind its entries, up to `shape`."""
    missing = [size - present for size, present in zip(shape, tensor.shape, strict=True)]
    return nn.functional.pad(tensor, [pad for size in reversed(missing) for pad in (0, size)])


# Elements of a weight from which copying the slice pays: it costs a copy, and saves gradients of full size in the
# backward pass, one for each dimension but the first that is cut. Measured with convolutions and linear layers.
PACKED_FROM = 1 << 19


def for_training(part: Tensor, weight: Tensor) -> Tensor:
    """Return the slice of a weight in the form in which a training step is fastest.

    Parameters
    ----------
    part : Tensor, shape (o, i, *k)
        The slice that `sliced_state` returned.
    weight : Tensor, shape (O, I, *K)
        The parameter.

    Returns
    -------
    Tensor, shape (o, i, *k)
        `part` itself, or a contiguous copy of which the backward pass makes one gradient of full size.
    """
    trained = torch.is_grad_enabled() and weight.requires_grad
    if not trained or weight.numel() < PACKED_FROM or torch.compiler.is_compiling():
        return part
    # Where columns were picked one by one, the slice is no view; the first dimension alone is cut without a copy.
    if part._base is not weight or part.is_contiguous():
        return part
    return slice_pack(weight, part.shape[0], part.shape[1], part.shape[2:])


def width_mask(width: Any, size: int, like: Tensor) -> Tensor | None:
    """Return for each channel the probability that the member has it.

    Parameters
    ----------
    width : Mixture or int
        The number of channels.
    size : int
        The largest number of channels.
    like : Tensor
        Gives dtype and device.

    Returns
    -------
    Tensor, shape (size,), or None
        None when the width is not a mixture.
    """
    if not isinstance(width, Mixture) or width.weights is None:
        return None
    return coverage(width.values, size, like) @ width.weights.to(like.dtype)
