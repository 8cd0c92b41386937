#pragma once

// The first step of both passes of mixed_bn_sum: two sums over parts of every channel of every tensor.

#include "mixed_bn_shared.h"

namespace hwnas::cuda::of_mixed_bn_sum {
namespace {

// Forward: of d = y - near and of d * d. Backward: of the gradient and of its product with y - mean.
// Block (x, y, z): channel or tile of columns, part, tensor.

template <class T, bool Planes, bool Backward>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const __grid_constant__ Shared shared, const T* __restrict__ grad, const double* __restrict__ means,
               const double* __restrict__ variances) {
  const int k = blockIdx.z;
  if (!shared.summed[k]) return;
  const T* __restrict__ y = static_cast<const T*>(shared.tensors[k]);
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  const std::int64_t column = Planes ? blockIdx.x : std::int64_t{blockIdx.x} * kLanes + lane;
  const bool inside = Planes || column < shared.columns;
  const std::int64_t row_size = shared.channels * shared.inner;
  const std::int64_t begin = blockIdx.y * shared.rows;
  const std::int64_t end = begin + shared.rows < shared.outer ? begin + shared.rows : shared.outer;
  Acc<T> a = 0;
  Acc<T> b = 0;
  if (inside) {
    const std::int64_t channel = Planes ? column : column / shared.inner;
    const Acc<T> centre =
        Backward ? static_cast<Acc<T>>(means[k * shared.channels + channel]) : near_mean<T>(shared, y, channel);
    Acc<T> scale = 0, shift = 0;
    if (Backward && shared.clamped) {
      const std::int64_t i = k * shared.channels + channel;
      const Affine affine = affine_of<Acc<T>>(shared, k, i, means[i], variances[i]);
      scale = static_cast<Acc<T>>(affine.scale);
      shift = static_cast<Acc<T>>(affine.shift);
    }
    const auto add = [&](std::int64_t i) {
      const Acc<T> d = widen(y[i]) - centre;
      if (Backward) {
        Acc<T> g = widen(grad[i]);
        if (shared.clamped) g = through_clamp(shared, shift + scale * d, g);
        a += g;
        b += g * d;
      } else {
        a += d;
        b += d * d;
      }
    };
    for (std::int64_t row = begin + warp; row < end; row += kWarps) {
      if (Planes) {
        const std::int64_t first = row * row_size + channel * shared.inner;
        for (std::int64_t i = lane; i < shared.inner; i += kLanes) add(first + i);
      } else {
        add(row * row_size + column);
      }
    }
  }
  __shared__ double sums[2][kThreads];
  sums[0][threadIdx.x] = a;
  sums[1][threadIdx.x] = b;
  __syncthreads();
  // Over the warps, and where all lanes belong to one channel over these too.
  for (int half = kThreads / 2; half >= (Planes ? 1 : kLanes); half /= 2) {
    if (threadIdx.x < half) {
      sums[0][threadIdx.x] += sums[0][threadIdx.x + half];
      sums[1][threadIdx.x] += sums[1][threadIdx.x + half];
    }
    __syncthreads();
  }
  if (threadIdx.x < (Planes ? 1 : kLanes) && inside) {
    const std::int64_t i = (std::int64_t{k} * shared.parts + blockIdx.y) * shared.columns + column;
    shared.sums[2 * i] = sums[0][threadIdx.x];
    shared.sums[2 * i + 1] = sums[1][threadIdx.x];
  }
}

}  // namespace
}  // namespace hwnas::cuda::of_mixed_bn_sum
