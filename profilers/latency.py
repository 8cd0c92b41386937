"""Measured ONNX Runtime latency of every member of a space, predicted from its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from hwnas.cost import CostModel
from hwnas.export import export_many
from hwnas.nn import ModelSpace
from hwnas.profilers.accuracy import AccuracyReport, compare
from hwnas.profilers.device import Device, describe_device
from hwnas.profilers.measurement import Measurement, Workload
from hwnas.profilers.measuring import measure
from hwnas.profilers.profiler import Profiler, build_cost_model, domain_of, masked
from hwnas.profilers.store import LatencyStore
from hwnas.profilers.symbols import Table
from hwnas.profilers.target import OrtTarget
from hwnas.profilers.tracing import Inputs, trace_everywhere
from hwnas.profilers.units import Identity, Workpiece, members, units_of
from hwnas.space import Sample

REFERENCES = 6  # rows of earlier sessions that a new session measures again, to tell how far the machine drifted

# With fewer whole members than that only the scale is fitted.
MIN_ANCHORS = 6

Progress = Callable[[str, int, int], None]


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


@dataclass(frozen=True)
class _Part:
    """A unit of the space with the key of each of its members."""

    name: str
    labels: tuple[str, ...]
    conditions: tuple[Table, ...]
    keys: np.ndarray  # of str, one axis for each label
    traffic: np.ndarray  # elements that enter and leave, in the same order


class OnnxRuntimeLatencyProfiler(Profiler):
    """Latency with ONNX Runtime, measured on this machine.

    Every distinct part of the space, a module without choices about structure at one shape, is measured on its own,
    all of them interleaved, together with some whole members. A member is predicted as the cost of an empty run plus
    the sum of its parts, each less the empty run. Two coefficients, fitted to the whole members, make up for what a
    part costs more or less among others.

    Parameters
    ----------
    space : ModelSpace
        The space, before a strategy changes it.
    example_inputs : Tensor or tuple of Tensor
        What a member is called with. The batch size is part of what is measured.
    target : OrtTarget, optional
        Provider, threads, optimisation level.
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
    progress : callable, optional
        Called with what is being done, how many are done and how many there are.

    Attributes
    ----------
    device : Device
        This machine.
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

    References
    ----------
    Zhang et al.: nn-Meter: Towards Accurate Latency Prediction of Deep-Learning Model Inference on Diverse Edge
    Devices, MobiSys 2021, for prediction from measured kernels.
    """

    def __init__(
        self,
        space: ModelSpace,
        example_inputs: Inputs,
        target: OrtTarget | None = None,
        *,
        store: LatencyStore | None = None,
        budget_s: float = 60.0,
        relative_error: float = 0.01,
        calibration: int = 16,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.target = OrtTarget() if target is None else target
        self.device: Device = describe_device()
        self.store = LatencyStore() if store is None else store
        self.budget_s = budget_s
        self.relative_error = relative_error
        self.seed = seed
        self._progress = progress
        self._inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        self._catalog: dict[str, tuple[str, Workpiece]] = {}
        traces = trace_everywhere(space, example_inputs)
        # The traced copy holds the weights of every member, and nobody trains it.
        self._members: ModelSpace = traces[0].space
        self._space = space
        domain = domain_of(space)
        self._parts: list[_Part] = []
        for trace in traces:
            for unit in units_of(trace):
                shape = [len(domain[label]) for label in unit.labels]
                keys, traffic = np.empty(shape, dtype=object), np.zeros(shape)
                for index, (sample, piece) in zip(np.ndindex(*shape), members(unit, domain), strict=True):
                    identity = self._remember(f"{unit.name} {sample or ''}".strip(), piece)
                    keys[index], traffic[index] = identity.key, identity.traffic
                self._parts.append(_Part(unit.name, unit.labels, unit.conditions, keys, traffic))
        self.anchors: list[Sample] = [space.random(random_state=seed + 1 + i) for i in range(calibration)]
        anchor_keys = [self._remember_member(sample) for sample in self.anchors]
        self._ensure([*self._part_keys(), *anchor_keys])
        self._calibrate(self.anchors, anchor_keys)

    def _remember(self, name: str, piece: Workpiece) -> Identity:
        identity = piece.identify()
        self._catalog.setdefault(identity.key, (name, piece))
        return identity

    def _remember_member(self, sample: Sample) -> str:
        return self._remember(f"member {sample}", Workpiece(self._freeze(sample), self._inputs)).key

    def _freeze(self, sample: Sample) -> nn.Module:
        model: nn.Module = self._members.freeze(sample)
        return model.eval()

    def _say(self, what: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(what, done, total)

    def _ensure(self, keys: Sequence[str]) -> None:
        """Measure what the store does not know yet, all of it in one session."""
        wanted = list(dict.fromkeys(keys))
        known = self.store.lookup(wanted, self.device.key, self.target.key)
        missing = [key for key in wanted if key not in known]
        if not missing:
            return
        # Rows of different sessions are comparable only through what was measured in both.
        references = sorted(known, key=lambda key: known[key].stderr_ms / known[key].latency_ms)[:REFERENCES]
        prepared = [*missing, *references]
        self._say("export", 0, len(prepared))
        pieces = [self._catalog[key][1] for key in prepared]
        models = export_many([piece.module for piece in pieces], [piece.inputs for piece in pieces])
        self._say("export", len(prepared), len(prepared))
        workloads = [Workload(key, model, self._catalog[key][0]) for key, model in zip(prepared, models, strict=True)]
        result = measure(
            workloads,
            self.target,
            budget_s=min(self.budget_s, 3.0 + 1.5 * len(workloads)),
            relative_error=self.relative_error,
            floor_ms=self.store.canary_floor_ms(self.device.key, self.target.key),
            seed=self.seed,
            progress=lambda done, total: self._say("measure", done, total),
        )
        ratios = [known[key].latency_ms / result.measurements[key].latency_ms for key in references]
        self.store.record(self.device, self.target, result, anchor_scale=float(np.median(ratios)) if ratios else 1.0)

    def _lookup(self, keys: Sequence[str]) -> dict[str, Measurement]:
        return self.store.lookup(list(dict.fromkeys(keys)), self.device.key, self.target.key)

    def _calibrate(self, anchors: Sequence[Sample], anchor_keys: Sequence[str]) -> None:
        first = self.store.sessions(self.device.key, self.target.key)[0]
        self.overhead_ms = first.overhead_ms * first.anchor_scale
        latency = {key: found.latency_ms for key, found in self._lookup(self._part_keys()).items()}

        def above(key: str) -> float:
            return max(latency[key] - self.overhead_ms, 0.0)

        own = [np.vectorize(above, otypes=[float])(part.keys) for part in self._parts]
        traffic = [part.traffic for part in self._parts]
        self._unfitted = self._add_up(own, constant=self.overhead_ms)
        self.scale, self.traffic_ms, self.relative_residual = 1.0, 0.0, float("nan")
        if anchors:
            found = self._lookup(anchor_keys)
            measured = np.array([found[key].latency_ms for key in anchor_keys])
            self.scale, self.traffic_ms = fit_coefficients(
                np.asarray(self._unfitted.evaluate(list(anchors))) - self.overhead_ms,
                np.asarray(self._add_up(traffic).evaluate(list(anchors))),
                measured,
                self.overhead_ms,
            )
        self.cost_model = self._add_up(
            [self.scale * time + self.traffic_ms * size for time, size in zip(own, traffic, strict=True)],
            constant=self.overhead_ms,
        )
        if anchors:
            residual = measured / np.asarray(self.cost_model.evaluate(list(anchors))) - 1
            self.relative_residual = float(np.sqrt((residual**2).sum() / max(len(residual) - 2, 1)))

    def _part_keys(self) -> list[str]:
        return [key for part in self._parts for key in part.keys.flat]

    def _add_up(self, tables: Sequence[np.ndarray], constant: float = 0.0) -> CostModel:
        """Return the sum of one table for each part over the parts that a member runs."""
        parts = [
            (part.name, masked(Table(part.labels, table), part.conditions))
            for part, table in zip(self._parts, tables, strict=True)
        ]
        return build_cost_model(self._space, parts, unit="ms", constant=constant)

    def predict(self, sample: Sample) -> Prediction:
        """Return the predicted latency of a member with its standard deviation, in milliseconds."""
        latency = self.profile(sample)
        return Prediction(latency, latency * self.relative_residual)

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
        keys = [self._remember_member(sample) for sample in samples]
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
        rng = np.random.default_rng(10_000 + self.seed if seed is None else seed)
        held_out = [self._space.random(random_state=rng) for _ in range(n)]
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
        for key, found in self._lookup(self._part_keys()).items():
            rows[self._catalog[key][0]] = {
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
