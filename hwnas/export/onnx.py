"""PyTorch modules as self-contained ONNX models."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hwnas.atomic import write_bytes
from hwnas.errors import UnsupportedError
from hwnas.export.mode import evaluation_mode
from hwnas.export.outputs import output_tensors
from hwnas.export.split import SCOPES, split_model

if TYPE_CHECKING:
    import onnx

# An export costs about 0.85 s, and 0.15 s more for each candidate of five operators. At this size the first
# part is under a tenth of the whole; beyond it nothing is gained, and a failure costs more to locate.
CHUNK = 64
# Parameters and buffers of the models of one export. What the exporter does with them grows with their square: four
# models of 550 take 37 s together and 24 s one by one.
TENSORS = 500


def export_onnx(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    dynamic_batch: bool = False,
) -> Path:
    """Write a model as one ONNX file with its weights inside, checked, and all or nothing.

    Parameters
    ----------
    model : nn.Module
        Exported in evaluation mode. It keeps its training flags and its parameters.
    example_inputs : Tensor or tuple of Tensor
        The arguments of the model. Their shapes become those of the ONNX inputs.
    path : path-like
        The file.
    opset : int, optional
        Version of the standard operators; the exporter's own choice by default.
    dynamic_batch : bool
        Whether the first dimension of every input is free (and common to them).

    Returns
    -------
    pathlib.Path
        `path`.

    Raises
    ------
    UnsupportedError
        If the model cannot be expressed in ONNX.
    """
    inputs = _as_tuple(example_inputs)
    shapes = None
    if dynamic_batch:
        for position, tensor in enumerate(inputs):
            if tensor.ndim == 0:
                raise UnsupportedError(
                    f"export_onnx: input {position} has no dimensions, so its batch cannot be dynamic. Use "
                    "dynamic_batch=False."
                )
        # The exporter takes a size of 1 for a constant.
        inputs = tuple(torch.cat([tensor, tensor]) if len(tensor) == 1 else tensor for tensor in inputs)
        batch = torch.export.Dim("batch", min=1)
        shapes = tuple({0: batch} for _ in inputs)
    proto = _export(model, inputs, opset=opset, dynamic_shapes=shapes)
    write_bytes(path, _checked_bytes(proto))
    return Path(path)


def export_many(
    models: Sequence[nn.Module],
    inputs: Sequence[tuple[Tensor, ...]],
    *,
    opset: int | None = None,
    chunk: int = CHUNK,
    progress: Callable[[int], None] | None = None,
) -> list[bytes]:
    """Export many models at the price of few: together, then taken apart.

    Most of the time of an export does not depend on what is exported, so up to `chunk` models go into one, fewer
    where they are large.

    Parameters
    ----------
    models : sequence of nn.Module
        Exported in evaluation mode; they keep their training flags. A model may occur several times.
    inputs : sequence of tuple of Tensor
        The arguments of each model.
    opset : int, optional
        See `export_onnx`.
    chunk : int
        How many models to export at a time.
    progress : callable, optional
        Called with how many are done, after each export.

    Returns
    -------
    list of bytes
        For each model a checked, self-contained ONNX model with its own inputs and outputs, in the order of
        its arguments and results.

    Raises
    ------
    UnsupportedError
        If a model cannot be exported; the message has its position and class.
    ValueError
        If `models` and `inputs` differ in length, or `chunk` is less than 1.
    """
    if len(models) != len(inputs):
        raise ValueError(f"export_many: {len(models)} models and {len(inputs)} inputs, expected one for each.")
    if chunk < 1:
        raise ValueError(f"export_many: chunk is {chunk}, expected at least 1.")
    result: list[bytes] = []
    for start, stop in _chunks(models, chunk):
        arguments = [_as_tuple(each) for each in inputs[start:stop]]
        result.extend(_export_together(models[start:stop], arguments, start, opset))
        if progress is not None:
            progress(stop)
    return result


def _chunks(models: Sequence[nn.Module], most: int) -> Iterator[tuple[int, int]]:
    """Cut models into stretches of at most so many, and of few tensors unless one model has more."""
    start, tensors = 0, 0
    for stop, model in enumerate(models):
        own = len(model.state_dict())
        if stop > start and (stop - start == most or tensors + own > TENSORS):
            yield start, stop
            start, tensors = stop, 0
        tensors += own
    if start < len(models):
        yield start, len(models)


class _Together(nn.Module):
    """Calls each model with its own arguments, and gives all their results as one flat tuple."""

    def __init__(self, models: Sequence[nn.Module], n_outputs: list[int]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        # Filled while tracing, which runs `forward` in Python.
        self.n_outputs = n_outputs

    def forward(self, arguments: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        results = [output_tensors(model(*each)) for model, each in zip(self.models, arguments, strict=True)]
        self.n_outputs[:] = [len(each) for each in results]
        return tuple(tensor for each in results for tensor in each)


def _export_together(
    models: Sequence[nn.Module], inputs: Sequence[tuple[Tensor, ...]], first: int, opset: int | None
) -> list[bytes]:
    """Export some models; where that fails, halve until the one at fault stands alone."""
    n_outputs: list[int] = []
    together = _Together(models, n_outputs)
    try:
        proto = _export(together, (list(inputs),), opset=opset)
        parts = split_model(proto, [len(each) for each in inputs], n_outputs, scope="models")
        return [_checked_bytes(part) for part in parts]
    except UnsupportedError as error:
        if len(models) == 1:
            raise UnsupportedError(f"export_many: candidate {first} ({type(models[0]).__name__}): {error}") from error
    half = len(models) // 2
    return [
        *_export_together(models[:half], inputs[:half], first, opset),
        *_export_together(models[half:], inputs[half:], first + half, opset),
    ]


def _export(
    model: nn.Module, arguments: tuple[Any, ...], *, opset: int | None, dynamic_shapes: Any = None
) -> onnx.ModelProto:
    # Copies, because two arguments that are one tensor would become one input.
    arguments = tree_map(lambda tensor: tensor.detach().clone(), arguments)
    with evaluation_mode(model), _quiet_exporter(), torch.no_grad():
        try:
            program = torch.onnx.export(
                model,
                arguments,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes,
            )
        except Exception as error:
            # The exporter's message is long and speaks of itself; the cause is what went wrong in the model.
            cause = error.__cause__ or error
            reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
            raise UnsupportedError(
                f"{type(model).__name__} cannot be exported to ONNX: {type(cause).__name__}: {reason}. Look "
                "for control flow on tensor values and for operators without an ONNX form."
            ) from error
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    return proto


def _strip(proto: onnx.ModelProto) -> None:
    """Take out the traces of this machine (file names, source lines); keep which module a node comes from."""
    graph = proto.graph
    for item in [
        proto,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ]:
        kept = [(entry.key, entry.value) for entry in item.metadata_props if entry.key == SCOPES]
        del item.metadata_props[:]
        for key, value in kept:
            item.metadata_props.add(key=key, value=value)


def _checked_bytes(proto: onnx.ModelProto) -> bytes:
    import onnx

    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _as_tuple(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    result = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    for position, each in enumerate(result):
        if not isinstance(each, Tensor):
            raise UnsupportedError(f"input {position} is a {type(each).__name__}, expected a tensor.")
    return result


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hold back the exporter's remarks (packages that are not installed, steps that went well)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # The exporter copies trees of its own in a way that PyTorch itself calls deprecated.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        logger.setLevel(level)
