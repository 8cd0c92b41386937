"""``hwnas bench``: how fast parts of hwnas run on this machine."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import Annotated

import typer

from hwnas.cli.console import narration
from hwnas.cli.exit_codes import exit_codes
from hwnas.cli.options import Debug, Json
from hwnas.cli.output import print_json, print_rich

app = typer.Typer(help="Measure parts of hwnas on this machine.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `kernels` a subcommand while it is the only one."""


@app.command()
def kernels(
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of every contender.")] = 1,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Measure torch.compile too; needs a C++ compiler.")
    ] = True,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare the native kernels with eager PyTorch, torch.compile and a plain copy."""
    with exit_codes(debug=debug), narration() as narrator:
        from hwnas.kernels.bench import COUNTS, PHASES, SIZES, bench, table

        narrator.stage("measure mixed_sum")
        total, begun = len(SIZES) * len(COUNTS) * len(PHASES), itertools.count()
        rows = bench(threads, compiled=compiled, progress=lambda what: narrator.progress("kernels", next(begun), total))
        narrator.progress("kernels", total, total)
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
    else:
        print_rich(table(rows))
