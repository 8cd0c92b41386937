"""The application that holds the verbs."""

from __future__ import annotations

import typer

from hwnas.cli.bench import app as bench
from hwnas.cli.doctor import doctor
from hwnas.cli.export import export
from hwnas.cli.profile import profile
from hwnas.cli.search import search

app = typer.Typer(
    name="hwnas",
    help="Hardware-aware neural architecture search for PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(search)
app.command()(profile)
app.command()(export)
app.add_typer(bench, name="bench")
app.command()(doctor)


def main() -> None:
    """Run the command that the arguments of the process name, and exit with its code."""
    app(prog_name="hwnas")
