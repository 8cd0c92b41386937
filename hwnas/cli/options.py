"""Arguments and options that several verbs take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Space = Annotated[str, typer.Argument(metavar="SPACE", help="A built-in space (digits), or path/to/file.py:ClassName.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Inputs that the exported model takes in one run.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of ONNX Runtime inside an operator.")]
Precision = Annotated[
    str, typer.Option("--precision", help="What measured models compute in: fp32, or int8 (quantised to be timed).")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")]
Store = Annotated[
    Path | None,
    typer.Option(
        "--store",
        dir_okay=False,
        show_default="latency.sqlite in the user's cache folder",
        help="Where measured latencies are kept and looked up.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def default_store() -> Path:
    """Return this user's latency store: ``hwnas/latency.sqlite`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification has relative paths ignored.
    folder = cache if cache.is_absolute() else Path.home() / ".cache"
    return folder / "hwnas" / "latency.sqlite"
