"""Writes the figures of the benchmarks into the pages of docs/.

    python benchmarks/report.py [--check] [PAGE ...]

What stands between two marks of a page comes from a file in figures/. With ``--check`` nothing is written, and pages
that are not up to date are an error. The pages: kernels, latency, costs, hub, digits_nb, matrix.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from hwnas.atomic import write_text

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent / "docs"
BEGIN, END = "<!-- figures: written by benchmarks/report.py -->\n", "<!-- end of figures -->\n"
PAGES = {
    "kernels": "kernels.md",
    "latency": "latency.md",
    "costs": "costs.md",
    "hub": "hub.md",
    "digits_nb": "digits_nb.md",
    "matrix": "strategies/matrix.md",
}


def split(text: str) -> tuple[str, str, str]:
    """Return what stands before, between and after the marks of a page."""
    before, rest = text.split(BEGIN)
    figures, after = rest.split(END)
    return before, figures, after


def update(name: str, check: bool) -> bool:
    """Write the figures of a page, or only look; return whether they were there."""
    path = DOCS / PAGES[name]
    old = path.read_text()
    before, _, after = split(old)
    figures: str = importlib.import_module(f"figures.{name}").figures()
    new = f"{before}{BEGIN}\n{figures.strip()}\n\n{END}{after}"
    if new != old and not check:
        write_text(path, new)
    return new == old


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", metavar="PAGE")
    parser.add_argument("--check", action="store_true", help="change nothing, fail where figures are not up to date")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.pages) - set(PAGES))
    if unknown:
        parser.error(f"no page {', '.join(unknown)}; there are {', '.join(PAGES)}")
    outdated = [name for name in arguments.pages or PAGES if not update(name, arguments.check)]
    for name in outdated:
        print(f"docs/{PAGES[name]}: {'not up to date' if arguments.check else 'written'}")
    return int(arguments.check and bool(outdated))


if __name__ == "__main__":
    sys.path.append(str(FOLDER / "digits_nb"))
    sys.exit(main())
