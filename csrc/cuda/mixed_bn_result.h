#pragma once

// The third step of both passes of mixed_bn_sum: the result, element by element.

#include "mixed_bn_shared.h"

namespace hwnas::cuda::of_mixed_bn_sum {
namespace {

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T lane[N];
};

template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

// The channel of the first element of a pack; that of the others is the same, or the next where inner is 1.
__device__ std::int64_t channel_of(const Shared& shared, std::int64_t i) {
  if (i <= 0xffffffffll) {  // a division of 64 bits takes much longer
    const unsigned outer = static_cast<unsigned>(i) / static_cast<unsigned>(shared.inner);
    return outer % static_cast<unsigned>(shared.channels);
  }
  return i / shared.inner % shared.channels;
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ Shared shared, T* __restrict__ out, std::int64_t packs) {
  using A = Acc<T>;
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t pack = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; pack < packs; pack += stride) {
    const std::int64_t first = channel_of(shared, pack * N);
    const int step = shared.inner == 1 ? 1 : 0;
    A total[N] = {};
    for (int k = 0; k < shared.count; ++k) {
      const auto y = static_cast<const Pack<T, N>*>(shared.tensors[k])[pack];
      const std::int64_t channel = k * shared.channels + first;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const std::int64_t i = channel + n * step;
        total[n] += entry<A>(shared, 0, i) * (widen(y.lane[n]) - entry<A>(shared, 1, i)) + entry<A>(shared, 2, i);
      }
    }
    Pack<T, N> result;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      result.lane[n] = narrow<T>(shared.clamped ? clamp(shared, total[n]) : total[n]);
    }
    reinterpret_cast<Pack<T, N>*>(out)[pack] = result;
  }
}

struct Outputs {
  void* at[kMixedBnMaxCount];
};

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ Shared shared, const T* __restrict__ grad,
                    const __grid_constant__ Outputs outputs, std::int64_t packs) {
  using A = Acc<T>;
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t pack = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; pack < packs; pack += stride) {
    const std::int64_t first = channel_of(shared, pack * N);
    const int step = shared.inner == 1 ? 1 : 0;
    const auto g = reinterpret_cast<const Pack<T, N>*>(grad)[pack];
    for (int k = 0; k < shared.count; ++k) {
      if (outputs.at[k] == nullptr) continue;
      Pack<T, N> y = g;
      if (shared.normalised[k]) y = static_cast<const Pack<T, N>*>(shared.tensors[k])[pack];
      const std::int64_t channel = k * shared.channels + first;
      Pack<T, N> result;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const std::int64_t i = channel + n * step;
        const A scale = entry<A>(shared, 0, i);
        A value = scale * widen(g.lane[n]);
        if (shared.normalised[k]) {
          const A d = widen(y.lane[n]) - entry<A>(shared, 1, i);
          if (shared.clamped) {
            value = scale * through_clamp(shared, entry<A>(shared, 4, i) + scale * d, static_cast<A>(widen(g.lane[n])));
          }
          value += entry<A>(shared, 2, i) * d + entry<A>(shared, 3, i);
        }
        result.lane[n] = narrow<T>(value);
      }
      static_cast<Pack<T, N>*>(outputs.at[k])[pack] = result;
    }
  }
}

}  // namespace
}  // namespace hwnas::cuda::of_mixed_bn_sum
