"""What a search found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hwnas.space import Sample

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ModelRow:
    """One model in the final table.

    Parameters
    ----------
    name : str
        ``chosen``, ``random``, ``fastest`` or ``largest``.
    sample : dict
        The architecture.
    val_accuracy, test_accuracy : float
        Fractions of images, after training from scratch.
    predicted_ms : float
        Predicted latency, in milliseconds.
    predicted_stderr_ms : float or None
        Its standard deviation, in milliseconds; None where it comes from a table.
    measured_ms, measured_stderr_ms : float or None
        Latency of the exported file with its standard error, in milliseconds; None where the device is another one.
    macs : float
        Multiply-adds of one run.
    parameters : int
        Of the model.
    """

    name: str
    sample: Sample
    val_accuracy: float
    test_accuracy: float
    predicted_ms: float
    predicted_stderr_ms: float | None
    measured_ms: float | None
    measured_stderr_ms: float | None
    macs: float
    parameters: int


@dataclass(frozen=True)
class SearchResult:
    """What a search under a latency budget found.

    Parameters
    ----------
    task : str
        Name of the space.
    settings : dict
        See `SearchSettings`.
    rows : tuple of ModelRow
        The chosen architecture first.
    latency : dict
        Of the predictor: `overhead_ms`, the time of an empty run in milliseconds, and `relative_residual`, the standard
        deviation of the calibration members around their prediction. Empty where latencies come from a table.
    verification : dict
        Largest difference between PyTorch and ONNX Runtime on test images.
    folder : str
        The run folder.
    seconds : dict
        Duration of each stage, in seconds.
    """

    task: str
    settings: dict[str, Any]
    rows: tuple[ModelRow, ...]
    latency: dict[str, float]
    verification: dict[str, Any]
    folder: str
    seconds: dict[str, float]

    @property
    def chosen(self) -> ModelRow:
        """The architecture that was chosen."""
        return self.rows[0]

    @property
    def meets_budget(self) -> bool:
        """Whether the exported file, measured again, is within the budget; as predicted where it was not measured."""
        latency = self.chosen.predicted_ms if self.chosen.measured_ms is None else self.chosen.measured_ms
        return latency <= float(self.settings["max_latency_ms"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return {"schema_version": SCHEMA_VERSION, "meets_budget": self.meets_budget, **asdict(self)}
