"""What a latency is measured on: an ONNX Runtime execution provider with its settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import onnxruntime

from hwnas.errors import HwnasError, UnsupportedError

CPU_PROVIDER: Final = "CPUExecutionProvider"

# Raised whenever a change of the protocol or of the canary makes old rows incomparable with new ones.
PROTOCOL_VERSION: Final = 1

OPTIMIZATION_LEVELS: Final[Mapping[str, onnxruntime.GraphOptimizationLevel]] = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

PRECISIONS: Final = ("fp32", "int8")


@dataclass(frozen=True)
class OrtTarget:
    """An ONNX Runtime configuration for which latencies are measured and stored.

    Parameters
    ----------
    provider : str, default "CPUExecutionProvider"
        Name of an installed execution provider. Operators that it does not have run on the CPU, and are reported by
        `hwnas.profilers.measure`.
    provider_options : mapping of str to str, int, float or bool, optional
        Options of the provider, as ONNX Runtime documents them.
    intra_op_threads : int, default 1
        Threads inside one operator. With one thread on the CPU the time of the thread is measured, which
        other load hardly disturbs; otherwise wall time.
    optimization : {"all", "extended", "basic", "disabled"}, default "all"
        Graph optimisation level.
    precision : {"fp32", "int8"}, default "fp32"
        What models compute in. With ``int8`` profilers measure every model quantised; see
        `hwnas.profilers.precision.in_precision`. It ranks networks differently, so it is a target of its own.
    version : str, optional
        Version of ONNX Runtime; the installed one unless given.
    elsewhere : bool, default False
        Whether it is a target of another machine, whose provider need not be installed here.

    Raises
    ------
    HwnasError
        The provider is not installed, or a value is unknown or out of range.
    UnsupportedError
        The precision is ``fp16``.
    """

    provider: str = CPU_PROVIDER
    provider_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    intra_op_threads: int = 1
    optimization: str = "all"
    precision: str = "fp32"
    version: str = field(default_factory=lambda: onnxruntime.__version__)
    elsewhere: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        installed = onnxruntime.get_available_providers()
        if not self.elsewhere and self.provider not in installed:
            raise HwnasError(
                f"OrtTarget: provider {self.provider!r} is not installed; installed are "
                f"{', '.join(installed)}. Choose one of them, install an ONNX Runtime build that has it, or give "
                "elsewhere=True to measure on another machine."
            )
        # A copy of its own: a caller that goes on editing its dict must not change a stored key.
        object.__setattr__(self, "provider_options", dict(self.provider_options))
        for name, value in self.provider_options.items():
            if not isinstance(name, str) or not isinstance(value, (str, int, float, bool)):
                raise HwnasError(
                    f"OrtTarget: provider_options[{name!r}] = {value!r}; expected a str name and a value of "
                    "type str, int, float or bool."
                )
        threads = self.intra_op_threads
        if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
            raise HwnasError(f"OrtTarget: intra_op_threads is {threads!r}; expected an integer of at least 1.")
        if self.optimization not in OPTIMIZATION_LEVELS:
            raise HwnasError(
                f"OrtTarget: optimization is {self.optimization!r}; expected one of {', '.join(OPTIMIZATION_LEVELS)}."
            )
        self._check_precision()

    def _check_precision(self) -> None:
        if self.precision == "fp16" and self.provider == CPU_PROVIDER:
            raise UnsupportedError(
                "OrtTarget: precision 'fp16' is refused on CPUExecutionProvider, which has no half-precision "
                "kernels for most operators on x86 and inserts casts to fp32: the figure would describe the casts. "
                "Use 'fp32' or 'int8' on the CPU."
            )
        if self.precision == "fp16":
            raise UnsupportedError(
                "OrtTarget: precision 'fp16' is refused, because models in half precision are not built. Where the "
                "provider converts fp32 models itself, say so in its options, as TensorRT's trt_fp16_enable."
            )
        if self.precision not in PRECISIONS:
            raise HwnasError(f"OrtTarget: precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}.")

    @property
    def uses_one_cpu_thread(self) -> bool:
        """Whether a run happens wholly inside the calling thread, so that its thread time is its cost."""
        return self.provider == CPU_PROVIDER and self.intra_op_threads == 1

    def to_dict(self) -> dict[str, Any]:
        """Give the full provenance as JSON-able values, versions of ONNX Runtime and protocol included.

        Returns
        -------
        dict of str to Any
            Every field of the target, `onnxruntime` (version) and `protocol` (version).
        """
        return {
            "provider": self.provider,
            "provider_options": {name: self.provider_options[name] for name in sorted(self.provider_options)},
            "intra_op_threads": self.intra_op_threads,
            "optimization": self.optimization,
            "precision": self.precision,
            "onnxruntime": self.version,
            "protocol": PROTOCOL_VERSION,
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any], *, elsewhere: bool = False) -> OrtTarget:
        """Give the target that `to_dict` describes.

        Parameters
        ----------
        description : mapping of str to Any
            With the keys of `to_dict`.
        elsewhere : bool, default False
            Whether it is a target of another machine.

        Raises
        ------
        HwnasError
            The protocol is that of another version of hwnas, or see the class.
        """
        values = dict(description)
        protocol, version = values.pop("protocol"), values.pop("onnxruntime")
        if protocol != PROTOCOL_VERSION:
            raise HwnasError(
                f"OrtTarget: the measuring protocol is version {protocol}, and this hwnas has version "
                f"{PROTOCOL_VERSION}. Measure again with the same version of hwnas on both machines."
            )
        return cls(**values, version=version, elsewhere=elsewhere)

    @property
    def key(self) -> str:
        """Hash of `to_dict()`: two measurements are comparable only when their target keys are equal."""
        return hash_of(self.to_dict())

    def session_options(self) -> onnxruntime.SessionOptions:
        """Give the ONNX Runtime session options of this target."""
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = OPTIMIZATION_LEVELS[self.optimization]
        options.intra_op_num_threads = self.intra_op_threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3  # failures arrive as exceptions; warnings would drown them
        if self.provider != CPU_PROVIDER:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options


def hash_of(description: Mapping[str, Any]) -> str:
    """Hash a JSON-able description, independently of the order of its keys.

    Parameters
    ----------
    description : mapping of str to Any
        JSON-able values.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
