"""Latency of the members of digits-NB in ONNX Runtime: batch 64, one thread, the median of 30 runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.compose import add_prefix, merge_models
from space import INPUT_SHAPE, STAGES, DigitsBench
from torch import Tensor, nn

from hwnas.export import export_many
from hwnas.profilers import OrtTarget
from hwnas.profilers.runner import choose_clock
from hwnas.space import Sample

BATCH_SIZE = 64
RUNS = 30
WARM_UP_RUNS = 5


class Part(NamedTuple):
    """What a member runs at a stage: the operator ("" where nothing is chosen) and the base width."""

    stage: str
    operator: str
    width: int


def parts_of(sample: Sample) -> list[Part]:
    """List the parts of a member; a skip is none."""
    parts = [Part(stage, sample.get(stage, ""), sample["width"]) for stage in STAGES]
    return [part for part in parts if part.operator != "skip"]


def export_parts(samples: Sequence[Sample]) -> dict[Part, onnx.ModelProto]:
    """Export the parts that some members have.

    An export costs about a second and there are 768 members, but only 51 parts. The weights are those of a new space;
    latency does not depend on them.
    """
    space = DigitsBench()
    modules: dict[Part, nn.Module] = {}
    inputs: list[tuple[Tensor]] = []
    for sample in samples:
        member, images = space.freeze(sample).eval(), torch.zeros(BATCH_SIZE, *INPUT_SHAPE)
        for part in parts_of(sample):
            module = member.get_submodule(part.stage)
            if part not in modules:
                modules[part] = module
                inputs.append((images,))
            with torch.no_grad():
                images = module(images)
    protos = map(onnx.load_from_string, export_many(list(modules.values()), inputs))
    return dict(zip(modules, protos, strict=True))


def compose(exported: Mapping[Part, onnx.ModelProto], sample: Sample) -> bytes:
    """Chain the parts of a member to one ONNX model."""
    whole: onnx.ModelProto | None = None
    for part in parts_of(sample):
        added = add_prefix(exported[part], f"{part.stage}/")
        if whole is None:
            whole = added
        else:
            (given,), (taken,) = whole.graph.output, added.graph.input
            whole = merge_models(whole, added, io_map=[(given.name, taken.name)])
    assert whole is not None
    return whole.SerializeToString(deterministic=True)


class Timer:
    """A model that is loaded and ready to be timed.

    Parameters
    ----------
    model : bytes
        An ONNX model with one input.
    target : OrtTarget
        What it runs on.
    """

    def __init__(self, model: bytes, target: OrtTarget) -> None:
        self._session = onnxruntime.InferenceSession(model, target.session_options(), providers=[target.provider])
        (self._input,) = (value.name for value in self._session.get_inputs())
        _, self._clock = choose_clock(target)
        self._images = np.random.default_rng(0).standard_normal((BATCH_SIZE, *INPUT_SHAPE)).astype(np.float32)

    def median_ms(self) -> float:
        """Return the median time of a run, in milliseconds."""
        feeds = {self._input: self._images}
        times = []
        for _ in range(WARM_UP_RUNS + RUNS):
            started = self._clock()
            self._session.run(None, feeds)
            times.append(self._clock() - started)
        return float(np.median(times[WARM_UP_RUNS:])) * 1e-6


def measure_all(models: Sequence[bytes], repeats: int, seed: int = 0) -> tuple[np.ndarray, list[float]]:
    """Measure all models once in each repeat, in an order of its own.

    A slow spell of the machine hits neighbours in the order, which are others in every repeat.

    Parameters
    ----------
    models : sequence of bytes
        ONNX models.
    repeats : int
        How often.
    seed : int
        Of the orders.

    Returns
    -------
    latency_ms : ndarray, shape (models, repeats)
        Medians.
    seconds : list of float
        Wall time of each repeat.
    """
    target, rng = OrtTarget(), np.random.default_rng(seed)
    timers = [Timer(model, target) for model in models]
    latency, seconds = np.empty((len(models), repeats)), []
    for repeat in range(repeats):
        started = time.perf_counter()
        for row in rng.permutation(len(models)):
            latency[row, repeat] = timers[row].median_ms()
        seconds.append(time.perf_counter() - started)
    return latency, seconds
