"""Parameters and multiply-adds of the published architectures in the hub, beside what the papers print."""

from __future__ import annotations

from hwnas.hub import published


def figures() -> str:
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
