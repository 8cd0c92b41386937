#pragma once

// dwconv2d: depthwise convolution, and its gradients, of f(x), where f is the identity or max(x, 0):
//   y[n, c, o, p] = bias[c] + sum_ij weight[c, top + i, left + j] * f(x[n, c, o * stride - padding + i * dilation, .])
// The kernel is a part of a larger weight, which is read in place: `weight` has `full_kernel` rows and columns for each
// channel. Tensors are contiguous (N, C, H, W), or with `channels_last` (N, H, W, C) in memory.

#include <cstdint>

#include "hwnas/dtype.h"
#include "hwnas/isa.h"

namespace hwnas {

// One number for each dimension of an image.
struct Size2d {
  std::int64_t height;
  std::int64_t width;

  constexpr std::int64_t count() const { return height * width; }
};

struct DwConv2dShape {
  DType dtype;
  bool channels_last;
  bool pre_relu;
  std::int64_t batch;
  std::int64_t channels;
  Size2d in;
  Size2d out;
  Size2d kernel;
  Size2d full_kernel;
  Size2d kernel_start;  // of the kernel inside the full one
  Size2d stride;
  Size2d padding;  // before the first row and column; that behind the last ones follows from `out`
  Size2d dilation;
};

struct DwConv2d {
  DwConv2dShape shape;
  const void* x;
  const void* weight;
  const void* bias;  // null: none
  void* y;
  void* workspace;
};

// Of the gradients of weight and bias only the part that was used is written.
struct DwConv2dBackward {
  DwConv2dShape shape;
  const void* grad;
  const void* x;  // read where grad_weight is wanted, or grad_x with pre_relu
  const void* weight;
  void* grad_x;       // null: not wanted
  void* grad_weight;  // null: not wanted
  void* grad_bias;    // null: not wanted
  void* workspace;
};

namespace cpu {

// Alignment of the workspace.
constexpr std::int64_t kDwConv2dAlignment = 64;

// Sizes of workspaces are in bytes.
HWNAS_FOR_EACH_ISA(std::int64_t dwconv2d_workspace(const DwConv2dShape& shape, int threads);
                   std::int64_t dwconv2d_backward_workspace(const DwConv2dShape& shape, int threads);
                   void dwconv2d(const DwConv2d& args, int threads);
                   void dwconv2d_backward(const DwConv2dBackward& args, int threads);)

}  // namespace cpu

namespace cuda {

std::int64_t dwconv2d_backward_workspace(const DwConv2dShape& shape);
void dwconv2d(const DwConv2d& args, void* stream);
void dwconv2d_backward(const DwConv2dBackward& args, void* stream);

}  // namespace cuda

}  // namespace hwnas
