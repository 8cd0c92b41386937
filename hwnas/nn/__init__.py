"""A drop-in for `torch.nn` with choices: ``import hwnas.nn as nn``.

Whatever `torch.nn` has is here under its own name; classes that take choices as arguments, and the choices
themselves, are added.
"""

# isort: off
# Type checkers keep the first definition of a name, the interpreter the last: both have to be ours.
from hwnas.nn.parametrized import BatchNorm2d, Conv2d, Linear
from torch.nn import *  # type: ignore[assignment]  # noqa: F403  # type: ignore[assignment]
from torch.nn import functional, init, parameter, utils
from hwnas.nn.parametrized import BatchNorm2d, Conv2d, Linear  # noqa: F811
# isort: on

from hwnas.nn.holding import module_mutables
from hwnas.nn.input_choice import ChosenInputs, InputChoice
from hwnas.nn.layer_choice import LayerChoice
from hwnas.nn.mutable_module import MutableModule
from hwnas.nn.parametrized import ParametrizedModule
from hwnas.nn.repeat import Repeat
from hwnas.nn.space import ModelSpace
from hwnas.nn.value_choice import ValueChoice

__all__ = [
    "BatchNorm2d",
    "ChosenInputs",
    "Conv2d",
    "InputChoice",
    "LayerChoice",
    "Linear",
    "ModelSpace",
    "MutableModule",
    "ParametrizedModule",
    "Repeat",
    "ValueChoice",
    "functional",
    "init",
    "module_mutables",
    "parameter",
    "utils",
]
