"""The exceptions of hwnas. Every message says where, what was got, what was expected, and what to do."""

from __future__ import annotations


class HwnasError(Exception):
    """Base class of every error that hwnas raises on purpose."""


class SampleError(HwnasError, ValueError):
    """A sample does not belong to a space: a label is missing, a value is unknown, a constraint is violated.

    Parameters
    ----------
    message : str
        What is wrong, what was expected.
    path : sequence of str, optional
        The way from the root of the space to the mutable at fault.
    """

    def __init__(self, message: str, path: tuple[str, ...] = ()) -> None:
        self.message = message
        self.path = tuple(path)
        super().__init__(f"{' > '.join(self.path)}: {message}" if self.path else message)


class UnsupportedError(HwnasError, TypeError):
    """A module or an argument cannot take part in what was asked, for a reason that the message names."""


class BudgetError(HwnasError, ValueError):
    """No architecture meets the budget.

    Parameters
    ----------
    message : str
        The budget, the nearest reachable cost and what blocks it.
    nearest : float or tuple of float, optional
        The reachable cost nearest to the budget, in the unit of the budget. Of several ranges that exclude each other,
        one for each: the nearest to it while the others are kept, NaN where there is none.
    """

    def __init__(self, message: str, nearest: float | tuple[float, ...] | None = None) -> None:
        self.nearest = nearest
        super().__init__(message)


class StoreError(HwnasError):
    """A latency store cannot be opened, read or written."""


class VerificationError(HwnasError):
    """An exported model does not compute what the PyTorch model computes."""


class TrainingError(HwnasError):
    """Training cannot go on, for example because the loss is not finite."""
