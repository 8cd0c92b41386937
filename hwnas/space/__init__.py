"""The algebra of choices: labels, mutables, expressions, constraints and samples. Needs no PyTorch."""

from hwnas.space.categorical import Categorical, CategoricalMultiple
from hwnas.space.constraint import Constraint, ExpressionConstraint
from hwnas.space.containers import MutableDict, MutableList
from hwnas.space.description import SpaceError, space_from_json, space_to_json
from hwnas.space.expression import MutableExpression
from hwnas.space.functions import case, condition, length, maximum, minimum, switch_case, to_float, to_int
from hwnas.space.labels import (
    Label,
    auto_label,
    check_label,
    current_scope,
    label_scope,
    resolve_label,
    root_scope,
)
from hwnas.space.mutable import LabeledMutable, Mutable
from hwnas.space.node import Sample
from hwnas.space.numerical import Numerical
from hwnas.space.sample_file import dump_sample, load_sample, sample_from_json, sample_to_json
from hwnas.space.walk import UncountableError

__all__ = [
    "Categorical",
    "CategoricalMultiple",
    "Constraint",
    "ExpressionConstraint",
    "Label",
    "LabeledMutable",
    "Mutable",
    "MutableDict",
    "MutableExpression",
    "MutableList",
    "Numerical",
    "Sample",
    "SpaceError",
    "UncountableError",
    "auto_label",
    "case",
    "check_label",
    "condition",
    "current_scope",
    "dump_sample",
    "label_scope",
    "length",
    "load_sample",
    "maximum",
    "minimum",
    "resolve_label",
    "root_scope",
    "sample_from_json",
    "sample_to_json",
    "space_from_json",
    "space_to_json",
    "switch_case",
    "to_float",
    "to_int",
]
