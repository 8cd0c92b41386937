"""Search strategies: one file for each, and the one-shot base."""

from hwnas.strategies.base import Strategy
from hwnas.strategies.darts import DARTS
from hwnas.strategies.oneshot import OneShotCallback, OneShotStrategy
from hwnas.strategies.random_oneshot import RandomOneShot
from hwnas.strategies.subnet_search import RankedSubnet, SubnetSearch

__all__ = [
    "DARTS",
    "OneShotCallback",
    "OneShotStrategy",
    "RandomOneShot",
    "RankedSubnet",
    "Strategy",
    "SubnetSearch",
]
