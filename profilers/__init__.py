"""Costs of model spaces: multiply-adds, parameters, measured latency; filters and penalties written against them."""

from hwnas.profilers.accuracy import AccuracyReport
from hwnas.profilers.cost_table import TableProfiler
from hwnas.profilers.device import Device, describe_device
from hwnas.profilers.filters import ProfilerFilter, RangeProfilerFilter
from hwnas.profilers.flops import FlopsProfiler
from hwnas.profilers.folder import prepare_folder
from hwnas.profilers.latency import OnnxRuntimeLatencyProfiler, Prediction
from hwnas.profilers.measurement import Measurement, SessionResult, Workload
from hwnas.profilers.measuring import measure
from hwnas.profilers.memory import ActivationMemoryProfiler, PeakMemoryProfiler
from hwnas.profilers.parameters import NumParamsProfiler
from hwnas.profilers.penalties import ExpectationProfilerPenalty, ProfilerPenalty, SampleProfilerPenalty
from hwnas.profilers.profiler import Profiler
from hwnas.profilers.store import LatencyStore
from hwnas.profilers.target import OrtTarget
from hwnas.profilers.traced_space import TracedSpace

__all__ = [
    "AccuracyReport",
    "ActivationMemoryProfiler",
    "Device",
    "ExpectationProfilerPenalty",
    "FlopsProfiler",
    "LatencyStore",
    "Measurement",
    "NumParamsProfiler",
    "OnnxRuntimeLatencyProfiler",
    "OrtTarget",
    "PeakMemoryProfiler",
    "Prediction",
    "Profiler",
    "ProfilerFilter",
    "ProfilerPenalty",
    "RangeProfilerFilter",
    "SampleProfilerPenalty",
    "SessionResult",
    "TableProfiler",
    "TracedSpace",
    "Workload",
    "describe_device",
    "measure",
    "prepare_folder",
]
