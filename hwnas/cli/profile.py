"""``hwnas profile``: what the members of a space cost, and how well that is predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwnas.cli.console import narration
from hwnas.cli.exit_codes import exit_codes
from hwnas.cli.fvcore_check import compare_macs, require_fvcore
from hwnas.cli.options import Debug, Json, Precision, Seed, Store, Threads, default_store
from hwnas.cli.output import percent, print_json
from hwnas.errors import HwnasError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.cli.profile_subject import Subject
    from hwnas.cost import Extreme
    from hwnas.experiment import Narrator
    from hwnas.profilers import LatencyStore, OrtTarget, Profiler
    from hwnas.space import Mutable, Sample

RANDOM_MEMBERS = 1000
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# fvcore and hwnas count alike: more than rounding is a fault in one of them.
MACS_TOLERANCE = 1e-6


def profile(
    space: Annotated[
        str,
        typer.Argument(
            metavar="SPACE",
            help="A built-in space (digits), a class of hwnas.hub (MobileNetV3Space), or path/to/file.py:ClassName.",
        ),
    ],
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            show_default="64; of a space of the hub, 1",
            help="Inputs that the exported model takes in one run.",
        ),
    ] = None,
    threads: Threads = 1,
    precision: Precision = "fp32",
    store: Store = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time for measuring, in seconds.")] = 60.0,
    members: Annotated[
        int,
        typer.Option("--members", min=2, help="Whole members on which predictions are compared with measurements."),
    ] = 30,
    check: Annotated[bool, typer.Option("--check", help="Compare MACs with fvcore and PyTorch's counter.")] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Tell activation and peak memory too; of large spaces that takes a while.")
    ] = False,
    measure_on: Annotated[
        Path | None,
        typer.Option(
            "--measure-on",
            file_okay=False,
            metavar="FOLDER",
            help="Another device: write a folder that is run there; once it has results, read them.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", dir_okay=False, metavar="FILE", help="Draw the costs too, as an SVG image."),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure the parts of SPACE and tell what its members cost: latency, MACs, parameters, memory."""
    with exit_codes(debug=debug), narration() as narrator:
        if check:
            require_fvcore()
        from hwnas.cli.profile_subject import load_subject
        from hwnas.profilers import LatencyStore, OrtTarget

        if plot is not None and not plot.parent.is_dir():
            raise HwnasError(f"--plot: there is no folder {plot.parent}; make it, or give another file")

        target = OrtTarget(intra_op_threads=threads, precision=precision)
        subject = load_subject(space, seed)
        example = subject.example(batch_size or subject.batch_size)
        if measure_on is not None and not measure_on.exists():
            _prepare(subject, measure_on, narrator, example, target, seconds=seconds, members=members, seed=seed)
            return
        with LatencyStore(store or default_store()) as opened:
            found = _profile(
                subject,
                opened,
                narrator,
                example,
                target,
                seconds=seconds,
                members=members,
                check=check,
                memory=memory,
                results=measure_on,
                plot=plot,
                seed=seed,
            )
    if as_json:
        print_json(found)
    else:
        from hwnas.cli.profile_table import print_profile

        print_profile(found)
    with exit_codes(debug=debug):
        _raise_on_difference(found.get("fvcore"))


def _prepare(
    subject: Subject,
    folder: Path,
    narrator: Narrator,
    example: Tensor,
    target: OrtTarget,
    *,
    seconds: float,
    members: int,
    seed: int,
) -> None:
    from hwnas.profilers import prepare_folder

    narrator.stage("export the parts of the space")
    prepare_folder(
        folder,
        subject.make_space(),
        example,
        target,
        budget_s=seconds,
        held_out=members,
        seed=seed,
        progress=narrator.progress,
    )
    narrator.say(
        f"Copy {folder} to the device, run `python measure.py` in it there (Python 3.10, onnxruntime, numpy), copy it "
        "back, and give the same command again."
    )


