"""Ready model spaces, one in each file."""

from hwnas.hub.digits import DigitsSpace

__all__ = ["DigitsSpace"]
