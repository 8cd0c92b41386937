"""Measured ONNX Runtime latency of every member of a space, predicted from its parts."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwnas.errors import HwnasError, UnsupportedError
from hwnas.nn import ModelSpace
from hwnas.profilers.accuracy import AccuracyReport, compare
from hwnas.profilers.composition import Granularity, calibration_members, composition_of, features_of
from hwnas.profilers.device import Device, describe_device
from hwnas.profilers.elsewhere import read_results
from hwnas.profilers.latency_parts import Members, Progress, held_out_members, report_seed, silent
from hwnas.profilers.measurement import Measurement
from hwnas.profilers.measuring import measure
from hwnas.profilers.posterior import Posterior
from hwnas.profilers.profiler import Profiler
from hwnas.profilers.store import LatencyStore
from hwnas.profilers.target import OrtTarget
from hwnas.profilers.trace import Inputs
from hwnas.profilers.traced_space import TracedSpace, traced
from hwnas.space import Sample

REFERENCES = 20  # rows of earlier sessions that a new session measures again, to tell how far the machine drifted

VISITS = 30  # of each net at least, if time allows: the standard error of fewer says too little about the next session

BETWEEN_SESSIONS = 0.01  # standard deviation by which a net differs from one session to the next, beyond the scale

# The same where nets were measured as ratios to the canary, from which they differ by their size under load.
BETWEEN_CONTENDED = 0.05

CONTENDED = 0.03  # from which on one measurement in ten is over 5 % away, whatever is predicted


@dataclass(frozen=True)
class Prediction:
    """A predicted latency.

    Parameters
    ----------
    latency_ms : float
        The expected time of one run, in milliseconds.
    stderr_ms : float
        Standard deviation of a measurement around the prediction, in milliseconds: of what is not known about the
        parts, of what the parts do not say, and of measuring. NaN without calibration.
    """

    latency_ms: float
    stderr_ms: float


class OnnxRuntimeLatencyProfiler(Profiler):
    """Latency with ONNX Runtime, measured on this machine or on another one.

    Every distinct part of the space, a module without choices about structure at one shape, is measured on its own,
    all of them interleaved, together with some whole members. A member is predicted as the cost of an empty run plus
    the sum of its parts, each less the empty run. What a part costs more or less among others is learnt from the whole
    members: a scale, a cost of each element that passes from part to part, one of each weight, and how far each part
    deviates from that; see `Posterior`.

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
    calibration : int, default 20
        How many whole members are measured to correct the parts; 0 for none. Those are chosen that tell the most.
    granularity : {"auto", "blocks", "kernels"}, default "auto"
        What members are sums of: parts of the space that are measured alone, or the fused kernels of each member, which
        are learnt from the whole members. With ``auto`` kernels, where what several choices return is added up and
        where the kernels can be known: up to 200,000 members, common operators, on the CPU of this machine.
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
    granularity : str
        ``"blocks"`` or ``"kernels"``.
    overhead_ms : float
        Time of an empty run, in milliseconds; every member pays it once.
    anchors : list of dict
        The whole members that were measured to correct the parts.
    relative_residual : float
        Root mean square of what the whole members take more or less than predicted, each from all the others, relative
        to what they take. NaN without calibration.
    between_sessions : float
        Relative standard deviation by which a member differs from one session of measuring to the next, beyond what it
        differs by within one: 1 %, or more where load on the machine has shown. Part of every predicted error.

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
        calibration: int = 20,
        granularity: Granularity = "auto",
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
        self._progress: Progress = silent if progress is None else progress
        self._space = space
        known = self._trace(example_inputs)
        self._members = Members(known)
        if calibration == 0 and granularity == "auto":
            granularity = "blocks"
        self._parts = composition_of(
            space, known, self._members, granularity, self.target, here=self.measures_here, progress=self._progress
        )
        self.granularity = self._parts.granularity
        if self.granularity == "kernels" and calibration == 0:
            raise ValueError("OnnxRuntimeLatencyProfiler: kernels are known from whole members; calibration is 0")
        self.anchors: list[Sample] = calibration_members(self._parts, space, calibration, seed)
        anchor_keys = self._members.members(self.anchors, self._progress)
        self._anchor_keys = frozenset(anchor_keys)
        self.between_sessions = BETWEEN_SESSIONS
        self._ensure([*self._parts.keys, *anchor_keys])
        self._calibrate(self.anchors, anchor_keys)

    def _trace(self, example_inputs: Inputs | TracedSpace) -> TracedSpace:
        if isinstance(example_inputs, TracedSpace):
            return traced(self._space, example_inputs)
        self._progress("trace", 0, 1)
        known = traced(self._space, example_inputs)
        self._progress("trace", 1, 1)
        return known

    def _ensure(self, keys: Sequence[str]) -> None:
        """Measure what the store does not know yet, all of it in one session, and see how far that may be relied on."""
        wanted = list(dict.fromkeys(keys))
        self._measure_missing(wanted)
        for session in self.store.sessions(self.device.key, self.target.key, wanted):
            self.between_sessions = max(self.between_sessions, session.unsteadiness, session.scale.spread)
        members = [found.contended for found in self._lookup(list(self._anchor_keys)).values()]
        if 2 * sum(members) > len(members):
            self.between_sessions = max(self.between_sessions, BETWEEN_CONTENDED)

    def _measure_missing(self, wanted: Sequence[str]) -> None:
        known = self._lookup([*wanted, *self._parts.keys, *self._anchor_keys])
        missing = [key for key in wanted if key not in known]
        # A space without parts has an empty run to be measured.
        if not missing and self.store.sessions(self.device.key, self.target.key):
            return
        if not self.measures_here:
            raise HwnasError(
                f"OnnxRuntimeLatencyProfiler: {len(missing)} of {len(wanted)} parts and members were not measured on "
                f"{self.device.cpu_model}, {self._members.name(missing[0])} among them. The folder was prepared for "
                "another space, another input, or with other `calibration` and `seed`; prepare and run it again"
            )
        # Rows of different sessions are comparable only through what was measured in both: whole members rather than
        # parts, then what is known best.
        references = sorted(
            known, key=lambda key: (key not in self._anchor_keys, known[key].stderr_ms / known[key].latency_ms)
        )[:REFERENCES]
        workloads = self._members.workloads([*missing, *references], self.target, self._progress)
        record = functools.partial(self.store.record, self.device, self.target)
        result = measure(
            workloads,
            self.target,
            budget_s=min(self.budget_s, 3.0 + 1.5 * len(workloads)),
            relative_error=self.relative_error,
            min_visits=VISITS,
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
        self.overhead_ms = first.overhead_ms * first.scale.at(first.overhead_ms)
        found = self._lookup(self._parts.keys)
        keys = self._parts.keys
        # Kernels are not measured alone.
        self._own = np.array([max(found[key].latency_ms - self.overhead_ms, 0.0) for key in keys])
        own_stderr = np.array([found[key].stderr_ms for key in keys])
        if self.granularity == "kernels":
            self._own = self._rough_from(anchors, anchor_keys)
            own_stderr = np.zeros_like(self._own)
        self._unfitted = self._sum = self._parts.add_up(self._own, None, self.overhead_ms)
        self.relative_residual, self._measuring, self._posterior = float("nan"), float("nan"), None
        if anchors:
            # A member that was drawn twice is no more evidence than one.
            distinct = dict(zip(anchor_keys, anchors, strict=True))
            whole = self._lookup(anchor_keys)
            measured = [whole[key] for key in distinct]
            latency = np.array([each.latency_ms for each in measured])
            stderr = np.array([each.stderr_ms for each in measured])
            counts = self._parts.counts(list(distinct.values()))
            prior = self._parts.prior(self._own, own_stderr, counts)
            self._posterior = Posterior(prior, self._features(counts), latency - self.overhead_ms, stderr)
            self._sum = self._parts.add_up(self._own, self._posterior.mean, self.overhead_ms)
            self.relative_residual = float(np.sqrt(((self._posterior.left_out / latency) ** 2).mean()))
            self._measuring = float(np.median(stderr / latency))
        self.cost_model = self._sum.cost_model

    def _rough_from(self, anchors: Sequence[Sample], anchor_keys: Sequence[str]) -> np.ndarray:
        """Return what kernels may take, in milliseconds, so that half of some members take more."""
        rough = self._parts.rough()
        expected = self._parts.counts(anchors) @ rough
        found = self._lookup(anchor_keys)
        above = np.array([found[key].latency_ms - self.overhead_ms for key in anchor_keys])
        ratio = above[expected > 0] / expected[expected > 0]
        return rough * max(float(np.median(ratio)), 0.0) if len(ratio) else rough * 0.0

    def _features(self, counts: np.ndarray) -> np.ndarray:
        """Return how often each coefficient counts in nets, given how often each part does."""
        return features_of(self._parts, self._own, counts)

    @property
    def contended(self) -> bool:
        """Whether load has shown on the machine by which members differ by over 3 % from one session to the next.

        Predicted errors say so, and no prediction can be within 5 % of nine in ten measurements. See `advice`.
        """
        return self.between_sessions > CONTENDED

    @property
    def advice(self) -> str:
        """What to do where measurements were contended."""
        return (
            f"contended: members differ by {100 * self.between_sessions:.0f} % between sessions, which errors allow "
            "for; end other programs and measure again with another store"
        )

    @property
    def _noise(self) -> float:
        """Relative standard deviation of a measurement around the true latency."""
        return math.hypot(self._measuring, self.between_sessions)

    def predict(self, sample: Sample) -> Prediction:
        """Return the predicted latency of a member with its standard deviation, in milliseconds."""
        return Prediction(self.profile(sample), self.stderr(sample))

    @property
    def least_relative_stderr(self) -> float:
        """Least standard deviation of a prediction relative to it; see `Profiler`. NaN without calibration.

        That of measuring, and the misfit, which is a share of all but the empty run.
        """
        if self._posterior is None:
            return float("nan")
        try:
            share = 1 - self.overhead_ms / self.cost_model.minimum().cost
        except UnsupportedError:  # exact bounds are out of reach where very many labels depend on each other
            share = 0.0
        return float(np.hypot(self._noise, self._posterior.misfit * max(share, 0.0)))

    def stderr(self, sample: Sample) -> float:
        """Return the standard deviation of `predict`, in milliseconds."""
        return float(self.stderrs([sample])[0])

    def stderrs(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return the standard deviations of many members at once, shape (n_samples,), in milliseconds."""
        if self._posterior is None or not samples:
            return np.full(len(samples), float("nan"))
        variance = self._posterior.variance(self._features(self._parts.counts(samples)))
        return np.asarray(np.hypot(np.sqrt(variance), self._noise * self.cost_model.evaluate(samples)))

    def breakdown(self, sample: Sample) -> list[tuple[str, float]]:
        """Return what the predicted latency of a member consists of, in milliseconds, the largest first.

        Returns
        -------
        list of (str, float)
            Parts of the space by name, or fused kernels with how often each runs; ``"constant"`` is an empty run.
        """
        return self._sum.breakdown(sample)

    def unfitted(self, sample: Sample) -> float:
        """Return the plain sum of the parts of a member and an empty run, in milliseconds, for comparison."""
        return float(self._unfitted.cost_model.evaluate(sample))

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
        keys = self._members.members(samples, self._progress)
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
        held_out = held_out_members(self._space, n, report_seed(self.seed) if seed is None else seed)
        measured = self.measure(held_out)
        predicted = [self.predict(sample) for sample in held_out]
        return compare(
            measured=[m.latency_ms for m in measured],
            predicted=[p.latency_ms for p in predicted],
            measured_stderr=[m.stderr_ms for m in measured],
            predicted_stderr=[p.stderr_ms for p in predicted],
        )

    def table(self) -> Mapping[str, dict[str, Any]]:
        """Return the measured parts by name, with their latency above an empty run in milliseconds; no kernels."""
        rows: dict[str, dict[str, Any]] = {}
        for key, found in self._lookup(self._parts.keys).items():
            rows[self._members.name(key)] = {
                "latency_ms": found.latency_ms - self.overhead_ms,
                "stderr_ms": found.stderr_ms,
                "visits": found.visits,
                "contended": found.contended,
            }
        return rows