def _profile(
    subject: Subject,
    store: LatencyStore,
    narrator: Narrator,
    example: Tensor,
    target: OrtTarget,
    *,
    seconds: float,
    members: int,
    check: bool,
    memory: bool,
    results: Path | None,
    plot: Path | None,
    seed: int,
) -> dict[str, Any]:
    import numpy as np

    from hwnas.profilers import (
        ActivationMemoryProfiler,
        FlopsProfiler,
        NumParamsProfiler,
        OnnxRuntimeLatencyProfiler,
        PeakMemoryProfiler,
        TracedSpace,
    )

    space = subject.make_space()
    narrator.stage("count multiply-adds and parameters")
    traced = TracedSpace(space, example)
    macs, parameters = FlopsProfiler(space, traced), NumParamsProfiler(space, traced)
    if memory:
        narrator.stage("follow the memory of activations")
        needed = [ActivationMemoryProfiler(space, traced), PeakMemoryProfiler(space, traced)]
    else:
        needed = []
    comparison = compare_macs(space, macs, example, seed) if check else None
    narrator.stage("measure the parts of the space")
    latency = OnnxRuntimeLatencyProfiler(
        space,
        traced,
        target if results is None else None,
        store=store,
        budget_s=seconds,
        seed=seed,
        results=results,
        progress=narrator.progress,
    )
    narrator.stage(f"compare predictions with measurements of {members} members")
    report = latency.report(members)
    if latency.contended:
        narrator.say(latency.advice)

    profilers: dict[str, Profiler] = {each.name: each for each in (latency, macs, parameters, *needed)}
    rng = np.random.default_rng(seed)
    samples = [space.random(random_state=rng) for _ in range(RANDOM_MEMBERS)]
    costs = {name: _costs(profiler, samples) for name, profiler in profilers.items()}
    median = samples[int(np.argsort(costs["latency_ms"])[RANDOM_MEMBERS // 2])]
    found = {
        "space": subject.name,
        "members": _size(space),
        "batch_size": len(example),
        "random_members": RANDOM_MEMBERS,
        "device": latency.device.to_dict(),
        "target": latency.target.to_dict(),
        "costs": {name: _spread(profiler, costs[name]) for name, profiler in profilers.items()},
        "spearman_macs_latency": _spearman(costs["macs"], costs["latency_ms"]),
        "fastest_member": _member(profilers, latency.cost_model.minimum),
        "median_member": {
            "sample": median,
            **{name: profiler.profile(median) for name, profiler in profilers.items()},
            "parts": _parts(latency.breakdown(median)),
        },
        "slowest_member": _member(profilers, latency.cost_model.maximum),
        "accuracy": report.to_dict(),
        "between_sessions": latency.between_sessions,
        "contended": latency.contended,
        **({} if comparison is None else {"fvcore": comparison}),
    }
    if plot is not None:
        from hwnas.atomic import write_text
        from hwnas.cli.profile_plot import plot as draw

        write_text(plot, draw(found, {name: values.tolist() for name, values in costs.items()}))
        narrator.say(f"drawn: {plot}")
    return found


def _costs(profiler: Profiler, samples: Sequence[Sample]) -> Any:
    import numpy as np

    from hwnas.profilers import PeakMemoryProfiler

    # The cost model of the peak is an upper bound.
    exact = profiler if isinstance(profiler, PeakMemoryProfiler) else profiler.cost_model
    return np.asarray(exact.evaluate(samples))


def _member(profilers: Mapping[str, Profiler], extreme: Callable[[], Extreme]) -> dict[str, Any] | None:
    """Give the fastest or the slowest member with its costs; None where that is out of reach."""
    try:
        sample = extreme().sample
    except UnsupportedError:
        return None
    return {"sample": sample, **{name: profiler.profile(sample) for name, profiler in profilers.items()}}


def _size(space: Mutable) -> int | None:
    from hwnas.space import UncountableError

    try:
        return space.size()
    except UncountableError:
        return None


def _spread(profiler: Profiler, costs: Any) -> dict[str, Any]:
    import numpy as np

    model = profiler.cost_model
    try:
        low, high = model.minimum().cost, model.maximum().cost
        if not getattr(profiler, "is_exact", True):
            low = high = math.nan  # these are bounds of a bound
    except UnsupportedError:  # exact bounds are out of reach where very many labels depend on each other
        low = high = math.nan
    quantiles = {f"q{round(100 * q):02d}": float(np.quantile(costs, q)) for q in QUANTILES}
    return {"min": low, **quantiles, "max": high}


def _spearman(first: Any, second: Any) -> float:
    import numpy as np
    from scipy import stats

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan  # nothing to rank
    return float(stats.spearmanr(first, second).statistic)


def _parts(breakdown: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    total: dict[str, float] = {}
    for name, cost in breakdown:
        if cost != 0:
            total[name] = total.get(name, 0.0) + cost
    ordered = sorted(total.items(), key=lambda part: -part[1])
    return [{"name": "empty run" if name == "constant" else name, "latency_ms": cost} for name, cost in ordered]


def _raise_on_difference(check: dict[str, Any] | None) -> None:
    if check is not None and check["largest_difference"] > MACS_TOLERANCE:
        raise HwnasError(
            f"MACs differ from fvcore's by up to {percent(check['largest_difference'])}: {check['macs']:.0f} "
            f"against {check['fvcore_macs']:.0f} for {check['sample']}. fvcore counted nothing for: "
            f"{', '.join(check['uncounted']) or 'none'}"
        )
    if check is not None and check.get("largest_torch_difference", 0.0) > MACS_TOLERANCE:
        raise HwnasError(
            "MACs of convolutions and products differ from those of PyTorch's counter by up to "
            f"{percent(check['largest_torch_difference'])}"
        )
