"""One ONNX Runtime session with its inputs and outputs bound, ready to be timed again and again."""

from __future__ import annotations

import math
import time
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from hwnas.errors import HwnasError
from hwnas.profilers.measurement import Workload
from hwnas.profilers.target import CPU_PROVIDER, OrtTarget

Clock = Callable[[], int]

# Reading the thread clock costs about 0.4 us: windows of this length keep that below 0.3 %.
_WINDOW_NS: Final = 150_000
_VISIT_NS: Final = 4_000_000
_MIN_WINDOWS: Final = 2
_MAX_WINDOWS: Final = 6
_TRIAL_RUNS: Final = 3

_DTYPES: Final[dict[str, type[np.generic]]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
# Providers whose bound values live in the memory of a device other than the CPU.
_DEVICES: Final = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}


def choose_clock(target: OrtTarget) -> tuple[str, Clock]:
    """Choose the clock for a target.

    Parameters
    ----------
    target : OrtTarget
        What is measured on.

    Returns
    -------
    name : str
        ``thread_time`` when all the work happens in the calling thread and the system keeps a fine clock for
        it (Windows counts in steps of 15 ms), otherwise ``perf_counter``.
    clock : callable
        Gives nanoseconds.
    """
    if target.uses_one_cpu_thread and hasattr(time, "thread_time_ns"):
        fine = time.get_clock_info("thread_time").resolution <= 1e-6
        if fine:
            return "thread_time", time.thread_time_ns
    return "perf_counter", time.perf_counter_ns


def plan_visit(run_ns: float) -> tuple[int, int]:
    """Decide how a visit is divided, from the rough time of one run.

    Parameters
    ----------
    run_ns : float
        Time of one run in nanoseconds.

    Returns
    -------
    windows : int
        Timed windows in a visit, 2 to 6, more for shorter runs.
    repeats : int
        Runs in a window, so many that the granularity and the cost of the clock are not felt.
    """
    repeats = max(1, math.ceil(_WINDOW_NS / max(run_ns, 1.0)))
    windows = int(_VISIT_NS // max(run_ns * repeats, 1.0))
    return min(max(windows, _MIN_WINDOWS), _MAX_WINDOWS), repeats


def _assigned(session: onnxruntime.InferenceSession) -> Counter[tuple[str, str]]:
    """Count nodes by provider and operator."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return Counter()
    subgraphs = session.get_provider_graph_assignment_info()
    return Counter((part.ep_name, node.op_type) for part in subgraphs for node in part.get_nodes())


class Runner:
    """A workload that is loaded, bound and warm.

    Parameters
    ----------
    workload : Workload
        The model.
    target : OrtTarget
        What it runs on.
    clock : callable
        Gives nanoseconds.
    seed : int, default 0
        Seed of the inputs.

    Raises
    ------
    HwnasError
        The model cannot be loaded, its inputs cannot be made or it cannot be run; the workload is named.

    Attributes
    ----------
    windows, repeats : int
        How a visit is divided; see `plan_visit`.
    assigned : Counter of (str, str)
        How many nodes of which operator run on which provider, by provider and operator. Empty on the CPU, and where
        ONNX Runtime is too old to tell.
    """

    def __init__(self, workload: Workload, target: OrtTarget, clock: Clock, seed: int = 0) -> None:
        self.workload = workload
        self._clock = clock
        try:
            self._session = onnxruntime.InferenceSession(
                workload.model,
                target.session_options(),
                providers=[(target.provider, {k: str(v) for k, v in target.provider_options.items()})],
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise self._failure("ONNX Runtime cannot load the model", error) from error
        active = self._session.get_providers()
        if target.provider not in active:
            raise HwnasError(
                f"Workload {workload.title!r}: provider {target.provider} did not start and ONNX Runtime "
                f"fell back to {', '.join(active)}. Check the driver and the libraries of the provider."
            )
        self.assigned = _assigned(self._session) if target.provider != CPU_PROVIDER else Counter()
        feeds = self._make_inputs(seed)
        device = _DEVICES.get(target.provider, "cpu")
        try:
            self._binding = self._bind(feeds, device)
            times = [self._window(1) for _ in range(_TRIAL_RUNS)]
        except Exception as error:
            raise self._failure("ONNX Runtime cannot run the model", error) from error
        self.windows, self.repeats = plan_visit(min(times))

    def visit(self) -> NDArray[np.float64]:
        """Do one discarded run and then the timed ones.

        Returns
        -------
        ndarray, shape (windows,), float64
            Milliseconds of one run, by window.
        """
        try:
            self._session.run_with_iobinding(self._binding)
            return np.array([self._window(self.repeats) for _ in range(self.windows)]) * 1e-6
        except Exception as error:
            raise self._failure("ONNX Runtime cannot run the model", error) from error

    def _window(self, repeats: int) -> float:
        """Give the nanoseconds of one run, averaged over `repeats` runs."""
        run, binding, clock = self._session.run_with_iobinding, self._binding, self._clock
        start = clock()
        for _ in range(repeats):
            run(binding)
        return (clock() - start) / repeats

    def _bind(self, feeds: dict[str, NDArray[np.generic]], device: str) -> onnxruntime.IOBinding:
        names = [output.name for output in self._session.get_outputs()]
        # A plain run first: it warms up and tells the output shapes, so that outputs can be bound as well.
        outputs = self._session.run(names, feeds)
        binding = self._session.io_binding()
        for name, array in feeds.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
            binding.bind_ortvalue_input(name, value)
        for name, array in zip(names, outputs, strict=True):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)
            binding.bind_ortvalue_output(name, value)
        return binding

    def _make_inputs(self, seed: int) -> dict[str, NDArray[np.generic]]:
        rng = np.random.default_rng([seed, zlib.crc32(self.workload.key.encode())])
        feeds: dict[str, NDArray[np.generic]] = {}
        for value in self._session.get_inputs():
            where = f"Workload {self.workload.title!r}, input {value.name!r}"
            if value.type not in _DTYPES:
                raise HwnasError(f"{where}: type {value.type} cannot be filled; known are {', '.join(_DTYPES)}.")
            if not all(isinstance(size, int) and size >= 0 for size in value.shape):
                raise HwnasError(
                    f"{where}: shape {value.shape} has dynamic dimensions; a latency belongs to a static "
                    "shape, so export the model with fixed sizes."
                )
            dtype = _DTYPES[value.type]
            if issubclass(dtype, np.floating):
                feeds[value.name] = rng.standard_normal(value.shape).astype(dtype)
            else:
                # Zero is the only integer that is a valid index whatever it indexes.
                feeds[value.name] = np.zeros(value.shape, dtype)
        return feeds

    def _failure(self, what: str, error: Exception) -> HwnasError:
        return HwnasError(f"Workload {self.workload.title!r}: {what}: {error}")
