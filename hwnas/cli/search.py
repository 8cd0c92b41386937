"""``hwnas search``: find the most accurate member of a space within a latency budget."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwnas.cli.console import narration
from hwnas.cli.exit_codes import UsageError, exit_codes
from hwnas.cli.options import BatchSize, Debug, Json, Precision, Seed, Space, Store, Threads, default_store
from hwnas.cli.output import print_json
from hwnas.errors import HwnasError

if TYPE_CHECKING:
    from hwnas.experiment import SearchSettings


def search(
    space: Space,
    max_latency_ms: Annotated[
        float,
        typer.Option("--max-latency-ms", help="Budget for one run of the exported model, in milliseconds."),
    ],
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy",
            help="How the super-net is trained and searched: random-oneshot, darts, gumbel, proxyless or enas.",
        ),
    ] = "random-oneshot",
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", file_okay=False, show_default="runs/<space>-<time>", help="The run folder."),
    ] = None,
    store: Store = None,
    latency_from: Annotated[
        Path | None,
        typer.Option(
            "--latency-from",
            metavar="FOLDER|TABLE",
            help="Another device: a folder of `hwnas profile SPACE --measure-on` that came back, for this --seed, or a "
            ".csv or .yaml file with latency_ms by label.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    batch_size: BatchSize = 64,
    threads: Threads = 1,
    precision: Precision = "fp32",
    confidence: Annotated[
        float, typer.Option("--confidence", help="Least probability that members looked at are within the budget.")
    ] = 0.9,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data for the super-net.")] = 40,
    train_epochs: Annotated[
        int,
        typer.Option("--train-epochs", min=1, help="Passes over the data for each model of the final table."),
    ] = 25,
    evaluations: Annotated[
        int, typer.Option("--evaluations", min=1, help="Members that are scored on the super-net.")
    ] = 100,
    finalists: Annotated[
        int, typer.Option("--finalists", min=1, help="Best-scored members that are measured as a whole and trained.")
    ] = 4,
    profile_seconds: Annotated[
        float, typer.Option("--profile-seconds", help="Time for measuring parts, in seconds.")
    ] = 45.0,
    train_threads: Annotated[
        int,
        typer.Option("--train-threads", min=1, help="Threads of PyTorch; more pay for large models."),
    ] = 1,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search SPACE for the most accurate model within a latency budget, and export it to ONNX.

    The table compares the choice with a random member within the same budget, the fastest and the largest.

    Exit codes: 3 no architecture meets the budget, 4 the exported file computes something else than PyTorch,
    130 interrupted.
    """
    folder = out or _new_folder(space)
    with exit_codes(debug=debug, resume=_resume(out, folder)), narration() as narrator:
        if resume and out is None:
            raise UsageError("--resume goes on with the run in a folder; name that folder with --out")
        from hwnas import experiment

        settings = _settings(
            max_latency_ms=max_latency_ms,
            strategy=strategy,
            seed=seed,
            batch_size=batch_size,
            threads=threads,
            precision=precision,
            confidence=confidence,
            supernet_epochs=epochs,
            train_epochs=train_epochs,
            evaluations=evaluations,
            finalists=finalists,
            profile_s=profile_seconds,
            train_threads=train_threads,
        )
        task = experiment.load_task(space, seed)
        narrator.say(f"run folder: {folder}")
        result = experiment.run_search(
            task,
            settings,
            folder,
            store=store or default_store(),
            latency_from=latency_from,
            resume=resume,
            narrator=narrator,
        )
    if as_json:
        print_json(result.to_dict())
    else:
        from hwnas.cli.search_table import print_search

        print_search(result, task.make_space())


def _settings(**values: float | str) -> SearchSettings:
    from hwnas.experiment import SearchSettings

    try:
        return SearchSettings(**values)  # type: ignore[arg-type]
    except HwnasError as error:
        raise UsageError(str(error)) from error


def _new_folder(space: str) -> Path:
    name = space.rpartition(":")[2].rpartition("/")[2]
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _resume(out: Path | None, folder: Path) -> list[str]:
    return ["--resume"] if out is not None else ["--out", str(folder), "--resume"]
