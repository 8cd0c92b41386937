"""Costs of architectures as sums of small tables: evaluation, expectation, bounds, budgets."""

from hwnas.cost.counting import Count
from hwnas.cost.factor import Factor
from hwnas.cost.intermediate import Intermediate
from hwnas.cost.model import CostModel, Extreme
from hwnas.cost.ranges import JointRanges, Range
from hwnas.cost.sampler import BudgetSampler

__all__ = ["BudgetSampler", "CostModel", "Count", "Extreme", "Factor", "Intermediate", "JointRanges", "Range"]
