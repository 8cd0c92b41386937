"""Types of `hwnas.nn.twins`: the arguments of the classes of `torch.nn`, of which choices are accepted as well.

A class of `torch.nn` that is new stands here with its arguments, and what has no twin among the imports below; the
tests compare this file with the installed PyTorch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Buffer as Buffer
from torch.nn import Container as Container
from torch.nn import DataParallel as DataParallel
from torch.nn import Identity as Identity
from torch.nn import LinearCrossEntropyOptions as LinearCrossEntropyOptions
from torch.nn import LogSigmoid as LogSigmoid
from torch.nn import Module as Module
from torch.nn import ModuleDict as ModuleDict
from torch.nn import ModuleList as ModuleList
from torch.nn import NLLLoss2d as NLLLoss2d
from torch.nn import Parameter as Parameter
from torch.nn import ParameterDict as ParameterDict
from torch.nn import ParameterList as ParameterList
from torch.nn import Sequential as Sequential
from torch.nn import Sigmoid as Sigmoid
from torch.nn import Softmax2d as Softmax2d
from torch.nn import Softsign as Softsign
from torch.nn import Tanh as Tanh
from torch.nn import Tanhshrink as Tanhshrink
from torch.nn import UninitializedBuffer as UninitializedBuffer
from torch.nn import UninitializedParameter as UninitializedParameter
from torch.nn import attention as attention
from torch.nn import common_types as common_types
from torch.nn import factory_kwargs as factory_kwargs
from torch.nn import functional as functional
from torch.nn import grad as grad
from torch.nn import init as init
from torch.nn import intrinsic as intrinsic
from torch.nn import modules as modules
from torch.nn import parallel as parallel
from torch.nn import parameter as parameter
from torch.nn import qat as qat
from torch.nn import quantizable as quantizable
from torch.nn import quantized as quantized
from torch.nn import utils as utils

from hwnas.nn.parametrized import Bool, Float, Int, ParametrizedModule, Size1, Size2, Size3, Str
from hwnas.space import MutableExpression

_Sizes = Int | tuple[Int, ...]
_Size4 = Int | tuple[Int, Int, Int, Int]
_Size6 = Int | tuple[Int, Int, Int, Int, Int, Int]
_Activation = str | Callable[[Tensor], Tensor] | MutableExpression
_Device = torch.device | str | int | None
_Dtype = torch.dtype | None

class AdaptiveAvgPool1d(ParametrizedModule, torch.nn.AdaptiveAvgPool1d):
    def __init__(self, output_size: Int | tuple[Int | None, ...] | None) -> None: ...

class AdaptiveAvgPool2d(ParametrizedModule, torch.nn.AdaptiveAvgPool2d):
    def __init__(self, output_size: Int | tuple[Int | None, ...] | None) -> None: ...

class AdaptiveAvgPool3d(ParametrizedModule, torch.nn.AdaptiveAvgPool3d):
    def __init__(self, output_size: Int | tuple[Int | None, ...] | None) -> None: ...

class AdaptiveLogSoftmaxWithLoss(ParametrizedModule, torch.nn.AdaptiveLogSoftmaxWithLoss):
    def __init__(
        self,
        in_features: Int,
        n_classes: Int,
        cutoffs: Sequence[Int] | MutableExpression,
        div_value: Float = 4.0,
        head_bias: Bool = False,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class AdaptiveMaxPool1d(ParametrizedModule, torch.nn.AdaptiveMaxPool1d):
    def __init__(self, output_size: Int | tuple[Int | None, ...] | None, return_indices: Bool = False) -> None: ...

class AdaptiveMaxPool2d(ParametrizedModule, torch.nn.AdaptiveMaxPool2d):
    def __init__(self, output_size: Int | tuple[Int | None, ...] | None, return_indices: Bool = False) -> None: ...

class AdaptiveMaxPool3d(ParametrizedModule, torch.nn.AdaptiveMaxPool3d):
    def __init__(self, output_size: Int | tuple[Int | None, ...] | None, return_indices: Bool = False) -> None: ...

class AlphaDropout(ParametrizedModule, torch.nn.AlphaDropout):
    def __init__(self, p: Float = 0.5, inplace: Bool = False) -> None: ...

class AvgPool1d(ParametrizedModule, torch.nn.AvgPool1d):
    def __init__(
        self,
        kernel_size: Size1,
        stride: Size1 | None = None,
        padding: Size1 = 0,
        ceil_mode: Bool = False,
        count_include_pad: Bool = True,
    ) -> None: ...

class AvgPool2d(ParametrizedModule, torch.nn.AvgPool2d):
    def __init__(
        self,
        kernel_size: Size2,
        stride: Size2 | None = None,
        padding: Size2 = 0,
        ceil_mode: Bool = False,
        count_include_pad: Bool = True,
        divisor_override: Int | None = None,
    ) -> None: ...

class AvgPool3d(ParametrizedModule, torch.nn.AvgPool3d):
    def __init__(
        self,
        kernel_size: Size3,
        stride: Size3 | None = None,
        padding: Size3 = 0,
        ceil_mode: Bool = False,
        count_include_pad: Bool = True,
        divisor_override: Int | None = None,
    ) -> None: ...

class BCELoss(ParametrizedModule, torch.nn.BCELoss):
    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: Str = "mean",
    ) -> None: ...

class BCEWithLogitsLoss(ParametrizedModule, torch.nn.BCEWithLogitsLoss):
    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: Str = "mean",
        pos_weight: Tensor | None = None,
    ) -> None: ...

class BatchNorm1d(ParametrizedModule, torch.nn.BatchNorm1d):
    def __init__(
        self,
        num_features: Int,
        eps: Float = 1e-05,
        momentum: Float | None = 0.1,
        affine: Bool = True,
        track_running_stats: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
        *,
        bias: Bool = True,
    ) -> None: ...

class BatchNorm2d(ParametrizedModule, torch.nn.BatchNorm2d):
    def __init__(
        self,
        num_features: Int,
        eps: Float = 1e-05,
        momentum: Float | None = 0.1,
        affine: Bool = True,
        track_running_stats: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
        *,
        bias: Bool = True,
    ) -> None: ...

class BatchNorm3d(ParametrizedModule, torch.nn.BatchNorm3d):
    def __init__(
        self,
        num_features: Int,
        eps: Float = 1e-05,
        momentum: Float | None = 0.1,
        affine: Bool = True,
        track_running_stats: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
        *,
        bias: Bool = True,
    ) -> None: ...

class Bilinear(ParametrizedModule, torch.nn.Bilinear):
    def __init__(
        self,
        in1_features: Int,
        in2_features: Int,
        out_features: Int,
        bias: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class CELU(ParametrizedModule, torch.nn.CELU):
    def __init__(self, alpha: Float = 1.0, inplace: Bool = False) -> None: ...

class CTCLoss(ParametrizedModule, torch.nn.CTCLoss):
    def __init__(self, blank: Int = 0, reduction: Str = "mean", zero_infinity: Bool = False) -> None: ...

class ChannelShuffle(ParametrizedModule, torch.nn.ChannelShuffle):
    def __init__(self, groups: Int) -> None: ...

class CircularPad1d(ParametrizedModule, torch.nn.CircularPad1d):
    def __init__(self, padding: Size2) -> None: ...

class CircularPad2d(ParametrizedModule, torch.nn.CircularPad2d):
    def __init__(self, padding: _Size4) -> None: ...

class CircularPad3d(ParametrizedModule, torch.nn.CircularPad3d):
    def __init__(self, padding: _Size6) -> None: ...

class ConstantPad1d(ParametrizedModule, torch.nn.ConstantPad1d):
    def __init__(self, padding: Size2, value: Float) -> None: ...

class ConstantPad2d(ParametrizedModule, torch.nn.ConstantPad2d):
    def __init__(self, padding: _Size4, value: Float) -> None: ...

class ConstantPad3d(ParametrizedModule, torch.nn.ConstantPad3d):
    def __init__(self, padding: _Size6, value: Float) -> None: ...

class Conv1d(ParametrizedModule, torch.nn.Conv1d):
    def __init__(
        self,
        in_channels: Int,
        out_channels: Int,
        kernel_size: Size1,
        stride: Size1 = 1,
        padding: str | Size1 = 0,
        dilation: Size1 = 1,
        groups: Int = 1,
        bias: Bool = True,
        padding_mode: Str = "zeros",
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class Conv2d(ParametrizedModule, torch.nn.Conv2d):
    def __init__(
        self,
        in_channels: Int,
        out_channels: Int,
        kernel_size: Size2,
        stride: Size2 = 1,
        padding: str | Size2 = 0,
        dilation: Size2 = 1,
        groups: Int = 1,
        bias: Bool = True,
        padding_mode: Str = "zeros",
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class Conv3d(ParametrizedModule, torch.nn.Conv3d):
    def __init__(
        self,
        in_channels: Int,
        out_channels: Int,
        kernel_size: Size3,
        stride: Size3 = 1,
        padding: str | Size3 = 0,
        dilation: Size3 = 1,
        groups: Int = 1,
        bias: Bool = True,
        padding_mode: Str = "zeros",
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class ConvTranspose1d(ParametrizedModule, torch.nn.ConvTranspose1d):
    def __init__(
        self,
        in_channels: Int,
        out_channels: Int,
        kernel_size: Size1,
        stride: Size1 = 1,
        padding: Size1 = 0,
        output_padding: Size1 = 0,
        groups: Int = 1,
        bias: Bool = True,
        dilation: Size1 = 1,
        padding_mode: Str = "zeros",
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class ConvTranspose2d(ParametrizedModule, torch.nn.ConvTranspose2d):
    def __init__(
        self,
        in_channels: Int,
        out_channels: Int,
        kernel_size: Size2,
        stride: Size2 = 1,
        padding: Size2 = 0,
        output_padding: Size2 = 0,
        groups: Int = 1,
        bias: Bool = True,
        dilation: Size2 = 1,
        padding_mode: Str = "zeros",
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class ConvTranspose3d(ParametrizedModule, torch.nn.ConvTranspose3d):
    def __init__(
        self,
        in_channels: Int,
        out_channels: Int,
        kernel_size: Size3,
        stride: Size3 = 1,
        padding: Size3 = 0,
        output_padding: Size3 = 0,
        groups: Int = 1,
        bias: Bool = True,
        dilation: Size3 = 1,
        padding_mode: Str = "zeros",
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class CosineEmbeddingLoss(ParametrizedModule, torch.nn.CosineEmbeddingLoss):
    def __init__(
        self, margin: Float = 0.0, size_average: bool | None = None, reduce: bool | None = None, reduction: Str = "mean"
    ) -> None: ...

class CosineSimilarity(ParametrizedModule, torch.nn.CosineSimilarity):
    def __init__(self, dim: Int = 1, eps: Float = 1e-08) -> None: ...

class CrossEntropyLoss(ParametrizedModule, torch.nn.CrossEntropyLoss):
    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: Int = -100,
        reduce: bool | None = None,
        reduction: Str = "mean",
        label_smoothing: Float = 0.0,
    ) -> None: ...

class CrossMapLRN2d(ParametrizedModule, torch.nn.CrossMapLRN2d):  # type: ignore[misc]
    def __init__(self, size: Int, alpha: Float = 0.0001, beta: Float = 0.75, k: Float = 1) -> None: ...

class Dropout(ParametrizedModule, torch.nn.Dropout):
    def __init__(self, p: Float = 0.5, inplace: Bool = False) -> None: ...

class Dropout1d(ParametrizedModule, torch.nn.Dropout1d):
    def __init__(self, p: Float = 0.5, inplace: Bool = False) -> None: ...

class Dropout2d(ParametrizedModule, torch.nn.Dropout2d):
    def __init__(self, p: Float = 0.5, inplace: Bool = False) -> None: ...

class Dropout3d(ParametrizedModule, torch.nn.Dropout3d):
    def __init__(self, p: Float = 0.5, inplace: Bool = False) -> None: ...

class ELU(ParametrizedModule, torch.nn.ELU):
    def __init__(self, alpha: Float = 1.0, inplace: Bool = False) -> None: ...

class Embedding(ParametrizedModule, torch.nn.Embedding):  # type: ignore[misc]
    def __init__(
        self,
        num_embeddings: Int,
        embedding_dim: Int,
        padding_idx: Int | None = None,
        max_norm: Float | None = None,
        norm_type: Float = 2.0,
        scale_grad_by_freq: Bool = False,
        sparse: Bool = False,
        _weight: Tensor | None = None,
        _freeze: Bool = False,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class EmbeddingBag(ParametrizedModule, torch.nn.EmbeddingBag):
    def __init__(
        self,
        num_embeddings: Int,
        embedding_dim: Int,
        max_norm: Float | None = None,
        norm_type: Float = 2.0,
        scale_grad_by_freq: Bool = False,
        mode: Str = "mean",
        sparse: Bool = False,
        _weight: Tensor | None = None,
        include_last_offset: Bool = False,
        padding_idx: Int | None = None,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class FeatureAlphaDropout(ParametrizedModule, torch.nn.FeatureAlphaDropout):
    def __init__(self, p: Float = 0.5, inplace: Bool = False) -> None: ...

class Flatten(ParametrizedModule, torch.nn.Flatten):
    def __init__(self, start_dim: Int = 1, end_dim: Int = -1) -> None: ...

class Fold(ParametrizedModule, torch.nn.Fold):
    def __init__(
        self, output_size: _Sizes, kernel_size: _Sizes, dilation: _Sizes = 1, padding: _Sizes = 0, stride: _Sizes = 1
    ) -> None: ...

class FractionalMaxPool2d(ParametrizedModule, torch.nn.FractionalMaxPool2d):
    def __init__(
        self,
        kernel_size: Size2,
        output_size: Size2 | None = None,
        output_ratio: Float | tuple[Float, Float] | None = None,
        return_indices: Bool = False,
        _random_samples: Tensor | None = None,
    ) -> None: ...

class FractionalMaxPool3d(ParametrizedModule, torch.nn.FractionalMaxPool3d):
    def __init__(
        self,
        kernel_size: Size3,
        output_size: Size3 | None = None,
        output_ratio: Float | tuple[Float, Float, Float] | None = None,
        return_indices: Bool = False,
        _random_samples: Tensor | None = None,
    ) -> None: ...

class GELU(ParametrizedModule, torch.nn.GELU):
    def __init__(self, approximate: Str = "none") -> None: ...

class GLU(ParametrizedModule, torch.nn.GLU):
    def __init__(self, dim: Int = -1) -> None: ...

class GRU(ParametrizedModule, torch.nn.GRU):
    def __init__(
        self,
        input_size: Int,
        hidden_size: Int,
        num_layers: Int = 1,
        bias: Bool = True,
        batch_first: Bool = False,
        dropout: Float = 0.0,
        bidirectional: Bool = False,
        *,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class GRUCell(ParametrizedModule, torch.nn.GRUCell):
    def __init__(
        self, input_size: Int, hidden_size: Int, bias: Bool = True, device: _Device = None, dtype: _Dtype = None
    ) -> None: ...

class GaussianNLLLoss(ParametrizedModule, torch.nn.GaussianNLLLoss):
    def __init__(self, *, full: Bool = False, eps: Float = 1e-06, reduction: Str = "mean") -> None: ...

class GroupNorm(ParametrizedModule, torch.nn.GroupNorm):
    def __init__(
        self,
        num_groups: Int,
        num_channels: Int,
        eps: Float = 1e-05,
        affine: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
        *,
        bias: Bool = True,
    ) -> None: ...

class Hardshrink(ParametrizedModule, torch.nn.Hardshrink):
    def __init__(self, lambd: Float = 0.5) -> None: ...

class Hardsigmoid(ParametrizedModule, torch.nn.Hardsigmoid):
    def __init__(self, inplace: Bool = False) -> None: ...

class Hardswish(ParametrizedModule, torch.nn.Hardswish):
    def __init__(self, inplace: Bool = False) -> None: ...

class Hardtanh(ParametrizedModule, torch.nn.Hardtanh):
    def __init__(
        self,
        min_val: Float = -1.0,
        max_val: Float = 1.0,
        inplace: Bool = False,
        min_value: Float | None = None,
        max_value: Float | None = None,
    ) -> None: ...

class HingeEmbeddingLoss(ParametrizedModule, torch.nn.HingeEmbeddingLoss):
    def __init__(
        self, margin: Float = 1.0, size_average: bool | None = None, reduce: bool | None = None, reduction: Str = "mean"
    ) -> None: ...

class HuberLoss(ParametrizedModule, torch.nn.HuberLoss):
    def __init__(self, reduction: Str = "mean", delta: Float = 1.0) -> None: ...

class InstanceNorm1d(ParametrizedModule, torch.nn.InstanceNorm1d):
    def __init__(
        self,
        num_features: Int,
        eps: Float = 1e-05,
        momentum: Float = 0.1,
        affine: Bool = False,
        track_running_stats: Bool = False,
        device: _Device = None,
        dtype: _Dtype = None,
        *,
        bias: Bool = True,
    ) -> None: ...

class InstanceNorm2d(ParametrizedModule, torch.nn.InstanceNorm2d):
    def __init__(
        self,
        num_features: Int,
        eps: Float = 1e-05,
        momentum: Float = 0.1,
        affine: Bool = False,
        track_running_stats: Bool = False,
        device: _Device = None,
        dtype: _Dtype = None,
        *,
        bias: Bool = True,
    ) -> None: ...

class InstanceNorm3d(ParametrizedModule, torch.nn.InstanceNorm3d):
    def __init__(
        self,
        num_features: Int,
        eps: Float = 1e-05,
        momentum: Float = 0.1,
        affine: Bool = False,
        track_running_stats: Bool = False,
        device: _Device = None,
        dtype: _Dtype = None,
        *,
        bias: Bool = True,
    ) -> None: ...

class KLDivLoss(ParametrizedModule, torch.nn.KLDivLoss):
    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: Str = "mean",
        log_target: Bool = False,
    ) -> None: ...

class L1Loss(ParametrizedModule, torch.nn.L1Loss):
    def __init__(
        self, size_average: bool | None = None, reduce: bool | None = None, reduction: Str = "mean"
    ) -> None: ...

class LPPool1d(ParametrizedModule, torch.nn.LPPool1d):
    def __init__(
        self, norm_type: Float, kernel_size: _Sizes, stride: _Sizes | None = None, ceil_mode: Bool = False
    ) -> None: ...

class LPPool2d(ParametrizedModule, torch.nn.LPPool2d):
    def __init__(
        self, norm_type: Float, kernel_size: _Sizes, stride: _Sizes | None = None, ceil_mode: Bool = False
    ) -> None: ...

class LPPool3d(ParametrizedModule, torch.nn.LPPool3d):
    def __init__(
        self, norm_type: Float, kernel_size: _Sizes, stride: _Sizes | None = None, ceil_mode: Bool = False
    ) -> None: ...

class LSTM(ParametrizedModule, torch.nn.LSTM):
    def __init__(
        self,
        input_size: Int,
        hidden_size: Int,
        num_layers: Int = 1,
        bias: Bool = True,
        batch_first: Bool = False,
        dropout: Float = 0.0,
        bidirectional: Bool = False,
        proj_size: Int = 0,
        *,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class LSTMCell(ParametrizedModule, torch.nn.LSTMCell):
    def __init__(
        self, input_size: Int, hidden_size: Int, bias: Bool = True, device: _Device = None, dtype: _Dtype = None
    ) -> None: ...

class LayerNorm(ParametrizedModule, torch.nn.LayerNorm):
    def __init__(
        self,
        normalized_shape: Int | Sequence[Int],
        eps: Float = 1e-05,
        elementwise_affine: Bool = True,
        bias: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class LazyBatchNorm1d(ParametrizedModule, torch.nn.LazyBatchNorm1d):
    def __init__(
        self,
        eps: Float = 1e-05,
        momentum: Float | None = 0.1,
        affine: Bool = True,
        track_running_stats: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
        *,
        bias: Bool = True,
    ) -> None: ...

class LazyBatchNorm2d(ParametrizedModule, torch.nn.LazyBatchNorm2d):
    def __init__(
        self,
        eps: Float = 1e-05,
        momentum: Float | None = 0.1,
        affine: Bool = True,
        track_running_stats: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
        *,
        bias: Bool = True,
    ) -> None: ...

class LazyBatchNorm3d(ParametrizedModule, torch.nn.LazyBatchNorm3d):
    def __init__(
        self,
        eps: Float = 1e-05,
        momentum: Float | None = 0.1,
        affine: Bool = True,
        track_running_stats: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
        *,
        bias: Bool = True,
    ) -> None: ...

class LazyConv1d(ParametrizedModule, torch.nn.LazyConv1d):  # type: ignore[misc]
    def __init__(
        self,
        out_channels: Int,
        kernel_size: Size1,
        stride: Size1 = 1,
        padding: Size1 = 0,
        dilation: Size1 = 1,
        groups: Int = 1,
        bias: Bool = True,
        padding_mode: Str = "zeros",
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class LazyConv2d(ParametrizedModule, torch.nn.LazyConv2d):  # type: ignore[misc]
    def __init__(
        self,
        out_channels: Int,
        kernel_size: Size2,
        stride: Size2 = 1,
        padding: Size2 = 0,
        dilation: Size2 = 1,
        groups: Int = 1,
        bias: Bool = True,
        padding_mode: Str = "zeros",
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class LazyConv3d(ParametrizedModule, torch.nn.LazyConv3d):  # type: ignore[misc]
    def __init__(
        self,
        out_channels: Int,
        kernel_size: Size3,
        stride: Size3 = 1,
        padding: Size3 = 0,
        dilation: Size3 = 1,
        groups: Int = 1,
        bias: Bool = True,
        padding_mode: Str = "zeros",
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class LazyConvTranspose1d(ParametrizedModule, torch.nn.LazyConvTranspose1d):  # type: ignore[misc]
    def __init__(
        self,
        out_channels: Int,
        kernel_size: Size1,
        stride: Size1 = 1,
        padding: Size1 = 0,
        output_padding: Size1 = 0,
        groups: Int = 1,
        bias: Bool = True,
        dilation: Size1 = 1,
        padding_mode: Str = "zeros",
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class LazyConvTranspose2d(ParametrizedModule, torch.nn.LazyConvTranspose2d):  # type: ignore[misc]
    def __init__(
        self,
        out_channels: Int,
        kernel_size: Size2,
        stride: Size2 = 1,
        padding: Size2 = 0,
        output_padding: Size2 = 0,
        groups: Int = 1,
        bias: Bool = True,
        dilation: Int = 1,
        padding_mode: Str = "zeros",
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class LazyConvTranspose3d(ParametrizedModule, torch.nn.LazyConvTranspose3d):  # type: ignore[misc]
    def __init__(
        self,
        out_channels: Int,
        kernel_size: Size3,
        stride: Size3 = 1,
        padding: Size3 = 0,
        output_padding: Size3 = 0,
        groups: Int = 1,
        bias: Bool = True,
        dilation: Size3 = 1,
        padding_mode: Str = "zeros",
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class LazyInstanceNorm1d(ParametrizedModule, torch.nn.LazyInstanceNorm1d):
    def __init__(
        self,
        eps: Float = 1e-05,
        momentum: Float | None = 0.1,
        affine: Bool = True,
        track_running_stats: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
        *,
        bias: Bool = True,
    ) -> None: ...

class LazyInstanceNorm2d(ParametrizedModule, torch.nn.LazyInstanceNorm2d):
    def __init__(
        self,
        eps: Float = 1e-05,
        momentum: Float | None = 0.1,
        affine: Bool = True,
        track_running_stats: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
        *,
        bias: Bool = True,
    ) -> None: ...

class LazyInstanceNorm3d(ParametrizedModule, torch.nn.LazyInstanceNorm3d):
    def __init__(
        self,
        eps: Float = 1e-05,
        momentum: Float | None = 0.1,
        affine: Bool = True,
        track_running_stats: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
        *,
        bias: Bool = True,
    ) -> None: ...

class LazyLinear(ParametrizedModule, torch.nn.LazyLinear):
    def __init__(self, out_features: Int, bias: Bool = True, device: _Device = None, dtype: _Dtype = None) -> None: ...

class LeakyReLU(ParametrizedModule, torch.nn.LeakyReLU):
    def __init__(self, negative_slope: Float = 0.01, inplace: Bool = False) -> None: ...

class Linear(ParametrizedModule, torch.nn.Linear):
    def __init__(
        self, in_features: Int, out_features: Int, bias: Bool = True, device: _Device = None, dtype: _Dtype = None
    ) -> None: ...

class LinearCrossEntropyLoss(ParametrizedModule, torch.nn.LinearCrossEntropyLoss):
    def __init__(
        self,
        in_features: Int,
        num_classes: Int,
        *,
        out_features: tuple[Int, ...] | MutableExpression = (),
        bias: Bool = False,
        device: _Device = None,
        dtype: _Dtype = None,
        reduction: Str = "mean",
        weight: Tensor | None = None,
        ignore_index: Int | None = None,
        label_smoothing: Float = 0.0,
        options: torch.nn.LinearCrossEntropyOptions | None = None,
    ) -> None: ...

class LocalResponseNorm(ParametrizedModule, torch.nn.LocalResponseNorm):  # type: ignore[misc]
    def __init__(self, size: Int, alpha: Float = 0.0001, beta: Float = 0.75, k: Float = 1.0) -> None: ...

class LogSoftmax(ParametrizedModule, torch.nn.LogSoftmax):
    def __init__(self, dim: Int | None = None) -> None: ...

class MSELoss(ParametrizedModule, torch.nn.MSELoss):
    def __init__(
        self, size_average: bool | None = None, reduce: bool | None = None, reduction: Str = "mean"
    ) -> None: ...

class MarginRankingLoss(ParametrizedModule, torch.nn.MarginRankingLoss):
    def __init__(
        self, margin: Float = 0.0, size_average: bool | None = None, reduce: bool | None = None, reduction: Str = "mean"
    ) -> None: ...

class MaxPool1d(ParametrizedModule, torch.nn.MaxPool1d):
    def __init__(
        self,
        kernel_size: _Sizes,
        stride: _Sizes | None = None,
        padding: _Sizes = 0,
        dilation: _Sizes = 1,
        return_indices: Bool = False,
        ceil_mode: Bool = False,
    ) -> None: ...

class MaxPool2d(ParametrizedModule, torch.nn.MaxPool2d):
    def __init__(
        self,
        kernel_size: _Sizes,
        stride: _Sizes | None = None,
        padding: _Sizes = 0,
        dilation: _Sizes = 1,
        return_indices: Bool = False,
        ceil_mode: Bool = False,
    ) -> None: ...

class MaxPool3d(ParametrizedModule, torch.nn.MaxPool3d):
    def __init__(
        self,
        kernel_size: _Sizes,
        stride: _Sizes | None = None,
        padding: _Sizes = 0,
        dilation: _Sizes = 1,
        return_indices: Bool = False,
        ceil_mode: Bool = False,
    ) -> None: ...

class MaxUnpool1d(ParametrizedModule, torch.nn.MaxUnpool1d):
    def __init__(self, kernel_size: Size1, stride: Size1 | None = None, padding: Size1 = 0) -> None: ...

class MaxUnpool2d(ParametrizedModule, torch.nn.MaxUnpool2d):
    def __init__(self, kernel_size: Size2, stride: Size2 | None = None, padding: Size2 = 0) -> None: ...

class MaxUnpool3d(ParametrizedModule, torch.nn.MaxUnpool3d):
    def __init__(self, kernel_size: Size3, stride: Size3 | None = None, padding: Size3 = 0) -> None: ...

class Mish(ParametrizedModule, torch.nn.Mish):
    def __init__(self, inplace: Bool = False) -> None: ...

class MultiLabelMarginLoss(ParametrizedModule, torch.nn.MultiLabelMarginLoss):
    def __init__(
        self, size_average: bool | None = None, reduce: bool | None = None, reduction: Str = "mean"
    ) -> None: ...

class MultiLabelSoftMarginLoss(ParametrizedModule, torch.nn.MultiLabelSoftMarginLoss):
    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: Str = "mean",
    ) -> None: ...

class MultiMarginLoss(ParametrizedModule, torch.nn.MultiMarginLoss):
    def __init__(
        self,
        p: Int = 1,
        margin: Float = 1.0,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: Str = "mean",
    ) -> None: ...

class MultiheadAttention(ParametrizedModule, torch.nn.MultiheadAttention):
    def __init__(
        self,
        embed_dim: Int,
        num_heads: Int,
        dropout: Float = 0.0,
        bias: Bool = True,
        add_bias_kv: Bool = False,
        add_zero_attn: Bool = False,
        kdim: Int | None = None,
        vdim: Int | None = None,
        batch_first: Bool = False,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class NLLLoss(ParametrizedModule, torch.nn.NLLLoss):
    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: Int = -100,
        reduce: bool | None = None,
        reduction: Str = "mean",
    ) -> None: ...

class PReLU(ParametrizedModule, torch.nn.PReLU):
    def __init__(
        self, num_parameters: Int = 1, init: Float = 0.25, device: _Device = None, dtype: _Dtype = None
    ) -> None: ...

class PairwiseDistance(ParametrizedModule, torch.nn.PairwiseDistance):
    def __init__(self, p: Float = 2.0, eps: Float = 1e-06, keepdim: Bool = False) -> None: ...

class PixelShuffle(ParametrizedModule, torch.nn.PixelShuffle):
    def __init__(self, upscale_factor: Int) -> None: ...

class PixelUnshuffle(ParametrizedModule, torch.nn.PixelUnshuffle):
    def __init__(self, downscale_factor: Int) -> None: ...

class PoissonNLLLoss(ParametrizedModule, torch.nn.PoissonNLLLoss):
    def __init__(
        self,
        log_input: Bool = True,
        full: Bool = False,
        size_average: bool | None = None,
        eps: Float = 1e-08,
        reduce: bool | None = None,
        reduction: Str = "mean",
    ) -> None: ...

class RMSNorm(ParametrizedModule, torch.nn.RMSNorm):
    def __init__(
        self,
        normalized_shape: Int | Sequence[Int],
        eps: Float | None = None,
        elementwise_affine: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class RNN(ParametrizedModule, torch.nn.RNN):
    def __init__(
        self,
        input_size: Int,
        hidden_size: Int,
        num_layers: Int = 1,
        nonlinearity: Str = "tanh",
        bias: Bool = True,
        batch_first: Bool = False,
        dropout: Float = 0.0,
        bidirectional: Bool = False,
        *,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class RNNBase(ParametrizedModule, torch.nn.RNNBase):
    def __init__(
        self,
        mode: Str,
        input_size: Int,
        hidden_size: Int,
        num_layers: Int = 1,
        bias: Bool = True,
        batch_first: Bool = False,
        dropout: Float = 0.0,
        bidirectional: Bool = False,
        proj_size: Int = 0,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class RNNCell(ParametrizedModule, torch.nn.RNNCell):
    def __init__(
        self,
        input_size: Int,
        hidden_size: Int,
        bias: Bool = True,
        nonlinearity: Str = "tanh",
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class RNNCellBase(ParametrizedModule, torch.nn.RNNCellBase):
    def __init__(
        self,
        input_size: Int,
        hidden_size: Int,
        bias: Bool,
        num_chunks: Int,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class RReLU(ParametrizedModule, torch.nn.RReLU):  # type: ignore[misc]
    def __init__(self, lower: Float = 0.125, upper: Float = 0.3333333333333333, inplace: Bool = False) -> None: ...

class ReLU(ParametrizedModule, torch.nn.ReLU):
    def __init__(self, inplace: Bool = False) -> None: ...

class ReLU6(ParametrizedModule, torch.nn.ReLU6):
    def __init__(self, inplace: Bool = False) -> None: ...

class ReflectionPad1d(ParametrizedModule, torch.nn.ReflectionPad1d):
    def __init__(self, padding: Size2) -> None: ...

class ReflectionPad2d(ParametrizedModule, torch.nn.ReflectionPad2d):
    def __init__(self, padding: _Size4) -> None: ...

class ReflectionPad3d(ParametrizedModule, torch.nn.ReflectionPad3d):
    def __init__(self, padding: _Size6) -> None: ...

class ReplicationPad1d(ParametrizedModule, torch.nn.ReplicationPad1d):
    def __init__(self, padding: Size2) -> None: ...

class ReplicationPad2d(ParametrizedModule, torch.nn.ReplicationPad2d):
    def __init__(self, padding: _Size4) -> None: ...

class ReplicationPad3d(ParametrizedModule, torch.nn.ReplicationPad3d):
    def __init__(self, padding: _Size6) -> None: ...

class SELU(ParametrizedModule, torch.nn.SELU):
    def __init__(self, inplace: Bool = False) -> None: ...

class SiLU(ParametrizedModule, torch.nn.SiLU):
    def __init__(self, inplace: Bool = False) -> None: ...

class SmoothL1Loss(ParametrizedModule, torch.nn.SmoothL1Loss):
    def __init__(
        self, size_average: bool | None = None, reduce: bool | None = None, reduction: Str = "mean", beta: Float = 1.0
    ) -> None: ...

class SoftMarginLoss(ParametrizedModule, torch.nn.SoftMarginLoss):
    def __init__(
        self, size_average: bool | None = None, reduce: bool | None = None, reduction: Str = "mean"
    ) -> None: ...

class Softmax(ParametrizedModule, torch.nn.Softmax):
    def __init__(self, dim: Int | None = None) -> None: ...

class Softmin(ParametrizedModule, torch.nn.Softmin):
    def __init__(self, dim: Int | None = None) -> None: ...

class Softplus(ParametrizedModule, torch.nn.Softplus):
    def __init__(self, beta: Float = 1.0, threshold: Float = 20.0) -> None: ...

class Softshrink(ParametrizedModule, torch.nn.Softshrink):
    def __init__(self, lambd: Float = 0.5) -> None: ...

class SyncBatchNorm(ParametrizedModule, torch.nn.SyncBatchNorm):
    def __init__(
        self,
        num_features: Int,
        eps: Float = 1e-05,
        momentum: Float | None = 0.1,
        affine: Bool = True,
        track_running_stats: Bool = True,
        process_group: Any = None,
        device: _Device = None,
        dtype: _Dtype = None,
        *,
        bias: Bool = True,
    ) -> None: ...

class Threshold(ParametrizedModule, torch.nn.Threshold):
    def __init__(self, threshold: Float, value: Float, inplace: Bool = False) -> None: ...

class Transformer(ParametrizedModule, torch.nn.Transformer):
    def __init__(
        self,
        d_model: Int = 512,
        nhead: Int = 8,
        num_encoder_layers: Int = 6,
        num_decoder_layers: Int = 6,
        dim_feedforward: Int = 2048,
        dropout: Float = 0.1,
        activation: _Activation = functional.relu,
        custom_encoder: Any = None,
        custom_decoder: Any = None,
        layer_norm_eps: Float = 1e-05,
        batch_first: Bool = False,
        norm_first: Bool = False,
        bias: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class TransformerDecoder(ParametrizedModule, torch.nn.TransformerDecoder):
    def __init__(
        self, decoder_layer: torch.nn.TransformerDecoderLayer, num_layers: Int, norm: torch.nn.Module | None = None
    ) -> None: ...

class TransformerDecoderLayer(ParametrizedModule, torch.nn.TransformerDecoderLayer):
    def __init__(
        self,
        d_model: Int,
        nhead: Int,
        dim_feedforward: Int = 2048,
        dropout: Float = 0.1,
        activation: _Activation = functional.relu,
        layer_norm_eps: Float = 1e-05,
        batch_first: Bool = False,
        norm_first: Bool = False,
        bias: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class TransformerEncoder(ParametrizedModule, torch.nn.TransformerEncoder):
    def __init__(
        self,
        encoder_layer: torch.nn.TransformerEncoderLayer,
        num_layers: Int,
        norm: torch.nn.Module | None = None,
        enable_nested_tensor: Bool = True,
        mask_check: Bool = True,
    ) -> None: ...

class TransformerEncoderLayer(ParametrizedModule, torch.nn.TransformerEncoderLayer):
    def __init__(
        self,
        d_model: Int,
        nhead: Int,
        dim_feedforward: Int = 2048,
        dropout: Float = 0.1,
        activation: _Activation = functional.relu,
        layer_norm_eps: Float = 1e-05,
        batch_first: Bool = False,
        norm_first: Bool = False,
        bias: Bool = True,
        device: _Device = None,
        dtype: _Dtype = None,
    ) -> None: ...

class TripletMarginLoss(ParametrizedModule, torch.nn.TripletMarginLoss):
    def __init__(
        self,
        margin: Float = 1.0,
        p: Float = 2.0,
        eps: Float = 1e-06,
        swap: Bool = False,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: Str = "mean",
    ) -> None: ...

class TripletMarginWithDistanceLoss(ParametrizedModule, torch.nn.TripletMarginWithDistanceLoss):
    def __init__(
        self,
        *,
        distance_function: Callable[[Tensor, Tensor], Tensor] | None = None,
        margin: Float = 1.0,
        swap: Bool = False,
        reduction: Str = "mean",
    ) -> None: ...

class Unflatten(ParametrizedModule, torch.nn.Unflatten):
    def __init__(self, dim: Int | Str, unflattened_size: Sequence[Int] | MutableExpression) -> None: ...

class Unfold(ParametrizedModule, torch.nn.Unfold):
    def __init__(self, kernel_size: _Sizes, dilation: _Sizes = 1, padding: _Sizes = 0, stride: _Sizes = 1) -> None: ...

class Upsample(ParametrizedModule, torch.nn.Upsample):  # type: ignore[misc]
    def __init__(
        self,
        size: _Sizes | None = None,
        scale_factor: Float | tuple[Float, ...] | None = None,
        mode: Str = "nearest",
        align_corners: Bool | None = None,
        recompute_scale_factor: Bool | None = None,
    ) -> None: ...

class UpsamplingBilinear2d(ParametrizedModule, torch.nn.UpsamplingBilinear2d):  # type: ignore[misc]
    def __init__(self, size: Size2 | None = None, scale_factor: Float | tuple[Float, Float] | None = None) -> None: ...

class UpsamplingNearest2d(ParametrizedModule, torch.nn.UpsamplingNearest2d):  # type: ignore[misc]
    def __init__(self, size: Size2 | None = None, scale_factor: Float | tuple[Float, Float] | None = None) -> None: ...

class ZeroPad1d(ParametrizedModule, torch.nn.ZeroPad1d):
    def __init__(self, padding: Size2) -> None: ...

class ZeroPad2d(ParametrizedModule, torch.nn.ZeroPad2d):
    def __init__(self, padding: _Size4) -> None: ...

class ZeroPad3d(ParametrizedModule, torch.nn.ZeroPad3d):
    def __init__(self, padding: _Size6) -> None: ...
