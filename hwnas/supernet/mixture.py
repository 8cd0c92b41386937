"""`Mixture`: a relaxed decision, the small object in which strategies and primitives meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hwnas.kernels import mixed_sum


class Mixture:
    """The values that a decision takes at present, and with what weight.

    Parameters
    ----------
    values : sequence
        The active values.
    weights : Tensor, shape (len(values),), optional
        Their weights. None when exactly one value is active, with weight one.
    """

    def __init__(self, values: Sequence[Any], weights: Tensor | None = None) -> None:
        if weights is None and len(values) != 1:
            raise ValueError(f"a mixture without weights has one value, got {len(values)}")
        self.values = tuple(values)
        self.weights = weights

    def where(self, active: Callable[[Any], bool]) -> AbstractContextManager[None]:
        """Enter the part of a forward pass that runs only for the values for which `active` is true.

        Parameters
        ----------
        active : callable
            Tells for a value of the decision whether the part runs. Relaxations ignore it; whoever
            follows the forward pass to find out what it costs does not.

        Returns
        -------
        context manager
            Around the conditional part.
        """
        return nullcontext()

    def select(self, tensors: Sequence[Tensor], chosen: Sequence[int]) -> list[Tensor]:
        """Pick the chosen tensors.

        Parameters
        ----------
        tensors : sequence of Tensor
            The candidates.
        chosen : sequence of int
            Positions, the only value of this mixture.

        Returns
        -------
        list of Tensor
            In the order of `chosen`.
        """
        return [tensors[position] for position in chosen]

    def together(
        self, inputs: Sequence[Tensor], candidates: Sequence[Sequence[nn.Module]]
    ) -> list[tuple[list[int], Tensor]]:
        """Divide the active values, of which each brings an input, into those that are run at once.

        Parameters
        ----------
        inputs : sequence of Tensor
            One for each active value.
        candidates : sequence of sequence of torch.nn.Module
            For each active value the modules that run on its input.

        Returns
        -------
        list of (list of int, Tensor)
            Positions of values, and the tensor that stands for their inputs: here each value with its own.
        """
        return [([position], tensor) for position, tensor in enumerate(inputs)]

    def combine(self, outputs: Sequence[Any]) -> Any:
        """Mix the outputs, one for each active value, in their order.

        Parameters
        ----------
        outputs : sequence
            Tensors, or equal nestings of tuples, lists and dictionaries of tensors.

        Returns
        -------
        Any
            The only output, or the weighted sum.
        """
        if self.weights is None:
            return outputs[0]
        leaves, structures = zip(*(pytree.tree_flatten(output) for output in outputs), strict=True)
        mixed = [mixed_sum(self.weights, same) for same in zip(*leaves, strict=True)]
        return pytree.tree_unflatten(mixed, structures[0])
