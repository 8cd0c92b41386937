"""Native operators: one file each, with autograd, fake kernel and a reference in plain PyTorch."""

from __future__ import annotations

from hwnas.kernels.bn_clamp import bn_clamp, bn_clamp_reference
from hwnas.kernels.dwconv2d import dwconv2d, dwconv2d_reference
from hwnas.kernels.mask_scale import mask_scale, mask_scale_reference
from hwnas.kernels.mixed_bn_sum import mixed_bn_sum, mixed_bn_sum_reference
from hwnas.kernels.mixed_sum import mixed_sum, mixed_sum_reference
from hwnas.kernels.native import describe
from hwnas.kernels.separable_conv2d import separable_conv2d, separable_conv2d_reference
from hwnas.kernels.slice_pack import slice_pack, slice_unpack

__all__ = [
    "bn_clamp",
    "bn_clamp_reference",
    "describe",
    "dwconv2d",
    "dwconv2d_reference",
    "mask_scale",
    "mask_scale_reference",
    "mixed_bn_sum",
    "mixed_bn_sum_reference",
    "mixed_sum",
    "mixed_sum_reference",
    "separable_conv2d",
    "separable_conv2d_reference",
    "slice_pack",
    "slice_unpack",
]
