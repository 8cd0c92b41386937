#pragma once

// Sums of many numbers by one block, in an order that depends on their number alone. In an anonymous namespace, as the
// kernels are.

#include <cuda_runtime.h>

#include <cstdint>

namespace hwnas::cuda {
namespace {

constexpr int kSumThreads = 256;

// The sum of value(i) for every i below `count`, in all threads of a block of kSumThreads.
template <class Value>
__device__ double block_sum(std::int64_t count, const Value& value) {
  __shared__ double sums[kSumThreads];
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += kSumThreads) sum += value(i);
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kSumThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  return sums[0];
}

// One block for each row of a matrix: its sum.
template <class From, class To>
__global__ void __launch_bounds__(kSumThreads)
    sum_rows_kernel(const From* __restrict__ matrix, std::int64_t columns, To* __restrict__ sums) {
  const From* row = matrix + blockIdx.x * columns;
  const double sum = block_sum(columns, [&](std::int64_t i) { return row[i]; });
  if (threadIdx.x == 0) sums[blockIdx.x] = static_cast<To>(sum);
}

}  // namespace
}  // namespace hwnas::cuda
