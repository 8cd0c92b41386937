"""Super-nets: one network that holds the weights of every member of a model space."""

from hwnas.supernet.base import BaseSuperNetModule
from hwnas.supernet.hooks import (
    DEFAULT_HOOKS,
    MutationHook,
    is_supernet,
    make_supernet,
    refuse_leftovers,
    supernet_modules,
)
from hwnas.supernet.mixed_batch_norm import MixedBatchNorm2d
from hwnas.supernet.mixed_conv import MixedConv2d
from hwnas.supernet.mixed_input import MixedInput
from hwnas.supernet.mixed_layer import MixedLayer
from hwnas.supernet.mixed_linear import MixedLinear
from hwnas.supernet.mixed_operation import MixedOperation
from hwnas.supernet.mixed_repeat import MixedRepeat
from hwnas.supernet.mixture import Mixture
from hwnas.supernet.one_hot import OneHot
from hwnas.supernet.relaxation import Relaxation
from hwnas.supernet.softmax import Softmax

__all__ = [
    "DEFAULT_HOOKS",
    "BaseSuperNetModule",
    "MixedBatchNorm2d",
    "MixedConv2d",
    "MixedInput",
    "MixedLayer",
    "MixedLinear",
    "MixedOperation",
    "MixedRepeat",
    "Mixture",
    "MutationHook",
    "OneHot",
    "Relaxation",
    "Softmax",
    "is_supernet",
    "make_supernet",
    "refuse_leftovers",
    "supernet_modules",
]
