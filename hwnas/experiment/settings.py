"""The settings of a search under a latency budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from hwnas.errors import HwnasError
from hwnas.profilers.target import PRECISIONS

STRATEGIES = ("random-oneshot", "darts", "gumbel", "proxyless", "enas")


@dataclass(frozen=True)
class SearchSettings:
    """Everything that decides what a search finds, besides the task.

    Parameters
    ----------
    max_latency_ms : float
        The budget for one run of the exported model, in milliseconds.
    strategy : {"random-oneshot", "darts", "gumbel", "proxyless", "enas"}, default "random-oneshot"
        How the super-net is trained and searched.
    seed : int, default 0
        Of everything random.
    batch_size : int, default 64
        Images that the exported model classifies in one run.
    threads : int, default 1
        Threads of ONNX Runtime inside an operator.
    precision : {"fp32", "int8"}, default "fp32"
        What latencies are measured in. The exported model is in fp32 in any case; quantise it with real data.
    confidence : float, default 0.9
        Least probability that a member which is looked at meets the budget, by the error of its prediction; see
        `hwnas.strategies.Budget`. What is chosen is measured.
    supernet_epochs : int, default 40
        Passes over the training data with shared weights.
    train_epochs : int, default 25
        Passes over the training data for each model in the final table.
    evaluations : int, default 100
        Members that are scored on the super-net.
    finalists : int, default 4
        Best-scored members that are measured as a whole and trained before one is chosen.
    profile_s : float, default 45
        Time for measuring parts, in seconds.
    train_threads : int, default 1
        Threads of PyTorch. More of them pay for large models on a machine that is not busy; the outcome depends on
        their number in the last digits.
    """

    max_latency_ms: float
    strategy: str = "random-oneshot"
    seed: int = 0
    batch_size: int = 64
    threads: int = 1
    precision: str = "fp32"
    confidence: float = 0.9
    supernet_epochs: int = 40
    train_epochs: int = 25
    evaluations: int = 100
    finalists: int = 4
    profile_s: float = 45.0
    train_threads: int = 1

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise HwnasError(f"strategy is {self.strategy!r}; expected one of {', '.join(STRATEGIES)}")
        if self.precision not in PRECISIONS:
            raise HwnasError(f"precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}")
        if not 0.5 <= self.confidence < 1:
            raise HwnasError(f"confidence is {self.confidence}; expected at least 0.5 and less than 1")
        for name in ("max_latency_ms", "profile_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise HwnasError(f"{name} is {getattr(self, name)}; expected a positive number")
        counts = (
            "batch_size",
            "threads",
            "supernet_epochs",
            "train_epochs",
            "evaluations",
            "finalists",
            "train_threads",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise HwnasError(f"{name} is {getattr(self, name)}; expected 1 or more")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SearchSettings:
        """Read what `to_dict` wrote.

        Raises
        ------
        HwnasError
            When a setting is unknown or missing.
        """
        known = {field.name for field in fields(cls)}
        if set(data) != known:
            raise HwnasError(f"settings differ in {sorted(set(data) ^ known)}; they were written by another version")
        return cls(**data)
