"""Search strategies: one file for each, and the bases of those with shared weights and of those with trials."""

from hwnas.strategies.base import Strategy
from hwnas.strategies.darts import DARTS
from hwnas.strategies.multi_trial import MultiTrialStrategy
from hwnas.strategies.oneshot import OneShotCallback, OneShotStrategy
from hwnas.strategies.random_oneshot import RandomOneShot
from hwnas.strategies.regularized_evolution import RegularizedEvolution
from hwnas.strategies.subnet_search import RankedSubnet, SubnetSearch
from hwnas.strategies.trial import Trial

__all__ = [
    "DARTS",
    "MultiTrialStrategy",
    "OneShotCallback",
    "OneShotStrategy",
    "RandomOneShot",
    "RankedSubnet",
    "RegularizedEvolution",
    "Strategy",
    "SubnetSearch",
    "Trial",
]
