"""`Repeat`: a variable number of blocks, one after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from hwnas.nn.freezing import freeze_module
from hwnas.nn.holding import module_mutables
from hwnas.nn.mutable_module import MutableModule
from hwnas.nn.value_choice import ValueChoice
from hwnas.space import Mutable, MutableExpression, Sample
from hwnas.space.labels import resolve_label

Blocks = nn.Module | Callable[[int], nn.Module] | Sequence[nn.Module | Callable[[int], nn.Module]]
Depth = int | tuple[int, int] | MutableExpression


class Repeat(MutableModule):
    """Repeat a block a variable number of times.

    Parameters
    ----------
    blocks : torch.nn.Module, callable, or sequence of these
        A module is deep-copied for every repetition (copies of a choice keep its label and so choose alike);
        a callable receives the position and returns a module; a sequence gives every block itself and must be
        as long as the largest depth.
    depth : int, tuple of int, or expression
        A fixed depth, ``(min, max)`` with both ends possible, or a value choice or expression over integers.
        Zero is a valid depth.
    label : str, optional
        Label of the depth when it is given as a tuple.

    Raises
    ------
    ValueError
        When a depth is negative or no integer, or a sequence of blocks has another length.

    Examples
    --------
    >>> import hwnas.nn as nn
    >>> body = nn.Repeat(lambda index: nn.Linear(8, 8), (1, 3), label="depth")
    >>> len(body.freeze({"depth": 2}))
    2
    """

    def __init__(self, blocks: Blocks, depth: Depth, *, label: str | None = None) -> None:
        super().__init__()
        self.depth: int | MutableExpression
        if isinstance(depth, tuple):
            low, high = depth
            if not 0 <= low <= high:
                raise ValueError(f"Repeat: depth is {depth}; expected (min, max) with 0 <= min <= max")
            self.depth = ValueChoice(list(range(low, high + 1)), label=resolve_label(label, "depth"))
        else:
            self.depth = depth
        depths = self.depth.all_values() if isinstance(self.depth, MutableExpression) else [self.depth]
        for value in depths:
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"Repeat: depth can be {value!r}; expected integers from 0 up")
        self.max_depth = max(depths)
        self.blocks = nn.ModuleList(self._make(blocks))

    def _make(self, blocks: Blocks) -> list[nn.Module]:
        if isinstance(blocks, nn.Module):
            return [blocks if i == 0 else copy.deepcopy(blocks) for i in range(self.max_depth)]
        if isinstance(blocks, Sequence):
            if len(blocks) != self.max_depth:
                raise ValueError(f"Repeat: got {len(blocks)} blocks for a largest depth of {self.max_depth}")
            return [block if isinstance(block, nn.Module) else block(i) for i, block in enumerate(blocks)]
        return [blocks(i) for i in range(self.max_depth)]

    def depth_at(self, sample: Sample | None) -> int:
        """Return the depth in `sample`, or in the default sample when it is None."""
        if not isinstance(self.depth, MutableExpression):
            return self.depth
        depth: int = self.depth.evaluate(self.depth.default() if sample is None else sample)
        return depth

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield the depth, then what the blocks hold: the first ones alone when a sample is given."""
        if isinstance(self.depth, MutableExpression):
            yield self.depth
        yield from self.registered_mutables()
        active = self.blocks if sample is None else self.blocks[: self.depth_at(sample)]
        yield from module_mutables(active)

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to a `torch.nn.Sequential` of the first blocks."""
        blocks = [freeze_module(block, sample, memo) for block in self.blocks[: self.depth_at(sample)]]
        return nn.Sequential(*blocks).train(self.training)

    def forward(self, x: Any) -> Any:
        """Run the default depth."""
        for block in self.blocks[: self.depth_at(None)]:
            x = block(x)
        return x

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.blocks)

    def __getitem__(self, index: int) -> nn.Module:
        return self.blocks[index]
