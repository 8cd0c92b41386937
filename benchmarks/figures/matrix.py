"""Which strategy with shared weights searches which primitive."""

from __future__ import annotations

from strategy_matrix import table as figures

__all__ = ["figures"]
