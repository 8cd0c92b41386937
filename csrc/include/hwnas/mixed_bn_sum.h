#pragma once

// mixed_bn_sum: out = sum_k weights[k] * B_k(tensors[k]), where B_k normalises each channel over all the rest with the
// statistics of the tensor itself, then scales it by gamma[k] and shifts it by beta[k]; or is the identity.
//   d = tensors[k] - mean,   s = 1 / sqrt(variance + eps[k]),   n = outer * inner
//   grad_tensors[k] = weights[k] * gamma * s * (grad - sum(grad) / n - d * s^2 * sum(grad * d) / n)
//   grad_weights[k] = sum over channels of gamma * s * sum(grad * d) + beta * sum(grad)
// A tensor lies in memory as (outer, channels, inner): images as (N, C, H * W), channels-last as (N * H * W, C, 1).
// The sum may be clamped, which is how an activation behind a batch normalisation is fused with it. The backward pass finds
// out again where: there grad is zero. Only one tensor, normalised, can be clamped.
// `Scalar` below is float, or double for float64 data. On CUDA every address but those of the arrays of addresses,
// `normalised` and `eps` is one of the device.

#include <cstdint>

#include "hwnas/dtype.h"
#include "hwnas/isa.h"

namespace hwnas {

struct MixedBnTensors {
  DType dtype;
  const void* weights;              // count Scalars
  const void* const* tensors;       // of one that is not normalised null in a backward pass that does not read it
  const unsigned char* normalised;  // whether B_k normalises
  const double* eps;
  const void* gamma;                // count * channels Scalars; null stands for ones
  const void* beta;                 // the same; null stands for zeros
  std::int64_t count;
  std::int64_t outer, channels, inner;
  double low, high;                 // infinite: nothing is clamped

  bool clamped() const { return low > -__builtin_inf() || high < __builtin_inf(); }
};

struct MixedBnSum {
  MixedBnTensors in;
  void* out;
  double* means;      // count * channels; zero where nothing is normalised
  double* variances;  // the same; biased
};

struct MixedBnSumBackward {
  MixedBnTensors in;  // a tensor that is not normalised is read only when grad_weights is wanted
  const void* grad;
  const double* means;
  const double* variances;
  void* const* grad_tensors;  // a null entry: that gradient is not wanted
  void* grad_weights;         // count Scalars; null: not wanted
  void* grad_gamma;           // count * channels Scalars, zero where nothing is normalised; null: not wanted
  void* grad_beta;            // the same
};

namespace cpu {

HWNAS_FOR_EACH_ISA(void mixed_bn_sum(const MixedBnSum& args, int threads);
                   void mixed_bn_sum_backward(const MixedBnSumBackward& args, int threads);)

}  // namespace cpu

namespace cuda {

// The addresses travel as kernel arguments, of which there is room for 4 KB.
constexpr std::int64_t kMixedBnMaxCount = 128;

// Number of doubles in the workspace of each pass.
std::int64_t mixed_bn_sum_workspace(DType dtype, std::int64_t outer, std::int64_t channels, std::int64_t inner,
                                    std::int64_t count);

void mixed_bn_sum(const MixedBnSum& args, double* workspace, void* stream);
void mixed_bn_sum_backward(const MixedBnSumBackward& args, double* workspace, void* stream);

}  // namespace cuda

}  // namespace hwnas
