"""The table that a search ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwnas.cli.output import compact, milliseconds, percent, print_lines, print_table, setting

if TYPE_CHECKING:
    from hwnas.experiment import SearchResult
    from hwnas.space import Mutable, Sample

COLUMNS = (
    "model",
    "val. acc.",
    "test acc.",
    "budget ms",
    "predicted ms",
    "measured ms",
    "MACs",
    "parameters",
)
NAMES = {"random": "random in budget"}


def print_search(result: SearchResult, space: Mutable) -> None:
    """Print what a search found, for people.

    Parameters
    ----------
    result : SearchResult
        What `run_search` returned.
    space : Mutable
        The space that was searched; tells which labels of a sample are in use.
    """
    budget = float(result.settings["max_latency_ms"])
    rows = [
        (
            NAMES.get(row.name, row.name),
            percent(row.val_accuracy),
            percent(row.test_accuracy),
            f"{budget:g}",
            milliseconds(row.predicted_ms, row.predicted_stderr_ms),
            "not measured" if row.measured_ms is None else milliseconds(row.measured_ms, row.measured_stderr_ms),
            compact(row.macs),
            compact(row.parameters),
        )
        for row in result.rows
    ]
    settings = result.settings
    precision = str(settings.get("precision", "fp32"))
    title = setting(result.task, int(settings["batch_size"]), int(settings["threads"]), precision)
    print_table(title, COLUMNS, rows)
    print_lines("chosen architecture:")
    for label, value in _used(space, result.chosen.sample).items():
        print_lines(f"  {label}={value}")
    for row in result.rows[1:]:
        values = " ".join(str(value) for value in _used(space, row.sample).values())
        print_lines(f"{NAMES.get(row.name, row.name)}: {values}")
    files = f"files: {result.folder} (the exported model is in {result.folder}/model)"
    print_lines("", _agreement(result), files)
    if not result.meets_budget and result.chosen.measured_ms is not None:
        over = result.chosen.measured_ms / budget - 1
        print_lines(
            f"warning: measured again, the exported model takes {result.chosen.measured_ms:.3f} ms; "
            f"that is {percent(over)} over the budget of {budget:g} ms"
        )


def _agreement(result: SearchResult) -> str:
    errors = [abs(row.predicted_ms / row.measured_ms - 1) for row in result.rows if row.measured_ms is not None]
    if not errors:
        return "predicted from figures of another device; measure the exported model there"
    mean, largest = sum(errors) / len(errors), max(errors)
    text = (
        f"predicted and measured latency of these {len(errors)} models differ by {percent(mean)} on average, "
        f"by {percent(largest)} at most"
    )
    expected = result.latency.get("relative_residual")
    return text if expected is None else f"{text} (standard deviation in calibration: {percent(expected)})"


def _used(space: Mutable, sample: Sample) -> dict[str, Any]:
    """Return the labels of a sample that make a difference to its member, in the order of the space."""
    active = _active_labels(space, sample)
    return {label: sample[label] for label in space.simplify() if label in active}


def _active_labels(mutable: Mutable, sample: Sample) -> set[str]:
    label = mutable.own_label()
    found = set() if label is None else {label}
    for sub in mutable.sub_mutables(sample):
        if not sub.is_constraint:  # a constraint may speak of labels that are not in use
            found |= _active_labels(sub, sample)
    return found
