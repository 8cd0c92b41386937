"""Whether an exported model computes what the PyTorch model computes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.errors import VerificationError
from hwnas.export.mode import evaluation_mode
from hwnas.export.outputs import output_tensors

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Verification:
    """How far ONNX Runtime and PyTorch were apart.

    Attributes
    ----------
    max_abs_error : float
        The largest absolute difference of two values.
    max_rel_error : float
        The largest difference relative to the PyTorch value; values that are 0 in PyTorch do not count.
    n_batches, n_values : int
        How many batches and how many values were compared.
    atol, rtol : float
        The tolerances that were kept: ``|onnx - torch| <= atol + rtol * |torch|`` for every value.
    """

    max_abs_error: float
    max_rel_error: float
    n_batches: int
    n_values: int
    atol: float
    rtol: float


def verify_onnx(
    path: str | os.PathLike[str] | bytes,
    model: nn.Module,
    inputs: Sequence[tuple[Tensor, ...]],
    *,
    atol: float = 1e-5,
    rtol: float = 1e-4,
) -> Verification:
    """Compare an ONNX model in ONNX Runtime (CPU) with a PyTorch model in evaluation mode on given inputs.

    Parameters
    ----------
    path : path-like or bytes
        The ONNX model, or its content.
    model : nn.Module
        The truth. It keeps its training flags.
    inputs : sequence of tuple of Tensor
        The arguments of each call. Use data as the model will meet it.
    atol, rtol : float
        See `Verification`.

    Returns
    -------
    Verification
        The figures, when all values are within the tolerances.

    Raises
    ------
    VerificationError
        If a value is not, or is not a number, or if the outputs differ in number, shape or type, or if ONNX
        Runtime cannot run the model.
    ValueError
        If there are no inputs.
    """
    if not inputs:
        raise ValueError("verify_onnx: no inputs. Give at least one tuple of tensors.")
    name = "the ONNX model" if isinstance(path, bytes) else os.fspath(path)
    session = _session(path, name)
    names = [value.name for value in session.get_inputs()]

    absolute, relative, n_values = 0.0, 0.0, 0
    for batch, arguments in enumerate(inputs):
        where = f"{name}, batch {batch}"
        if len(arguments) != len(names):
            raise VerificationError(f"{where}: {len(arguments)} inputs given, and the ONNX model takes {len(names)}.")
        with evaluation_mode(model), torch.no_grad():
            expected = [tensor.cpu().numpy() for tensor in output_tensors(model(*arguments))]
        feed = {key: tensor.detach().cpu().numpy() for key, tensor in zip(names, arguments, strict=True)}
        try:
            got = session.run(None, feed)
        except Exception as error:
            raise VerificationError(f"{where}: ONNX Runtime failed: {error}") from error
        if len(got) != len(expected):
            raise VerificationError(f"{where}: {len(got)} outputs from ONNX Runtime, {len(expected)} from PyTorch.")
        for position, (ours, truth) in enumerate(zip(got, expected, strict=True)):
            errors = _compare(ours, truth, atol, rtol, f"{where}, output {position}")
            absolute, relative = max(absolute, errors[0]), max(relative, errors[1])
            n_values += truth.size
    return Verification(absolute, relative, len(inputs), n_values, atol, rtol)


def _session(path: str | os.PathLike[str] | bytes, name: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    source = path if isinstance(path, bytes) else os.fspath(path)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise VerificationError(f"{name}: ONNX Runtime cannot load it: {error}") from error


def _compare(got: Array, expected: Array, atol: float, rtol: float, where: str) -> tuple[float, float]:
    """Return the largest absolute and relative error, or raise."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise VerificationError(
            f"{where}: {got.dtype} of shape {got.shape} from ONNX Runtime, {expected.dtype} of shape "
            f"{expected.shape} from PyTorch."
        )
    if not expected.size:
        return 0.0, 0.0
    ours, truth = got.astype(np.float64), expected.astype(np.float64)
    for label, values in (("ONNX Runtime", ours), ("PyTorch", truth)):
        if np.isnan(values).any():
            raise VerificationError(
                f"{where}: {int(np.isnan(values).sum())} of {values.size} values from {label} are not numbers (NaN)."
            )
    magnitude = np.abs(truth)
    with np.errstate(invalid="ignore"):
        # Equal infinities have no difference, different ones an infinite one.
        difference = np.where(ours == truth, 0.0, np.abs(ours - truth))
        scaled = np.divide(difference, magnitude, out=np.zeros_like(difference), where=magnitude > 0)
    absolute, relative = float(difference.max()), float(np.nan_to_num(scaled, nan=np.inf).max())
    # Finite only: an infinite truth would allow anything.
    allowed = atol + rtol * np.where(np.isfinite(magnitude), magnitude, 0.0)
    outside = difference > allowed
    if outside.any():
        place = tuple(int(i) for i in np.unravel_index(int(np.argmax(difference - allowed)), difference.shape))
        raise VerificationError(
            f"{where}: {int(outside.sum())} of {outside.size} values differ by more than {atol:g} + {rtol:g} "
            f"|value|; largest difference {absolute:.3g}, relative {relative:.3g}; worst at {place}: "
            f"{ours[place]:.6g} from ONNX Runtime, {truth[place]:.6g} from PyTorch."
        )
    return absolute, relative
