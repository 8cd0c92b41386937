"""Parameters and multiply-adds of the published architectures in the hub, beside what the papers print.

    python benchmarks/hub_figures.py [--check]

Writes the table of docs/hub.md; with ``--check`` it only tells whether that table is up to date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hwnas.hub import published

PAGE = Path(__file__).parent.parent / "docs" / "hub.md"
START, END = "<!-- figures -->\n", "<!-- end of figures -->\n"


def table() -> str:
    """Return the table in Markdown, with the notes below."""
    rows = [
        "| architecture | parameters | printed | deviation | multiply-adds | printed | deviation | source |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name, architecture in published().items():
        parameters, macs = architecture.count()
        cells = [*beside(parameters, architecture.parameters), *beside(macs, architecture.macs)]
        mark = ""
        if architecture.note:
            notes.append(f"{len(notes) + 1}. **{name}**: {architecture.note}")
            mark = f" ({len(notes)})"
        rows.append(f"| {name}{mark} | {' | '.join(cells)} | {architecture.source} |")
    return "\n".join([*rows, "", *notes]) + "\n"


def beside(counted: int, printed: float | None) -> tuple[str, str, str]:
    if printed is None:
        return f"{counted / 1e6:.2f}M", "–", "–"  # noqa: RUF001 - a dash
    return f"{counted / 1e6:.2f}M", f"{printed / 1e6:.5g}M", f"{100 * (counted / printed - 1):+.1f} %"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = PAGE.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    new = before + START + table() + END + after
    if arguments.check:
        return int(new != text)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
