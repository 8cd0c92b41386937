"""Layers that read the output of a cell of loose ends: weights belong to nodes, not to positions."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from hwnas.errors import UnsupportedError
from hwnas.nn import ParametrizedModule
from hwnas.nn.cell import Concatenation, widths_side_by_side
from hwnas.nn.parametrized import expressions_in
from hwnas.space import CategoricalMultiple, LabeledMutable, MutableExpression, Sample
from hwnas.space.expression import Operation
from hwnas.supernet.base import BaseSuperNetModule
from hwnas.supernet.mixed_conv import MixedConv2d
from hwnas.supernet.mixed_linear import MixedLinear
from hwnas.supernet.mixed_operation import MixedOperation
from hwnas.supernet.mixture import Mixture
from hwnas.supernet.one_hot import OneHot
from hwnas.supernet.relaxation import Relaxation


class BehindCell(MixedOperation):
    """A layer whose number of inputs is a multiple of `hwnas.nn.Cell.num_output_nodes` of a cell of loose ends.

    Which nodes are concatenated differs from sample to sample. The first columns of one weight would therefore see
    one node in one sample and another node in the next, and learn neither. This layer has columns for every
    node that may be output, and takes those of the nodes that are. Where several decisions are active at once
    the cell gives out all nodes, weighted, and all columns are used.

    Attributes
    ----------
    width : MutableExpression
        The number of inputs.
    widest : list of int
        For each node that may be output the number of its columns.
    """

    _search_machinery = True
    width_argument: ClassVar[str]
    input_dim: ClassVar[int]
    width: MutableExpression
    widest: list[int]

    @classmethod
    def convert(cls, module: ParametrizedModule, relaxation: Relaxation) -> Self:
        """Make the layer with columns for all nodes."""
        mixed = super().convert(cls._with_all_columns(module), relaxation)
        mixed.width = module.arguments[cls.width_argument]
        mixed.widest = _largest_parts(mixed.width)
        return mixed

    @classmethod
    def _with_all_columns(cls, module: ParametrizedModule) -> ParametrizedModule:
        """Return a module that shares everything with another one, but reads all nodes."""
        whole = copy.copy(module)
        widest = sum(_largest_parts(module.arguments[cls.width_argument]))
        whole.arguments = module.arguments | {cls.width_argument: widest}
        return whole

    @classmethod
    def check_mixable(cls, module: ParametrizedModule, name: str) -> None:
        """Raise `UnsupportedError` when another argument than the number of inputs cannot be mixed."""
        whole = cls._with_all_columns(module)
        _refuse_positions(whole, name)
        super().check_mixable(whole, name)

    def sliced_state(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return the parameters of the member, of the weight the columns of the nodes that are output."""
        state = super().sliced_state(values | {self.width_argument: sum(self.widest)})
        columns = self._columns(state["weight"].device)
        return state if columns is None else state | {"weight": state["weight"][:, columns]}

    def written_arguments(self) -> dict[str, Any]:
        """Return the arguments as the space has them, the number of inputs among them."""
        return self.arguments | {self.width_argument: self.width}

    def member_shapes(self, values: dict[str, Any]) -> dict[str, torch.Size]:
        """Return the shapes of the member with these arguments, whichever columns it has."""
        return {name: tensor.shape for name, tensor in super().sliced_state(values).items()}

    def forward_mixed(self, x: Tensor, values: dict[str, Any], *inputs: Any, **options: Any) -> Any:
        """Run with all columns; nodes that are not output are zeros."""
        columns = self._columns(x.device)
        if columns is not None:
            shape = list(x.shape)
            shape[self.input_dim] = sum(self.widest)
            x = x.new_zeros(shape).index_copy(self.input_dim, columns, x)
        return super().forward_mixed(x, values, *inputs, **options)

    def _columns(self, device: torch.device) -> Any:
        """Return which columns are used at present, as an index; None for all of them."""
        active = {str(leaf.label): self._active(leaf) for leaf in self.width.leaves()}
        if any(mixture.weights is not None for mixture in active.values()):
            return None
        width = self.relaxation.value(self.width)
        if not isinstance(width, int):  # a symbol, which stands for every sample at once: only the size matters
            return slice(width)
        sample = {label: mixture.values[0] for label, mixture in active.items()}
        columns: list[int] = []
        start = 0
        for part, widest in zip(widths_side_by_side(self.width), self.widest, strict=True):
            present = part.evaluate(sample) if isinstance(part, MutableExpression) else part
            columns += range(start, start + present)
            start += widest
        return torch.tensor(columns, device=device)

    def _active(self, leaf: LabeledMutable) -> Mixture:
        if isinstance(leaf, CategoricalMultiple):
            return self.relaxation.subset(leaf)
        assert isinstance(leaf, MutableExpression)
        return self.relaxation.mixture(leaf)

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to the PyTorch module with the columns of the nodes that are output."""
        member = copy.copy(self)  # of the same parameters, at this sample
        member.arguments = self.arguments | {self.width_argument: self.width}
        at_sample = OneHot(())
        at_sample.sample = sample
        member.attach(at_sample)
        return super(BehindCell, member).lower(sample, memo)

    @classmethod
    def mutate(
        cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> BaseSuperNetModule | bool:
        """Replace the twin of the same class of PyTorch where it reads loose ends; see `MixedOperation.mutate`.

        A convolution of several groups is left alone: which inputs are in one group depends on their number.
        """
        if not isinstance(module, ParametrizedModule):
            return False
        width, groups = module.arguments.get(cls.width_argument), module.arguments.get("groups", 1)
        if len(widths_side_by_side(width)) == 1 or isinstance(groups, MutableExpression) or groups != 1:
            return False
        return super().mutate(module, name, memo, mutate_kwargs)


def _largest_parts(width: MutableExpression) -> list[int]:
    """Return the largest width of each node that may be output."""
    parts = widths_side_by_side(width)
    return [max(part.all_values()) if isinstance(part, MutableExpression) else part for part in parts]


class Conv2dBehindCell(BehindCell, MixedConv2d):
    """`Conv2d` with weights for each node."""

    _search_machinery = True
    width_argument = "in_channels"
    input_dim = 1


class LinearBehindCell(BehindCell, MixedLinear):
    """`Linear` with weights for each node."""

    _search_machinery = True
    width_argument = "in_features"
    input_dim = -1


def refuse_mixed_positions(module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> bool:
    """Raise for a layer that would take the first channels of loose ends that are mixed; a mutation hook.

    Raises
    ------
    UnsupportedError
        When a size that is computed from the number of loose ends would be a mixture.
    """
    if mutate_kwargs["relaxation"].differentiable and isinstance(module, ParametrizedModule):
        _refuse_positions(module, name)
    return False


def _refuse_positions(module: ParametrizedModule, name: str) -> None:
    for argument, value in module.arguments.items():
        for expression in expressions_in(value):
            if _counts_loose_ends(expression):
                labels = ", ".join(leaf.label for leaf in expression.leaves())
                raise UnsupportedError(
                    f"{module.plain_type().__name__} at {name}: argument {argument!r} (labels {labels}) is computed "
                    "from the number of loose ends of a cell, and which nodes they are cannot be mixed here. Put a "
                    "Conv2d with groups=1 or a Linear directly behind the cell, use merge_op='all', or a strategy "
                    "that samples one architecture, such as RandomOneShot"
                )


def _counts_loose_ends(expression: Any) -> bool:
    if isinstance(expression, Concatenation):
        return True
    return isinstance(expression, Operation) and any(map(_counts_loose_ends, expression.operands))
