"""Measured ONNX Runtime latency of every member of a space, predicted from its parts."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwnas.errors import HwnasError
from hwnas.nn import ModelSpace
from hwnas.profilers.accuracy import AccuracyReport, compare
from hwnas.profilers.device import Device, describe_device
from hwnas.profilers.elsewhere import read_results, write_folder
from hwnas.profilers.latency_parts import LatencyParts, Progress, held_out_members, random_members
from hwnas.profilers.measurement import Measurement
from hwnas.profilers.measuring import measure
from hwnas.profilers.profiler import Profiler
from hwnas.profilers.store import LatencyStore
from hwnas.profilers.target import OrtTarget
from hwnas.profilers.trace import Inputs
from hwnas.profilers.traced_space import TracedSpace
from hwnas.space import Sample

REFERENCES = 6  # rows of earlier sessions that a new session measures again, to tell how far the machine drifted

# With fewer whole members than that only the scale is fitted.
MIN_ANCHORS = 6

HELD_OUT = 10_000  # added to the seed of a profiler, it gives the members of its report


@dataclass(frozen=True)
class Prediction:
    """A predicted latency.

    Parameters
    ----------
    latency_ms : float
        The expected time of one run, in milliseconds.
    stderr_ms : float
        Standard deviation of whole nets around the prediction, in milliseconds. NaN without calibration.
    """

    latency_ms: float
    stderr_ms: float


def prepare_folder(
    folder: str | os.PathLike[str],
    space: ModelSpace,
    example_inputs: Inputs | TracedSpace,
    target: OrtTarget | None = None,
    *,
    budget_s: float = 60.0,
    relative_error: float = 0.01,
    calibration: int = 16,
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
    parts = LatencyParts(space, example_inputs)
    samples = random_members(space, calibration, seed) + held_out_members(space, held_out, HELD_OUT + seed)
    keys = dict.fromkeys([*parts.keys, *map(parts.member, samples)])
    target = OrtTarget() if target is None else target
    write_folder(
        folder,
        parts.workloads(list(keys), target, progress),
        target,
        budget_s=budget_s,
        relative_error=relative_error,
        seed=seed,
    )


class OnnxRuntimeLatencyProfiler(Profiler):
    """Latency with ONNX Runtime, measured on this machine or on another one.

    Every distinct part of the space, a module without choices about structure at one shape, is measured on its own,
    all of them interleaved, together with some whole members. A member is predicted as the cost of an empty run plus
    the sum of its parts, each less the empty run. Two coefficients, fitted to the whole members, make up for what a
    part costs more or less among others.

    Parameters
    ----------
    space : ModelSpace
        The space, before a strategy changes it.
    example_inputs : Tensor, tuple of Tensor or TracedSpace
        What a member is called with, or the space with its traces. The batch size is part of what is measured.
    target : OrtTarget, optional
        Provider, threads, optimisation level, precision.
    store : LatencyStore, optional
        Where measurements are kept and looked up; in memory unless given.
    budget_s : float, default 60
        Time for measuring, in seconds, at the most. Preparing the models comes on top.
    relative_error : float, default 0.01
        Standard error at which the measuring of a part ends.
    calibration : int, default 16
        How many whole members are measured to fit the scale; 0 for none.
    seed : int, default 0
        Of the order of measuring and of the whole members.
    results : path-like, optional
        A folder of `prepare_folder` that came back from another device, with its results: latencies are then
        those of that device, and nothing is measured here.
    progress : callable, optional
        Called with what is being done, how many are done and how many there are.

    Attributes
    ----------
    device : Device
        This machine, or the one of the results.
    measures_here : bool
        Whether what is missing can be measured.
    overhead_ms : float
        Time of an empty run, in milliseconds; every member pays it once.
    anchors : list of dict
        The whole members that were measured to fit the scale.
    scale : float
        Fitted: what a millisecond of a part on its own costs in a whole net.
    traffic_ms : float
        Fitted: milliseconds for each element that enters or leaves a part; see `fit_coefficients`.
    relative_residual : float
        Standard deviation of measured over predicted latency of the whole members; NaN without calibration.

    Raises
    ------
    HwnasError
        When results lack what has to be known.
    ValueError
        When a target is given beside results.

    References
    ----------
    Zhang et al.: nn-Meter: Towards Accurate Latency Prediction of Deep-Learning Model Inference on Diverse Edge
    Devices, MobiSys 2021, for prediction from measured kernels.
    """

    def __init__(
        self,
        space: ModelSpace,
        example_inputs: Inputs | TracedSpace,
        target: OrtTarget | None = None,
        *,
        store: LatencyStore | None = None,
        budget_s: float = 60.0,
        relative_error: float = 0.01,
        calibration: int = 16,
        seed: int = 0,
        results: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.store = LatencyStore() if store is None else store
        if results is None:
            self.target = OrtTarget() if target is None else target
            self.device: Device = describe_device()
        elif target is None:
            found = read_results(results)
            self.target, self.device = found.target, found.device
            self.store.record(found.device, found.target, found.session)
        else:
            raise ValueError(
                "OnnxRuntimeLatencyProfiler: both target and results are given; the target is that of the results"
            )
        self.measures_here = results is None
        self.budget_s = budget_s
        self.relative_error = relative_error
        self.seed = seed
        self._progress: Progress = (lambda what, done, total: None) if progress is None else progress
        self._space = space
        self._parts = LatencyParts(space, example_inputs)
        self.anchors: list[Sample] = random_members(space, calibration, seed)
        anchor_keys = [self._parts.member(sample) for sample in self.anchors]
        self._ensure([*self._parts.keys, *anchor_keys])
        self._calibrate(self.anchors, anchor_keys)

    def _ensure(self, keys: Sequence[str]) -> None:
        """Measure what the store does not know yet, all of it in one session."""
        wanted = list(dict.fromkeys(keys))
        known = self.store.lookup(wanted, self.device.key, self.target.key)
        missing = [key for key in wanted if key not in known]
        if not missing:
            return
        if not self.measures_here:
            raise HwnasError(
                f"OnnxRuntimeLatencyProfiler: {len(missing)} of {len(wanted)} parts and members were not measured on "
                f"{self.device.cpu_model}, {self._parts.name(missing[0])} among them. The folder was prepared for "
                "another space, another input, or with other `calibration` and `seed`; prepare and run it again"
            )
        # Rows of different sessions are comparable only through what was measured in both.
        references = sorted(known, key=lambda key: known[key].stderr_ms / known[key].latency_ms)[:REFERENCES]
        workloads = self._parts.workloads([*missing, *references], self.target, self._progress)
        record = functools.partial(self.store.record, self.device, self.target)
        result = measure(
            workloads,
            self.target,
            budget_s=min(self.budget_s, 3.0 + 1.5 * len(workloads)),
            relative_error=self.relative_error,
            floor_ms=self.store.canary_floor_ms(self.device.key, self.target.key),
            seed=self.seed,
            anchors=references,
            record=record,
            progress=functools.partial(self._progress, "measure"),
        )
        record(result)

    def _lookup(self, keys: Sequence[str]) -> dict[str, Measurement]:
        return self.store.lookup(list(dict.fromkeys(keys)), self.device.key, self.target.key)

    def _calibrate(self, anchors: Sequence[Sample], anchor_keys: Sequence[str]) -> None:
        first = self.store.sessions(self.device.key, self.target.key)[0]
        self.overhead_ms = first.overhead_ms * first.anchor_scale
        latency = {key: found.latency_ms for key, found in self._lookup(self._parts.keys).items()}
        own = self._parts.tabulate(lambda key: max(latency[key] - self.overhead_ms, 0.0))
        traffic = self._parts.traffic
        self._unfitted = self._parts.add_up(own, constant=self.overhead_ms)
        self.scale, self.traffic_ms, self.relative_residual = 1.0, 0.0, float("nan")
        if anchors:
            found = self._lookup(anchor_keys)
            measured = np.array([found[key].latency_ms for key in anchor_keys])
            self.scale, self.traffic_ms = fit_coefficients(
                np.asarray(self._unfitted.evaluate(list(anchors))) - self.overhead_ms,
                np.asarray(self._parts.add_up(traffic).evaluate(list(anchors))),
                measured,
                self.overhead_ms,
            )
        self.cost_model = self._parts.add_up(
            [self.scale * time + self.traffic_ms * size for time, size in zip(own, traffic, strict=True)],
            constant=self.overhead_ms,
        )
        if anchors:
            residual = measured / np.asarray(self.cost_model.evaluate(list(anchors))) - 1
            self.relative_residual = float(np.sqrt((residual**2).sum() / max(len(residual) - 2, 1)))

    def predict(self, sample: Sample) -> Prediction:
        """Return the predicted latency of a member with its standard deviation, in milliseconds."""
        latency = self.profile(sample)
        return Prediction(latency, latency * self.relative_residual)

    @property
    def least_relative_stderr(self) -> float:
        """Least standard deviation of a prediction relative to it; see `Profiler`. NaN without calibration."""
        return self.relative_residual

    def stderr(self, sample: Sample) -> float:
        """Return the standard deviation of `predict`, in milliseconds."""
        return self.predict(sample).stderr_ms

    def unfitted(self, sample: Sample) -> float:
        """Return the plain sum of the parts of a member and an empty run, in milliseconds, for comparison."""
        return float(self._unfitted.evaluate(sample))

    def measure(self, samples: Sequence[Sample]) -> list[Measurement]:
        """Measure whole members, interleaved, or look them up.

        Parameters
        ----------
        samples : sequence of dict
            Members.

        Returns
        -------
        list of Measurement
            In the order of `samples`.
        """
        keys = [self._parts.member(sample) for sample in samples]
        self._ensure(keys)
        found = self._lookup(keys)
        return [found[key] for key in keys]

    def report(self, n: int = 30, seed: int | None = None) -> AccuracyReport:
        """Compare predictions with measurements on random members that took no part in the calibration.

        Parameters
        ----------
        n : int, default 30
            How many members.
        seed : int, optional
            Which members; never those of the calibration.

        Returns
        -------
        AccuracyReport
            Rank correlation, errors, coverage, and the noise floor of the measurements.
        """
        held_out = held_out_members(self._space, n, HELD_OUT + self.seed if seed is None else seed)
        measured = self.measure(held_out)
        return compare(
            measured=[m.latency_ms for m in measured],
            predicted=[self.profile(sample) for sample in held_out],
            measured_stderr=[m.stderr_ms for m in measured],
            relative_residual=self.relative_residual,
        )

    def table(self) -> Mapping[str, dict[str, Any]]:
        """Return the measured parts by name, with their latency above an empty run in milliseconds."""
        rows: dict[str, dict[str, Any]] = {}
        for key, found in self._lookup(self._parts.keys).items():
            rows[self._parts.name(key)] = {
                "latency_ms": found.latency_ms - self.overhead_ms,
                "stderr_ms": found.stderr_ms,
                "visits": found.visits,
                "contended": found.contended,
            }
        return rows


def fit_coefficients(
    parts: np.ndarray, traffic: np.ndarray, measured: np.ndarray, overhead: float
) -> tuple[float, float]:
    """Fit what parts cost in whole nets.

    ONNX Runtime keeps a blocked layout from one convolution to the next. A part on its own enters and leaves it, which
    costs time in proportion to the elements that it reads and writes, and that time is not spent between parts.

    Parameters
    ----------
    parts : ndarray, shape (n,)
        Summed latency of the parts of each net, less an empty run each, in milliseconds.
    traffic : ndarray, shape (n,)
        Summed number of elements that enter and leave the parts.
    measured : ndarray, shape (n,)
        Latency of the nets, in milliseconds.
    overhead : float
        Time of an empty run, in milliseconds.

    Returns
    -------
    scale : float
        Coefficient of `parts`.
    traffic_ms : float
        Coefficient of `traffic`; 0 when there are too few nets to tell the two apart.
    """
    # Least squares of the relative error: each net counts the same, whatever its size.
    target = (measured - overhead) / measured
    columns = np.stack([parts / measured, traffic / measured], 1)
    if not columns[:, 0].any():
        return 1.0, 0.0
    if len(measured) >= MIN_ANCHORS and np.linalg.matrix_rank(columns / (np.abs(columns).max(0) + 1e-300), 1e-6) == 2:
        (scale, traffic_ms), *_ = np.linalg.lstsq(columns, target, rcond=None)
        return float(scale), float(traffic_ms)
    return float(columns[:, 0] @ target) / float(columns[:, 0] @ columns[:, 0]), 0.0
