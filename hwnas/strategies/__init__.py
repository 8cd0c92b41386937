"""Search strategies: one file for each, and the bases of those with shared weights and of those with trials."""

from hwnas.strategies.base import Strategy
from hwnas.strategies.darts import DARTS
from hwnas.strategies.enas import ENAS
from hwnas.strategies.gumbel_darts import GumbelDARTS
from hwnas.strategies.multi_trial import MultiTrialStrategy
from hwnas.strategies.oneshot import OneShotCallback, OneShotStrategy
from hwnas.strategies.policy_gradient import ControllerLearning
from hwnas.strategies.proxyless import Proxyless
from hwnas.strategies.random_oneshot import RandomOneShot
from hwnas.strategies.regularized_evolution import RegularizedEvolution
from hwnas.strategies.subnet_search import RankedSubnet, SubnetSearch
from hwnas.strategies.temperature import LinearTemperatureScheduler
from hwnas.strategies.trial import Trial

__all__ = [
    "DARTS",
    "ENAS",
    "ControllerLearning",
    "GumbelDARTS",
    "LinearTemperatureScheduler",
    "MultiTrialStrategy",
    "OneShotCallback",
    "OneShotStrategy",
    "Proxyless",
    "RandomOneShot",
    "RankedSubnet",
    "RegularizedEvolution",
    "Strategy",
    "SubnetSearch",
    "Trial",
]
