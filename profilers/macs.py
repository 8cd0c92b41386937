"""How many multiply-adds each operator of PyTorch takes.

The conventions are those of fvcore, the counter that papers quote: one multiply-add counts once; a batch
normalisation in inference counts two for each element (one without affine parameters), other normalisations five (or
four); adaptive pooling counts one for each element that it reads, interpolation one for each element that it reads to
write another; elementwise operators, sorting and reductions count nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten

Formula = Callable[..., Any]
FORMULAS: dict[Any, Formula] = {}


def formula(*packets: Any) -> Callable[[Formula], Formula]:
    """Register a function as the count of one or several operators.

    Parameters
    ----------
    *packets : OpOverloadPacket
        For instance ``torch.ops.aten.mm``.

    Returns
    -------
    callable
        A decorator. The function is called with the arguments of the operator and `output`; sizes may be symbolic.
    """

    def register(function: Formula) -> Formula:
        FORMULAS.update(dict.fromkeys(packets, function))
        return function

    return register


@formula(aten.convolution, aten._convolution)
def convolution(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *rest: Any,
    output: Any,
) -> Any:
    """Each output element, or input element when transposed, meets a whole filter."""
    positions = x if transposed else output
    return positions.numel() * math.prod(weight.shape[1:])


@formula(aten.mm)
def matrix_product(a: Any, b: Any, *, output: Any) -> Any:
    """One for each element of the output and of the common dimension."""
    return a.shape[0] * a.shape[1] * b.shape[1]


@formula(aten.addmm)
def affine_product(bias: Any, a: Any, b: Any, *, output: Any, **scales: Any) -> Any:
    """As a matrix product; the addition is free."""
    return matrix_product(a, b, output=output)


@formula(aten.linear)
def linear(x: Any, weight: Any, bias: Any = None, *, output: Any) -> Any:
    """As a matrix product."""
    return x.numel() * weight.shape[0]


@formula(aten.bmm)
def batched_product(a: Any, b: Any, *, output: Any) -> Any:
    """Count a matrix product for each element of the batch."""
    return a.numel() * b.shape[2]


@formula(aten.baddbmm)
def batched_affine_product(bias: Any, a: Any, b: Any, *, output: Any, **scales: Any) -> Any:
    """As a batched product; the addition is free."""
    return batched_product(a, b, output=output)


@formula(
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_attention_math,
)
def attention(query: Any, key: Any, value: Any, *rest: Any, output: Any, **options: Any) -> Any:
    """Two matrix products: queries with keys, and the result with values."""
    return query.numel() * key.shape[-2] + math.prod(query.shape[:-1]) * key.shape[-2] * value.shape[-1]


@formula(
    aten.native_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten._batch_norm_no_update,
)
def batch_norm(x: Any, weight: Any, *rest: Any, output: Any) -> Any:
    """Scale and shift; in inference the statistics are constants, but not those of an instance normalisation."""
    own_statistics = any(option is True for option in rest)
    return x.numel() * ((5 if own_statistics else 2) if weight is not None else (4 if own_statistics else 1))


@formula(aten.native_layer_norm)
def layer_norm(x: Any, normalized_shape: Any, weight: Any, *rest: Any, output: Any) -> Any:
    """Statistics, scale and shift."""
    return x.numel() * (5 if weight is not None else 4)


@formula(aten.native_group_norm)
def group_norm(x: Any, weight: Any, *rest: Any, output: Any) -> Any:
    """Statistics, scale and shift."""
    return x.numel() * (5 if weight is not None else 4)


@formula(aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d)
def adaptive_pool(x: Any, *rest: Any, output: Any) -> Any:
    """Each input element is read once."""
    return x.numel()


@formula(aten.mean)
def mean(x: Any, dim: Any = None, keepdim: bool = False, *, output: Any, **options: Any) -> Any:
    """Adaptive pooling to one position arrives as this mean over height and width; other means are free."""
    return x.numel() if keepdim and list(dim) == [-1, -2] else 0


@formula(aten.mkldnn_rnn_layer)
def recurrent_layer(x: Any, weight: Any, recurrent_weight: Any, *rest: Any, output: Any) -> Any:
    """Both weights meet every step of every sequence."""
    return x.shape[0] * x.shape[1] * (weight.numel() + recurrent_weight.numel())


@formula(aten.mv)
def matrix_vector_product(a: Any, b: Any, *, output: Any) -> Any:
    """One for each element of the matrix."""
    return a.numel()


@formula(aten.addmv)
def affine_vector_product(bias: Any, a: Any, b: Any, *, output: Any, **scales: Any) -> Any:
    """As a matrix-vector product; the addition is free."""
    return a.numel()


@formula(aten.dot, aten.vdot)
def scalar_product(a: Any, b: Any, *, output: Any) -> Any:
    """One for each pair of elements."""
    return a.numel()


@formula(
    aten.upsample_nearest1d,
    aten.upsample_nearest2d,
    aten.upsample_nearest3d,
    aten._upsample_nearest_exact1d,
    aten._upsample_nearest_exact2d,
    aten._upsample_nearest_exact3d,
)
def upsample_nearest(x: Any, *rest: Any, output: Any, **options: Any) -> Any:
    """Each output element is copied once."""
    return output.numel()


@formula(aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d)
def upsample_linear(x: Any, *rest: Any, output: Any, **options: Any) -> Any:
    """Each output element is a weighted sum of two neighbours in each dimension."""
    return output.numel() * 2 ** (len(output.shape) - 2)


@formula(aten.upsample_bicubic2d)
def upsample_cubic(x: Any, *rest: Any, output: Any, **options: Any) -> Any:
    """Each output element is a weighted sum of four by four neighbours."""
    return output.numel() * 16


@formula(aten.grid_sampler_2d, aten.grid_sampler_3d, aten._grid_sampler_2d_cpu_fallback)
def grid_sample(x: Any, grid: Any, mode: int, *rest: Any, output: Any) -> Any:
    """Each output element is a weighted sum of its neighbours: two in each dimension, one, or four."""
    return output.numel() * (2, 1, 4)[mode] ** (len(output.shape) - 2)


# By the same convention these multiply nothing, although they are neither elementwise nor views.
FREE: frozenset[Any] = frozenset(
    {
        aten.cat, aten.stack, aten.sum, aten.amax, aten.amin, aten.max, aten.min, aten.argmax, aten.topk, aten._softmax,
        aten._safe_softmax, aten._log_softmax, aten.max_pool2d_with_indices, aten.max_pool2d, aten.avg_pool2d,
        aten.max_pool1d, aten.avg_pool1d, aten.adaptive_max_pool2d, aten.avg_pool3d, aten.max_pool3d_with_indices,
        aten.embedding, aten.index_select, aten.index, aten.gather, aten.constant_pad_nd, aten.reflection_pad2d,
        aten.replication_pad2d, aten.clone, aten._to_copy, aten.copy_, aten.contiguous, aten.empty, aten.zeros,
        aten.ones, aten.full, aten.arange, aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like,
        aten.new_zeros, aten.new_empty, aten.scalar_tensor, aten.lift_fresh_copy, aten.lift_fresh, aten.roll, aten.flip,
        aten.repeat, aten._unsafe_view, aten.view, aten.reshape, aten.split_with_sizes, aten.native_dropout,
        aten.unsafe_split, aten.unsafe_chunk, aten.hardswish, aten.bernoulli_, aten.cumsum, aten.channel_shuffle,
        aten.pixel_shuffle, aten.pixel_unshuffle, aten.sym_size, aten.sort, aten.scatter, aten.scatter_,
        aten.scatter_add, aten.scatter_reduce, aten.index_put, aten.index_put_, aten.index_add, aten.masked_fill,
        aten.im2col, aten.col2im, aten._embedding_bag, aten._embedding_bag_forward_only, aten.reflection_pad1d,
        aten.reflection_pad3d, aten.replication_pad1d, aten.replication_pad3d, aten.logsumexp, aten.std, aten.std_mean,
        aten.prod, aten.cumprod, aten.all, aten.any, aten.argmin, aten.nonzero, aten.transpose_, aten.t_, aten.squeeze_,
        aten.unsqueeze_, aten._prelu_kernel, aten.fill_, aten.zero_, aten.eye, aten.randn, aten.rand,
        aten.select_scatter, aten.slice_scatter, aten.median, aten.kthvalue, aten.cummax, aten.cummin, aten.detach,
        aten.linalg_vector_norm, aten.var_mean, aten.var, aten.hardtanh, aten.tril, aten.triu,
    }
)  # fmt: skip


def is_free(operator: Any) -> bool:
    """Tell whether an operator is known to take no multiply-adds."""
    packet = operator.overloadpacket
    return torch.Tag.pointwise in operator.tags or operator.is_view or packet in FREE
