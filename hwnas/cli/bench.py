"""``hwnas bench``: how fast parts of hwnas run on this machine."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import Annotated

import typer

from hwnas.cli.console import narration
from hwnas.cli.exit_codes import UsageError, exit_codes
from hwnas.cli.options import Debug, Json
from hwnas.cli.output import print_json, print_rich

app = typer.Typer(help="Measure parts of hwnas on this machine.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `kernels` a subcommand while it is the only one."""


@app.command()
def kernels(
    operators: Annotated[
        list[str] | None, typer.Argument(metavar="[OPERATOR]...", help="Which operators, mixed_sum for one; else all.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of every contender.")] = 1,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="Time for each row of the table.")] = 1.0,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Measure torch.compile too; needs a C++ compiler.")
    ] = True,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare the native kernels with eager PyTorch, torch.compile and what the machine allows."""
    with exit_codes(debug=debug), narration() as narrator:
        from hwnas.kernels import bench

        try:
            cases = bench.cases(operators or ())
        except ValueError as error:
            raise UsageError(str(error)) from None
        narrator.stage("measure the native kernels")
        total, begun = sum(len(case.phases) for case in cases), itertools.count()
        machine = bench.machine()
        rows = bench.measure(
            cases,
            threads,
            seconds,
            compiled=compiled,
            progress=lambda what: narrator.progress("rows", next(begun), total),
        )
        narrator.progress("rows", total, total)
    if as_json:
        print_json({"machine": machine, "rows": [asdict(row) for row in rows]})
    else:
        print_rich(bench.table(rows))
