"""Operations of a `Cell` that are made by callables, once it is known which one is chosen and what it reads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.errors import UnsupportedError
from hwnas.nn.freezing import freeze_module
from hwnas.nn.holding import module_mutables
from hwnas.nn.mutable_module import MutableModule
from hwnas.space import Categorical, CategoricalMultiple, Label, Mutable, Sample

Candidate = nn.Module | Callable[[int, int, int], nn.Module]
MakesAll = Callable[[int, int, int], Sequence[nn.Module] | Mapping[str, nn.Module]]
Candidates = Sequence[Candidate] | Mapping[str, Candidate] | MakesAll


class CellOpFactory:
    """Makes the candidates for an operation of a cell.

    Parameters
    ----------
    op_candidates : sequence, mapping or callable
        See `Cell`; modules in it are copied.
    """

    def __init__(self, op_candidates: Candidates) -> None:
        self.op_candidates = op_candidates

    def offer(self, node: int, op: int, source: int) -> dict[Any, Callable[[], Any]]:
        """Return what makes each candidate, by name.

        Parameters
        ----------
        node : int
            Index of the node, predecessors included.
        op : int
            Index of the operation in the node.
        source : int
            Index of the node or predecessor that the operation reads.
        """
        if not isinstance(self.op_candidates, Sequence | Mapping):
            made = named(self.op_candidates(node, op, source))
            return {name: partial(_given, module) for name, module in made.items()}
        return {
            name: partial(copy.deepcopy, candidate)
            if isinstance(candidate, nn.Module)
            else partial(candidate, node, op, source)
            for name, candidate in named(self.op_candidates).items()
        }

    def __call__(self, node: int, op: int, source: int) -> dict[Any, nn.Module]:
        """Make all candidates, by name; the parameters are those of `offer`."""
        return {name: make() for name, make in self.offer(node, op, source).items()}


def named(candidates: Sequence[Any] | Mapping[str, Any]) -> dict[Any, Any]:
    """Name candidates as samples do: by position, or by the keys of a mapping."""
    return dict(candidates) if isinstance(candidates, Mapping) else dict(enumerate(candidates))


def _given(module: nn.Module) -> nn.Module:
    return module


class FactoryChoice(MutableModule):
    """A choice of one of several modules, of which only that of the default sample exists.

    Parameters
    ----------
    factory : CellOpFactory
        Makes the modules.
    node, op : int
        Which operation of the cell it is.
    source : CategoricalMultiple
        Chooses what the operation reads; the factory is told.
    label : str
        Label of the choice.

    Raises
    ------
    TypeError
        When the factory makes something that is no module.
    UnsupportedError
        When it makes a module with choices in it.
    """

    placed: Tensor

    def __init__(self, factory: CellOpFactory, node: int, op: int, source: CategoricalMultiple, label: Label) -> None:
        super().__init__()
        self.factory = factory
        self.node = node
        self.op = op
        self.source = source
        self.label = label
        # It follows the cell to other devices and types; the default operation need not have any tensor.
        self.register_buffer("placed", torch.empty(0), persistent=False)
        (default_source,) = source.default_value()
        offered = factory.offer(node, op, default_source)
        self.choice = Categorical(offered, label=label)
        default = self.choice.default_value()
        self.default_operation = self._checked(offered[default], default)

    @property
    def names(self) -> list[Any]:
        """Names of the candidates, as they stand in samples."""
        return list(self.choice.values)

    def make(self, name: int | str, source: int) -> nn.Module:
        """Make the candidate `name` for an operation that reads `source`, newly initialised.

        Raises
        ------
        ValueError
            When the factory makes other candidates for this source than for the default one.
        """
        return self.make_several([name], source)[0]

    def make_several(self, names: Sequence[int | str], source: int) -> list[nn.Module]:
        """Make several candidates for an operation that reads `source`; see `make`."""
        offered = self.offer(source)
        return [self.finish(offered[name], name) for name in names]

    def offer(self, source: int) -> dict[Any, Callable[[], Any]]:
        """Return what makes each candidate for an operation that reads `source`, by name, for `finish`.

        Raises
        ------
        ValueError
            See `make`.
        """
        with self._on_device():
            offered = self.factory.offer(self.node, self.op, source)
        if list(offered) != self.names:
            raise ValueError(
                f"operation {self.label!r}: for input {source} the factory makes the candidates {list(offered)}, "
                f"for the default one {self.names}; they must not depend on the input"
            )
        return offered

    def finish(self, make: Callable[[], Any], name: int | str) -> nn.Module:
        """Make a candidate that `offer` returned, of the type and in the mode of this module."""
        with self._on_device():
            made = self._checked(make, name)
        return made.to(self.placed.dtype).train(self.training)

    def _on_device(self) -> AbstractContextManager[Any]:
        # Every function that is called inside a device takes twice as long.
        device = self.placed.device
        return nullcontext() if device == torch.get_default_device() else device

    def _checked(self, make: Callable[[], Any], name: int | str) -> nn.Module:
        made = make()
        if not isinstance(made, nn.Module):
            raise TypeError(f"operation {self.label!r}: candidate {name!r} is {made!r}; expected a torch.nn.Module")
        if isinstance(made, Mutable) or any(True for _ in module_mutables(made)):
            raise UnsupportedError(
                f"operation {self.label!r}: the factory made candidate {name!r} with choices in it. It is asked for a "
                "module only once that one is chosen, so the space cannot know of these choices: pass modules instead "
                "of callables, or make every choice a candidate of its own"
            )
        return made

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield the choice."""
        yield self.choice
        yield from self.registered_mutables()

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to the chosen candidate, which is made now unless it is the default one."""
        name, sources = sample[self.label], sample[self.source.label]
        if name == self.choice.default_value() and sources == self.source.default_value():
            return freeze_module(self.default_operation, sample, memo)
        return freeze_module(self.make(name, sources[0]), sample, {})

    def forward(self, x: Any) -> Any:
        """Run the default candidate."""
        return self.default_operation(x)

    def extra_repr(self) -> str:
        """Show the label and the names."""
        return f"label={str(self.label)!r}, names={self.names}"
