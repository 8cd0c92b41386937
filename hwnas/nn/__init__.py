"""A drop-in for `torch.nn` with choices: ``import hwnas.nn as nn``.

Whatever `torch.nn` has is here under its own name; classes that take choices as arguments, and the choices
themselves, are added.
"""

from hwnas.nn import twins
from hwnas.nn.auto_activation import AutoActivation
from hwnas.nn.cell import Cell, ChosenCell
from hwnas.nn.holding import module_mutables
from hwnas.nn.input_choice import ChosenInputs, InputChoice
from hwnas.nn.layer_choice import LayerChoice
from hwnas.nn.model_parameter_choice import ModelParameterChoice
from hwnas.nn.mutable_module import MutableModule
from hwnas.nn.nas_bench_101_cell import NasBench101Cell
from hwnas.nn.nas_bench_101_graph import NasBench101Graph
from hwnas.nn.nas_bench_201_cell import NasBench201Cell
from hwnas.nn.parametrized import ParametrizedModule, parametrized
from hwnas.nn.placeholder import Placeholder
from hwnas.nn.repeat import Repeat
from hwnas.nn.space import ModelSpace
from hwnas.nn.twins import *  # noqa: F403 - whatever torch.nn has
from hwnas.nn.value_choice import ValueChoice

__all__ = [
    "AutoActivation",
    "Cell",
    "ChosenCell",
    "ChosenInputs",
    "InputChoice",
    "LayerChoice",
    "ModelParameterChoice",
    "ModelSpace",
    "MutableModule",
    "NasBench101Cell",
    "NasBench101Graph",
    "NasBench201Cell",
    "ParametrizedModule",
    "Placeholder",
    "Repeat",
    "ValueChoice",
    "module_mutables",
    "parametrized",
]
__all__ += twins.__all__  # type: ignore[attr-defined]  # made at run time
