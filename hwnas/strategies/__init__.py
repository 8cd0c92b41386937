"""Search strategies: one file for each, and the bases of those with shared weights and of those with trials."""

from hwnas.strategies.base import Strategy
from hwnas.strategies.budget import Budget
from hwnas.strategies.darts import DARTS
from hwnas.strategies.dual_ascent import DualAscent
from hwnas.strategies.enas import ENAS
from hwnas.strategies.gumbel_darts import GumbelDARTS
from hwnas.strategies.member_sampling import FairSampling, MemberSampling, SandwichSampling, UniformSampling
from hwnas.strategies.multi_trial import MultiTrialStrategy
from hwnas.strategies.oneshot import OneShotCallback, OneShotStrategy
from hwnas.strategies.policy_gradient import ControllerLearning
from hwnas.strategies.proxyless import Proxyless
from hwnas.strategies.random_oneshot import RandomOneShot
from hwnas.strategies.ranking import RankingQuality, RankingReport, ranking_quality, ranking_report
from hwnas.strategies.regularized_evolution import RegularizedEvolution
from hwnas.strategies.search_monitor import SearchMonitor
from hwnas.strategies.subnet_evaluation import evaluate_subnet, subnet_scores
from hwnas.strategies.subnet_search import RankedSubnet, SubnetSearch
from hwnas.strategies.temperature import LinearTemperatureScheduler
from hwnas.strategies.trial import Trial

__all__ = [
    "DARTS",
    "ENAS",
    "Budget",
    "ControllerLearning",
    "DualAscent",
    "FairSampling",
    "GumbelDARTS",
    "LinearTemperatureScheduler",
    "MemberSampling",
    "MultiTrialStrategy",
    "OneShotCallback",
    "OneShotStrategy",
    "Proxyless",
    "RandomOneShot",
    "RankedSubnet",
    "RankingQuality",
    "RankingReport",
    "RegularizedEvolution",
    "SandwichSampling",
    "SearchMonitor",
    "Strategy",
    "SubnetSearch",
    "Trial",
    "UniformSampling",
    "evaluate_subnet",
    "ranking_quality",
    "ranking_report",
    "subnet_scores",
]
