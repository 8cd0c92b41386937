"""The tensors that a model returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from hwnas.errors import UnsupportedError


def output_tensors(result: Any) -> list[Tensor]:
    """Flatten what a model returned, in the order of the ONNX outputs.

    Parameters
    ----------
    result : Any
        A tensor, or tuples, lists and dictionaries of tensors.

    Raises
    ------
    UnsupportedError
        If something else is in it.
    """
    leaves = tree_leaves(result)
    for position, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise UnsupportedError(f"output {position} is {leaf!r} ({type(leaf).__name__}), expected a tensor.")
    return leaves
