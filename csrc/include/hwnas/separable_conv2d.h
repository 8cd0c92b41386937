#pragma once

// separable_conv2d: a depthwise and a pointwise convolution after each other, and their gradients:
//   y[n, o, .] = sum_c pointwise[o, c] * t[n, c, .], where t is dwconv2d of x, without a bias and by a whole weight.
// t is kept for a few rows at a time only; the backward pass computes it again. On the CPU, in float32.

#include <cstdint>

#include "hwnas/dwconv2d.h"
#include "hwnas/isa.h"

namespace hwnas {

struct SeparableConv2dShape {
  DwConv2dShape depthwise;
  std::int64_t out_channels;
};

struct SeparableConv2d {
  SeparableConv2dShape shape;
  const void* x;
  const void* depthwise;
  const void* pointwise;  // [out_channels][channels]
  void* y;
  void* workspace;
};

struct SeparableConv2dBackward {
  SeparableConv2dShape shape;
  const void* grad;
  const void* x;
  const void* depthwise;
  const void* pointwise;
  void* grad_x;          // null: not wanted
  void* grad_depthwise;  // null: not wanted
  void* grad_pointwise;  // null: not wanted
  void* workspace;
};

namespace cpu {

// The workspace is aligned like that of dwconv2d.
HWNAS_FOR_EACH_ISA(std::int64_t separable_conv2d_workspace(const SeparableConv2dShape& shape, int threads);
                   std::int64_t separable_conv2d_backward_workspace(const SeparableConv2dShape& shape, int threads);
                   void separable_conv2d(const SeparableConv2d& args, int threads);
                   void separable_conv2d_backward(const SeparableConv2dBackward& args, int threads);)

}  // namespace cpu

}  // namespace hwnas
