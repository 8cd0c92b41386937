"""`Cell`: nodes that add up operations, each of which reads one of the earlier nodes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hwnas.nn.cell_factory import Candidates, CellOpFactory, FactoryChoice, named
from hwnas.nn.freezing import copy_frozen
from hwnas.nn.holding import module_mutables
from hwnas.nn.input_choice import InputChoice, reduce_tensors
from hwnas.nn.layer_choice import LayerChoice
from hwnas.nn.mutable_module import MutableModule
from hwnas.space import Label, Mutable, MutableExpression, Sample, maximum, to_int
from hwnas.space.expression import Operation
from hwnas.space.labels import resolve_label

MergeOp = Literal["all", "loose_end"]


class ChosenCell(nn.Module):
    """What a `Cell` becomes when it is frozen.

    Attributes
    ----------
    num_predecessors : int
        Number of inputs.
    output_node_indices : list of int
        Nodes that are concatenated; predecessors count, from 0.
    concat_dim : int
        Dimension of the concatenation.
    inputs, ops : torch.nn.ModuleList
        For each node, a list of what selects the tensors that its operations read, and one of the operations.
    preprocessor, postprocessor : callable, optional
        See `Cell`.
    """

    num_predecessors: int
    output_node_indices: list[int]
    concat_dim: int
    inputs: nn.ModuleList
    ops: nn.ModuleList
    preprocessor: Callable[[list[Tensor]], Sequence[Tensor]] | None
    postprocessor: Callable[[Tensor, list[Tensor]], Any] | None

    def forward(self, *inputs: Tensor | Sequence[Tensor]) -> Any:
        """Run all nodes and concatenate the output nodes.

        Parameters
        ----------
        *inputs : Tensor, or one list of Tensor
            As many as there are predecessors.

        Returns
        -------
        Tensor, or what the postprocessor returns
            The output nodes, concatenated along `concat_dim`.

        Raises
        ------
        ValueError
            When the number of inputs, or of what the preprocessor returns, is wrong.
        """
        given: list[Any] = list(inputs)
        if len(given) == 1 and isinstance(given[0], list | tuple):
            given = list(given[0])
        self._check_number(given, "inputs")
        states = list(given)
        if self.preprocessor is not None:
            states = list(self.preprocessor(states))
            self._check_number(states, "tensors from the preprocessor")
        for selectors, operations in zip(self.inputs, self.ops, strict=True):
            read = [
                self._read(selector, operation, states)
                for selector, operation in zip(selectors, operations, strict=True)  # type: ignore[call-overload]
            ]
            states.append(reduce_tensors(read, "sum"))
        output = self._merge(states)
        return output if self.postprocessor is None else self.postprocessor(output, given)

    def _read(self, selector: nn.Module, operation: nn.Module, states: list[Tensor]) -> Tensor:
        """Run one operation of a node on the node that it reads."""
        result: Tensor = operation(selector(states))
        return result

    def _merge(self, states: list[Tensor]) -> Tensor:
        """Concatenate what is output, given the predecessors and all nodes."""
        return torch.cat([states[index] for index in self.output_node_indices], self.concat_dim)

    def _check_number(self, tensors: list[Any], what: str) -> None:
        if len(tensors) != self.num_predecessors:
            raise ValueError(f"cell: got {len(tensors)} {what}, expected {self.num_predecessors}, its predecessors")

    def extra_repr(self) -> str:
        """Show the predecessors and the output."""
        return f"num_predecessors={self.num_predecessors}, output_node_indices={self.output_node_indices}"


class Cell(MutableModule, ChosenCell):
    """A graph of nodes, each the sum of operations whose kind and whose input are chosen.

    The predecessors are the inputs of the cell and are counted as nodes, from 0. Operation k of node i is chosen under
    the label ``{label}/op_{i}_{k}``, by position or name, and reads one of the nodes before i, which is chosen under
    ``{label}/input_{i}_{k}``; in samples that is a list of one index, as for every `InputChoice`. Nodes that nothing
    reads, or all nodes, are concatenated. Operations should keep the shape of their input: which of them follow each
    other is not known beforehand.

    As long as it is not frozen it computes what the default sample computes: every operation is the first candidate
    and reads the first predecessor.

    Parameters
    ----------
    op_candidates : sequence or mapping of torch.nn.Module or callable, or one callable
        A module is copied for every operation; choices in it keep their labels, so all its copies choose alike. A
        callable gets the index of the node, of the operation in the node, and of the node that the operation reads,
        and returns the candidate; a single callable returns a sequence or mapping of all candidates. Callables
        are called when the cell is frozen; before, only for the default sample, with the input 0, so that they
        may compute with it. They must not return modules with choices.
    num_nodes : int
        Number of nodes besides the predecessors.
    num_ops_per_node : int, default 1
        Number of operations that a node adds up.
    num_predecessors : int, default 1
        Number of inputs of the cell.
    merge_op : {"all", "loose_end"}
        Concatenate all nodes, or those that no other node reads; predecessors do not count among them.
    preprocessor : callable or object with a `forward`, optional
        Gets the list of inputs and returns a list of as many tensors, which the nodes read.
    postprocessor : callable or object with a `forward`, optional
        Gets the concatenation and the list of inputs as they were passed to the cell; what it returns the cell returns.
    concat_dim : int, default 1
        Dimension of the concatenation.
    always_output : sequence of int
        Nodes, predecessors included, that are concatenated even if other nodes read them. NASNet-A does so.
    label : str, optional
        Prefix of the labels. Cells of one label choose alike.

    Attributes
    ----------
    output_node_indices : list of int
        Nodes that are concatenated: of the default sample, which is all of them, and in a frozen cell the real ones.
    op_candidates_factory : CellOpFactory or None
        Makes the candidates when callables are given.
    inputs, ops : torch.nn.ModuleList
        For each node a list of `InputChoice`, and one of `LayerChoice`; of `FactoryChoice` when callables are given.

    Raises
    ------
    ValueError
        When a number or an option is impossible, or there is no candidate.
    TypeError
        When a candidate is no module, or a processor cannot be called.
    UnsupportedError
        When a callable makes a module with choices in it, or a processor could not be frozen.

    Examples
    --------
    >>> import torch
    >>> import hwnas.nn as nn
    >>> candidates = {"conv": nn.Conv2d(8, 8, 3, padding=1), "pool": nn.MaxPool2d(3, 1, 1)}
    >>> cell = nn.Cell(candidates, num_nodes=2, num_predecessors=2, merge_op="loose_end", label="cell")
    >>> head = nn.Conv2d(8 * cell.num_output_nodes, 10, 1)
    >>> sample = {"cell/op_2_0": "conv", "cell/input_2_0": [1], "cell/op_3_0": "pool", "cell/input_3_0": [2]}
    >>> frozen = cell.freeze(sample)
    >>> frozen.output_node_indices
    [3]
    >>> frozen(torch.zeros(1, 8, 6, 6), torch.zeros(1, 8, 6, 6)).shape
    torch.Size([1, 8, 6, 6])
    >>> head.freeze(sample).in_channels
    8

    References
    ----------
    Zoph et al.: Learning Transferable Architectures for Scalable Image Recognition, CVPR 2018.
    Radosavovic et al.: On Network Design Spaces for Visual Recognition, ICCV 2019.
    """

    _search_machinery = True  # a frozen cell is a ChosenCell

    def __init__(
        self,
        op_candidates: Candidates,
        num_nodes: int,
        num_ops_per_node: int = 1,
        num_predecessors: int = 1,
        merge_op: MergeOp = "all",
        preprocessor: Any = None,
        postprocessor: Any = None,
        concat_dim: int = 1,
        *,
        always_output: Sequence[int] = (),
        label: str | None = None,
    ) -> None:
        super().__init__()
        self.label = resolve_label(label, "cell")
        for name, number in (
            ("num_nodes", num_nodes),
            ("num_ops_per_node", num_ops_per_node),
            ("num_predecessors", num_predecessors),
        ):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"Cell {self.label!r}: {name} is {number!r}; expected an int from 1 up")
        if merge_op not in ("all", "loose_end"):
            raise ValueError(f"Cell {self.label!r}: merge_op is {merge_op!r}; expected 'all' or 'loose_end'")
        total = num_predecessors + num_nodes
        if not set(always_output) <= set(range(total)):
            raise ValueError(f"Cell {self.label!r}: always_output is {always_output}; its nodes are 0 to {total - 1}")
        self.num_nodes = num_nodes
        self.num_ops_per_node = num_ops_per_node
        self.num_predecessors = num_predecessors
        self.merge_op: MergeOp = merge_op
        self.always_output = sorted(set(always_output))
        self.concat_dim = concat_dim
        self.preprocessor = self._processor(preprocessor, "preprocessor")
        self.postprocessor = self._processor(postprocessor, "postprocessor")
        self.op_candidates_factory = self._factory(op_candidates)
        self.inputs = nn.ModuleList()
        self.ops = nn.ModuleList()
        for node in range(num_predecessors, total):
            names = [f"{node}_{k}" for k in range(num_ops_per_node)]
            selectors = [InputChoice(node, label=Label(f"{self.label}/input_{name}")) for name in names]
            operations = [
                self._operation(op_candidates, node, k, selector, Label(f"{self.label}/op_{name}"))
                for k, (name, selector) in enumerate(zip(names, selectors, strict=True))
            ]
            self.inputs.append(nn.ModuleList(selectors))
            self.ops.append(nn.ModuleList(operations))
        self.output_node_indices = self.output_nodes(self._default_inputs())

    def _processor(self, processor: Any, name: str) -> Any:
        """Check a processor; an object that is no module but has a `forward` becomes a module."""
        if processor is None or isinstance(processor, nn.Module):
            return processor
        if inspect.ismethod(processor) and isinstance(processor.__self__, nn.Module):
            raise TypeError(
                f"Cell {self.label!r}: the {name} is a method of the module {type(processor.__self__).__name__}, "
                "which is not part of the cell; pass the module itself, or a function"
            )
        if hasattr(processor, "forward"):
            processor = ForwardOnly(processor)
            if any(True for _ in module_mutables(processor)):
                raise TypeError(
                    f"Cell {self.label!r}: the {name} holds choices and is no torch.nn.Module; derive its class from it"
                )
        elif not callable(processor):
            raise TypeError(f"Cell {self.label!r}: the {name} is {processor!r}; expected a callable or a module")
        return processor

    def _factory(self, op_candidates: Any) -> CellOpFactory | None:
        if not isinstance(op_candidates, Sequence | Mapping):
            if isinstance(op_candidates, nn.Module) or not callable(op_candidates):
                raise TypeError(
                    f"Cell {self.label!r}: op_candidates is {op_candidates!r}; expected a list or dict of modules or "
                    "of callables, or a callable that returns a list or dict of modules"
                )
            return CellOpFactory(op_candidates)
        candidates = named(op_candidates)
        for name, candidate in candidates.items():
            if not callable(candidate):
                raise TypeError(
                    f"Cell {self.label!r}: candidate {name!r} is {candidate!r}; expected a module or a callable"
                )
        made = any(not isinstance(candidate, nn.Module) for candidate in candidates.values())
        return CellOpFactory(op_candidates) if made else None

    def _operation(
        self, op_candidates: Any, node: int, op: int, selector: InputChoice, label: Label
    ) -> LayerChoice | FactoryChoice:
        if self.op_candidates_factory is None:
            return LayerChoice(copy.deepcopy(op_candidates), label=label)
        return FactoryChoice(self.op_candidates_factory, node, op, selector.choice, label)

    def _selectors(self) -> list[tuple[int, InputChoice]]:
        """Return every choice of an input with the node that it belongs to."""
        return [
            (node, selector)
            for node, selectors in enumerate(self.inputs, self.num_predecessors)
            for selector in selectors  # type: ignore[attr-defined]
        ]

    def _default_inputs(self) -> Sample:
        return {selector.label: selector.choice.default_value() for _, selector in self._selectors()}

    def output_nodes(self, sample: Sample) -> list[int]:
        """Return the nodes that are concatenated under a sample.

        Parameters
        ----------
        sample : dict
            Holds at least the inputs of this cell.
        """
        read = {index for _, selector in self._selectors() for index in sample[selector.label]}
        return [
            node
            for node in range(self.num_predecessors + self.num_nodes)
            if node in self.always_output
            or (node >= self.num_predecessors and (self.merge_op == "all" or node not in read))
        ]

    @property
    def num_output_nodes(self) -> int | MutableExpression:
        """How many nodes are concatenated: a number, or an expression of the inputs that are chosen.

        Multiplied by the channels of a node it is the number of channels of the output, for the layers behind.
        """
        if self.merge_op == "all":
            return len(self.output_node_indices)
        total: Any = None
        for node in range(self.num_predecessors + self.num_nodes):
            if node >= self.num_predecessors or node in self.always_output:
                total = self._is_output(node) if total is None else _side_by_side(total, self._is_output(node))
        number: int | MutableExpression = total
        return number

    def _is_output(self, node: int) -> int | MutableExpression:
        """Return 1 for a node that is concatenated and 0 for another one, of loose ends as an expression."""
        reads = [to_int(selector.choice[0] == node) for later, selector in self._selectors() if later > node]
        if node in self.always_output or not reads:
            return 1
        is_loose: MutableExpression = 1 - maximum(reads)
        return is_loose

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield the choices of inputs and operations, and of loose ends the number, which the cell itself decides."""
        yield from super().sub_mutables(sample)
        if isinstance(self.num_output_nodes, MutableExpression):
            yield self.num_output_nodes

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to a `ChosenCell` of the chosen operations."""
        memo[id(self.op_candidates_factory)] = None  # not to be copied
        copied = copy_frozen(self, sample, memo)
        for name in ("label", "num_nodes", "num_ops_per_node", "merge_op", "always_output", "op_candidates_factory"):
            delattr(copied, name)
        copied.output_node_indices = self.output_nodes(sample)  # type: ignore[assignment]
        return copied

    def extra_repr(self) -> str:
        """Show the label, the numbers and what is concatenated."""
        return (
            f"label={str(self.label)!r}, num_nodes={self.num_nodes}, num_ops_per_node={self.num_ops_per_node}, "
            f"num_predecessors={self.num_predecessors}, merge_op={self.merge_op!r}"
        )


class Concatenation(Operation):
    """The sum of the widths of two tensors that stand side by side, the left one first."""


def _side_by_side(left: int | MutableExpression, right: int | MutableExpression) -> int | MutableExpression:
    if isinstance(left, int) and isinstance(right, int):
        return left + right
    return Concatenation("+", left, right)


def widths_side_by_side(width: Any) -> list[Any]:
    """Take the width of the output of a cell apart into those of its nodes.

    Parameters
    ----------
    width : int or expression
        Computed from `Cell.num_output_nodes` by multiplication, and by addition of the widths of other tensors.

    Returns
    -------
    list of int or expression
        One width for each tensor that may be part of the output, in their order, 0 while it is not; for anything
        else `width` itself alone.
    """
    if not isinstance(width, Operation) or width.name not in ("+", "*"):
        return [width]
    left, right = map(widths_side_by_side, width.operands)
    if len(left) == len(right) == 1 and not isinstance(width, Concatenation):
        return [width]
    return [*left, *right] if width.name == "+" else [a * b for a in left for b in right]


class ForwardOnly(nn.Module):
    """An object with a `forward` that is no module, as a module: what it holds is trained and moved along.

    Parameters
    ----------
    wrapped : object
        Modules that are its attributes become parts of this one.
    """

    def __init__(self, wrapped: Any) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.parts = nn.ModuleList(part for part in vars(wrapped).values() if isinstance(part, nn.Module))

    def forward(self, *args: Any) -> Any:
        """Call `forward` of the object."""
        return self.wrapped.forward(*args)
