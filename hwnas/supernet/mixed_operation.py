"""The base of mixed operations: modules of PyTorch whose arguments are choices, in a super-net."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from hwnas.errors import UnsupportedError
from hwnas.nn import ParametrizedModule
from hwnas.nn.parametrized import arguments_at, expressions_in, map_argument
from hwnas.space import LabeledMutable, Mutable, MutableExpression, Sample
from hwnas.space.expression import Operation
from hwnas.supernet.base import BaseSuperNetModule
from hwnas.supernet.mixture import Mixture
from hwnas.supernet.relaxation import Relaxation


class MixedOperation(BaseSuperNetModule, ParametrizedModule):
    """A module of maximal size of which every member uses a slice.

    Where each argument has one value, the parameters are sliced: prefixes of channels, centres of kernels.
    Where several values are active at once, the operation runs at maximal size and channels beyond a width are
    masked by the probability of that width, as in FBNetV2. The mask acts on the *output* of each operation.
    After a normalisation that is the place where it has an effect: a batch normalisation undoes any scale that
    its input was given.

    Subclasses derive from the module of PyTorch as well, and say how large it must be (`maximal_arguments`), how
    a slice is cut (`sliced_state`), and how it runs.

    References
    ----------
    Wan et al.: FBNetV2: Differentiable Neural Architecture Search for Spatial and Channel Dimensions, CVPR 2020.
    Cai et al.: Once-for-All: Train One Network and Specialize It for Efficient Deployment, ICLR 2020.
    """

    _search_machinery = True
    mixable: ClassVar[tuple[str, ...]] = ()  # arguments that have a meaning as a mixture
    widths_of_input: ClassVar[tuple[str, ...]] = ()  # those of them that say how wide the input is

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
        cls.plain_type().__init__(mixed, **cls.maximal_arguments(module.arguments))
        mixed.arguments = module.arguments
        mixed.train(module.training)
        reference = next(module.parameters(), None)
        if reference is not None:
            mixed.to(reference.device, reference.dtype)
        mixed.attach(relaxation)
        return mixed

    @classmethod
    def maximal_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return constant arguments for a module whose parameters hold those of every member."""
        raise NotImplementedError(f"{cls.__name__} does not say how large its parameters are (maximal_arguments)")

    def sliced_state(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return views of the parameters and buffers that the member with these arguments uses."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is sliced (sliced_state)")

    def forward_sliced(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Run with one value for each argument."""
        raise NotImplementedError(f"{type(self).__name__} does not run slices (forward_sliced)")

    def forward_mixed(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Run with mixtures among the arguments."""
        raise NotImplementedError(f"{type(self).__name__} does not run mixtures (forward_mixed)")

    def own_mutables(self) -> Iterator[Mutable]:
        """Yield the choices among the arguments."""
        yield from self.sub_mutables()

    def forward(self, x: Tensor) -> Tensor:
        """Run the operation with the arguments that the relaxation gives.

        Parameters
        ----------
        x : Tensor
            As the PyTorch module takes it; as wide as the largest member where widths are mixed.

        Returns
        -------
        Tensor
            The output, masked where its width is a mixture.
        """
        values = {name: map_argument(argument, self.relaxation.value) for name, argument in self.arguments.items()}
        if any(isinstance(value, Mixture) for value in values.values()):
            return self.forward_mixed(x, values)
        return self.forward_sliced(x, values)

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to the PyTorch module with a copy of the slice of this one's parameters."""
        values = arguments_at(self.arguments, sample)
        # skip_init: the random state of the program must not depend on whether somebody froze a member.
        module: nn.Module = nn.utils.skip_init(self.plain_type(), **values)
        state = {name: tensor.detach().clone() for name, tensor in self.sliced_state(values).items()}
        reference = next(self.parameters(), None)
        if reference is not None:
            module.to(reference.device, reference.dtype)
        module.load_state_dict(state)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(self.get_parameter(name).requires_grad)
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
                raise refusal(module, name, argument, f"only {', '.join(cls.mixable)} can be mixed")
            if expressions and not isinstance(value, MutableExpression):
                raise refusal(module, name, argument, "choices inside a tuple cannot be mixed")
            if argument in cls.widths_of_input and any(_adds_choices(expression) for expression in expressions):
                # Where mixed tensors are concatenated, each has its largest width: the columns of a member are not
                # those that a prefix takes.
                raise refusal(module, name, argument, "the width of a concatenation of mixed tensors is no prefix")


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
        One value for each argument, once for each combination of labels.
    """
    leaves: dict[str, LabeledMutable] = {
        leaf.label: leaf for argument in arguments for e in expressions_in(argument) for leaf in e.leaves()
    }
    listed = [leaf.all_values() if isinstance(leaf, MutableExpression) else [] for leaf in leaves.values()]
    for combination in itertools.product(*listed):
        sample = dict(zip(leaves, combination, strict=True))
        yield tuple(arguments_at({"": argument}, sample)[""] for argument in arguments)


def ever(argument: Any) -> bool:
    """Return whether an argument that switches parameters on is ever true."""
    return any(bool(value) for (value,) in joint_values([argument]))


def largest(argument: Any) -> int:
    """Return the largest value that an integer argument can take."""
    return max(int(value) for (value,) in joint_values([argument]))


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
    has = torch.tensor([[channel < value for value in width.values] for channel in range(size)], device=like.device)
    return has.to(like.dtype) @ width.weights.to(like.dtype)
