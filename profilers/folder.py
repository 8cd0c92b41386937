"""A folder that measures on another device what the profiler of a space needs."""

from __future__ import annotations

import os

from hwnas.nn import ModelSpace
from hwnas.profilers.composition import calibration_members
from hwnas.profilers.elsewhere import write_folder
from hwnas.profilers.latency import VISITS
from hwnas.profilers.latency_parts import LatencyParts, Members, Progress, held_out_members, report_seed
from hwnas.profilers.target import OrtTarget
from hwnas.profilers.trace import Inputs
from hwnas.profilers.traced_space import TracedSpace, traced


def prepare_folder(
    folder: str | os.PathLike[str],
    space: ModelSpace,
    example_inputs: Inputs | TracedSpace,
    target: OrtTarget | None = None,
    *,
    budget_s: float = 60.0,
    relative_error: float = 0.01,
    calibration: int = 20,
    held_out: int = 30,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write a folder that measures on another device what a profiler of a space needs.

    Copy it to the device, run ``python measure.py`` there, which needs Python 3.10, onnxruntime and NumPy, copy it
    back, and give it to `OnnxRuntimeLatencyProfiler` as `results`.

    Parameters
    ----------
    folder : path-like
        To be made; it must not exist.
    space, example_inputs, relative_error, calibration, seed, progress
        See `OnnxRuntimeLatencyProfiler`, which is to be given the same space, inputs, calibration and seed.
    target : OrtTarget, optional
        Of the device; its provider need not be installed here when it is made with ``elsewhere=True``.
    budget_s : float, default 60
        Time for measuring, in seconds, at the most.
    held_out : int, default 30
        Whole members for `OnnxRuntimeLatencyProfiler.report`.

    Raises
    ------
    HwnasError
        When the folder exists already.
    """
    target = OrtTarget() if target is None else target
    known = traced(space, example_inputs)
    members = Members(known)
    parts = LatencyParts(space, known.traces, members, progress)
    samples = calibration_members(parts, space, calibration, seed)
    samples += held_out_members(space, held_out, report_seed(seed))
    keys = dict.fromkeys([*parts.keys, *members.members(samples, progress)])
    write_folder(
        folder,
        members.workloads(list(keys), target, progress),
        target,
        budget_s=budget_s,
        relative_error=relative_error,
        min_visits=VISITS,
        seed=seed,
    )
