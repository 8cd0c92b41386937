"""Super-nets: one network that holds the weights of every member of a model space."""

from hwnas.supernet.base import BaseSuperNetModule
from hwnas.supernet.behind_cell import BehindCell
from hwnas.supernet.binary_gates import BinaryGates
from hwnas.supernet.candidate_norm import CandidateNorm, normalise_candidates
from hwnas.supernet.channels_last import lay_out_channels_last, order_does_not_matter
from hwnas.supernet.differentiable_mutator import DifferentiableMutator
from hwnas.supernet.gumbel_softmax import GumbelSoftmax
from hwnas.supernet.hooks import (
    DEFAULT_HOOKS,
    MutationHook,
    check_searchable,
    is_supernet,
    make_supernet,
    refuse_leftovers,
    supernet_modules,
)
from hwnas.supernet.kept_statistics import kept_statistics
from hwnas.supernet.mixed_attention import MixedMultiheadAttention
from hwnas.supernet.mixed_batch_norm import MixedBatchNorm1d, MixedBatchNorm2d, MixedBatchNorm3d
from hwnas.supernet.mixed_candidates import MixedCandidates
from hwnas.supernet.mixed_cell import MixedCell, MixedFactoryChoice
from hwnas.supernet.mixed_conv import MixedConv1d, MixedConv2d, MixedConv3d, MixedConvolution
from hwnas.supernet.mixed_conv_transpose import MixedConvTranspose1d, MixedConvTranspose2d, MixedConvTranspose3d
from hwnas.supernet.mixed_dropout import MixedDropout
from hwnas.supernet.mixed_embedding import MixedEmbedding
from hwnas.supernet.mixed_group_norm import MixedGroupNorm
from hwnas.supernet.mixed_input import MixedInput
from hwnas.supernet.mixed_layer import MixedLayer
from hwnas.supernet.mixed_layer_norm import MixedLayerNorm
from hwnas.supernet.mixed_linear import MixedLinear
from hwnas.supernet.mixed_nas_bench_101_cell import MixedNasBench101Cell
from hwnas.supernet.mixed_operation import MixedExpectation, MixedOperation
from hwnas.supernet.mixed_parametrized import MixedParametrized
from hwnas.supernet.mixed_repeat import MixedRepeat
from hwnas.supernet.mixed_rms_norm import MixedRMSNorm
from hwnas.supernet.mixture import Mixture
from hwnas.supernet.one_hot import OneHot
from hwnas.supernet.relaxation import Relaxation
from hwnas.supernet.sampled_softmax import SampledSoftmax
from hwnas.supernet.softmax import Softmax

__all__ = [
    "DEFAULT_HOOKS",
    "BaseSuperNetModule",
    "BehindCell",
    "BinaryGates",
    "CandidateNorm",
    "DifferentiableMutator",
    "GumbelSoftmax",
    "MixedBatchNorm1d",
    "MixedBatchNorm2d",
    "MixedBatchNorm3d",
    "MixedCandidates",
    "MixedCell",
    "MixedConv1d",
    "MixedConv2d",
    "MixedConv3d",
    "MixedConvTranspose1d",
    "MixedConvTranspose2d",
    "MixedConvTranspose3d",
    "MixedConvolution",
    "MixedDropout",
    "MixedEmbedding",
    "MixedExpectation",
    "MixedFactoryChoice",
    "MixedGroupNorm",
    "MixedInput",
    "MixedLayer",
    "MixedLayerNorm",
    "MixedLinear",
    "MixedMultiheadAttention",
    "MixedNasBench101Cell",
    "MixedOperation",
    "MixedParametrized",
    "MixedRMSNorm",
    "MixedRepeat",
    "Mixture",
    "MutationHook",
    "OneHot",
    "Relaxation",
    "SampledSoftmax",
    "Softmax",
    "check_searchable",
    "is_supernet",
    "kept_statistics",
    "lay_out_channels_last",
    "make_supernet",
    "normalise_candidates",
    "order_does_not_matter",
    "refuse_leftovers",
    "supernet_modules",
]
