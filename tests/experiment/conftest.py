from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from hwnas.experiment import Task, load_task
from hwnas.profilers import Measurement, OrtTarget, SessionResult, Workload

SPACES = Path(__file__).parent / "spaces.py"


def latency_of(model: bytes) -> float:
    """Milliseconds on a machine on which a weight costs a microsecond, and nothing else costs anything."""
    weights = (tensor.dims for tensor in onnx.load_from_string(model).graph.initializer)
    return 0.01 + 1e-3 * sum(float(np.prod(shape)) for shape in weights if len(shape) > 1)


class Machine:
    """Stands in for `measure`, on a machine that is always quiet."""

    def __init__(self) -> None:
        self.measured = 0
        self.seen: list[tuple[str, bytes]] = []  # precision of the target, model

    def __call__(self, workloads: Sequence[Workload], target: OrtTarget, **options: Any) -> SessionResult:
        self.measured += len(workloads)
        self.seen += [(target.precision, workload.model) for workload in workloads]

        def found(latency: float) -> Measurement:
            return Measurement(latency, latency / 100, 20, False)

        return SessionResult(
            measurements={workload.key: found(latency_of(workload.model)) for workload in workloads},
            overhead=found(0.01),
            canary=found(0.2),
            canary_floor_ms=0.19,
            clock="thread_time",
            split_half_error=0.01,
            threads=1,
            load=0.0,
            started=time.time(),
            duration_s=1.0,
        )


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """A machine that is known, wherever a search measures."""
    with pytest.MonkeyPatch.context() as patch:
        made = Machine()
        for module in ("hwnas.profilers.latency", "hwnas.experiment.search"):
            patch.setattr(f"{module}.measure", made)
        yield made


@pytest.fixture(scope="session")
def store(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latency store for all searches on that machine."""
    return tmp_path_factory.mktemp("store") / "latency.sqlite"


@pytest.fixture(scope="session")
def tiny() -> Task:
    """Six members."""
    return load_task(f"{SPACES}:Tiny")


@pytest.fixture
def spaces() -> Path:
    """The file with the spaces."""
    return SPACES


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """On tensors this small, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
