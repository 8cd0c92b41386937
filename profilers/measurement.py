"""What a measuring session takes in and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Wall times of several threads are not trusted when the two halves of a session disagree by more than this.
_CERTIFIED_SPLIT_HALF = 0.02


@dataclass(frozen=True)
class Workload:
    """An ONNX model to be measured.

    Parameters
    ----------
    key : str
        Identifies the model in results and in the store; unique in a session.
    model : bytes
        The serialised ONNX model. All its input shapes are static.
    name : str, optional
        What errors call it; the key when empty.
    """

    key: str
    model: bytes
    name: str = ""

    @property
    def title(self) -> str:
        """What errors call it."""
        return self.name or self.key


@dataclass(frozen=True)
class References:
    """The two networks that take part in every session, as serialised ONNX models.

    Parameters
    ----------
    identity : bytes
        One that computes nothing: the overhead of a run.
    canary : bytes
        One that feels the load of the machine.
    """

    identity: bytes
    canary: bytes


@dataclass(frozen=True)
class Measurement:
    """A measured latency.

    Parameters
    ----------
    latency_ms : float
        Time of one run in milliseconds: the 10th percentile over the runs on a quiet machine.
    stderr_ms : float
        Bootstrap standard error of `latency_ms`, in milliseconds.
    visits : int
        Visits behind the latency; a visit is a warm run and a few timed ones.
    contended : bool
        Whether the machine was too busy: the latency is then the median ratio to the canary, times the floor
        of the canary.
    """

    latency_ms: float
    stderr_ms: float
    visits: int
    contended: bool


@dataclass(frozen=True)
class SessionResult:
    """Everything that one measuring session found.

    Parameters
    ----------
    measurements : mapping of str to Measurement
        By key of the workload, in the order in which they were given.
    overhead : Measurement
        The Identity network: the cost of a run that computes nothing.
    canary : Measurement
        The canary network.
    canary_floor_ms : float
        Time of the canary on the quiet machine in milliseconds, against which visits were judged.
    clock : str
        ``thread_time`` or ``perf_counter``.
    split_half_error : float
        Median over the workloads of the relative difference of two estimates, one from the even visits and
        one from the odd visits: the noise floor. NaN when nothing was measured.
    threads : int
        Intra-op threads of the target.
    load : float
        Load average of the last minute at the start; NaN where the system does not tell it.
    started : float
        Seconds since the epoch.
    duration_s : float
        Wall time, creation of the ONNX Runtime sessions included, in seconds.
    on_cpu : mapping of str to mapping of str to int, default empty
        For each workload of which a part ran on the CPU because the provider lacks it: how many nodes of which
        operator.
    unsteadiness : float, default 0
        Relative standard deviation by which whole nets differ between the first and the second half of the session
        beyond their standard errors and a common factor: load that came or went.
    """

    measurements: Mapping[str, Measurement]
    overhead: Measurement
    canary: Measurement
    canary_floor_ms: float
    clock: str
    split_half_error: float
    threads: int
    load: float
    started: float
    duration_s: float
    on_cpu: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    unsteadiness: float = 0.0

    @property
    def certified(self) -> bool:
        """Whether the figures may be relied on: one thread, or two halves that agree within 2 %."""
        return self.threads == 1 or self.split_half_error <= _CERTIFIED_SPLIT_HALF
