#pragma once

// mixed_sum: out = sum_k weights[k] * tensors[k], and its gradients
//   grad_tensors[k] = weights[k] * grad,    grad_weights[k] = <grad, tensors[k]>.
// All tensors have `size` elements in one order of memory. `weights` and `grad_weights` hold `count` accumulators (float,
// or double for float64 data). On CUDA every tensor, the weights included, lives on the device.

#include <cstdint>

#include "hwnas/dtype.h"
#include "hwnas/isa.h"

namespace hwnas {

struct MixedSum {
  DType dtype;
  const void* weights;
  const void* const* tensors;
  std::int64_t count;
  void* out;
  std::int64_t size;
};

struct MixedSumBackward {
  DType dtype;
  const void* grad;
  const void* weights;
  const void* const* tensors;  // read only when grad_weights is wanted
  std::int64_t count;
  void* const* grad_tensors;  // a null entry: that gradient is not wanted
  void* grad_weights;         // null: not wanted
  void* partials;             // workspace for grad_weights, see partial_sums below
  std::int64_t size;
};

namespace cpu {

// grad_weights is summed over chunks of fixed size and then over the chunks in order, so that the result does not depend
// on the number of threads. The workspace holds chunks * count doubles.
constexpr std::int64_t kMixedSumChunk = 16384;

constexpr std::int64_t mixed_sum_partials(std::int64_t size, std::int64_t count) {
  return (size + kMixedSumChunk - 1) / kMixedSumChunk * count;
}

HWNAS_FOR_EACH_ISA(void mixed_sum(const MixedSum& args, int threads);
                   void mixed_sum_backward(const MixedSumBackward& args, int threads);)

}  // namespace cpu

namespace cuda {

// The pointers travel as kernel arguments, of which there is room for 4 KB.
constexpr std::int64_t kMixedSumMaxCount = 128;

// Number of accumulators in the workspace of the backward pass.
std::int64_t mixed_sum_partials(DType dtype, std::int64_t size, std::int64_t count);

void mixed_sum(const MixedSum& args, void* stream);
void mixed_sum_backward(const MixedSumBackward& args, void* stream);

}  // namespace cuda

}  // namespace hwnas
