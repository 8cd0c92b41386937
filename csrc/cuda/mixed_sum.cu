// Both kernels are bound by memory: 16 bytes at a time, every tensor read or written once. grad_weights takes two stages
// without atomics, so that it is the same from run to run: a sum for each tile of fixed size, then the tiles in order.

#include "hwnas/mixed_sum.h"

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "block_sum.h"
#include "hwnas/cuda_element.h"

namespace hwnas::cuda::of_mixed_sum {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kTilePacks = 4;  // 16-byte packs for each thread in a tile of the backward pass

struct Inputs {
  const void* at[kMixedSumMaxCount];
};

struct Outputs {
  void* at[kMixedSumMaxCount];
};

template <class T>
constexpr int kFullLanes = 16 / static_cast<int>(sizeof(T));

template <class T>
constexpr std::int64_t kTile = std::int64_t{kThreads} * kTilePacks * kFullLanes<T>;

// Lanes is kFullLanes where every address allows 16-byte access, else 1.
template <class T, int Lanes>
struct alignas(sizeof(T) * Lanes) Pack {
  T lane[Lanes];
};

template <class T, int Lanes>
__device__ Pack<T, Lanes> load(const void* tensor, std::int64_t pack) {
  return static_cast<const Pack<T, Lanes>*>(tensor)[pack];
}

template <class T, int Lanes>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ Inputs tensors, const Acc<T>* __restrict__ weights, int count,
                   T* __restrict__ out, std::int64_t size) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  const std::int64_t thread = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t packs = size / Lanes;
  for (std::int64_t pack = thread; pack < packs; pack += stride) {
    Acc<T> sum[Lanes] = {};
#pragma unroll 4
    for (int k = 0; k < count; ++k) {
      const auto x = load<T, Lanes>(tensors.at[k], pack);
      const Acc<T> weight = weights[k];
#pragma unroll
      for (int lane = 0; lane < Lanes; ++lane) sum[lane] += weight * widen(x.lane[lane]);
    }
    Pack<T, Lanes> result;
#pragma unroll
    for (int lane = 0; lane < Lanes; ++lane) result.lane[lane] = narrow<T>(sum[lane]);
    reinterpret_cast<Pack<T, Lanes>*>(out)[pack] = result;
  }
  for (std::int64_t i = packs * Lanes + thread; i < size; i += stride) {
    Acc<T> sum = 0;
    for (int k = 0; k < count; ++k) sum += weights[k] * widen(static_cast<const T*>(tensors.at[k])[i]);
    out[i] = narrow<T>(sum);
  }
}

// One tile: the gradient stays in registers while every tensor passes by. `Whole` says that the tile ends within `size`.
template <class T, int Lanes, bool Dot, bool Whole>
__device__ void backward_tile(const T* __restrict__ grad, const Acc<T>* __restrict__ weights, const Inputs& tensors,
                              const Outputs& grads, int count, std::int64_t size, Acc<T> (*warp_sums)[kWarps]) {
  constexpr int kPacks = kTilePacks * kFullLanes<T> / Lanes;
  const std::int64_t first = blockIdx.x * (kTile<T> / Lanes) + threadIdx.x;
  const auto fetch = [&](const void* tensor, std::int64_t pack) {
    if constexpr (Whole) {
      return load<T, Lanes>(tensor, pack);
    } else {
      Pack<T, Lanes> part;
      for (int lane = 0; lane < Lanes; ++lane) {
        const std::int64_t i = pack * Lanes + lane;
        part.lane[lane] = i < size ? static_cast<const T*>(tensor)[i] : narrow<T>(0);
      }
      return part;
    }
  };
  Pack<T, Lanes> g[kPacks];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) g[p] = fetch(grad, first + p * kThreads);

  for (int k = 0; k < count; ++k) {
    T* gx = static_cast<T*>(grads.at[k]);
    if (gx != nullptr) {
      const Acc<T> weight = weights[k];
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        const std::int64_t pack = first + p * kThreads;
        Pack<T, Lanes> scaled;
#pragma unroll
        for (int lane = 0; lane < Lanes; ++lane) scaled.lane[lane] = narrow<T>(weight * widen(g[p].lane[lane]));
        if constexpr (Whole) {
          reinterpret_cast<Pack<T, Lanes>*>(gx)[pack] = scaled;
        } else {
          for (int lane = 0; lane < Lanes && pack * Lanes + lane < size; ++lane) {
            gx[pack * Lanes + lane] = scaled.lane[lane];
          }
        }
      }
    }
    if (Dot) {
      Pack<T, Lanes> x[kPacks];
#pragma unroll
      for (int p = 0; p < kPacks; ++p) x[p] = fetch(tensors.at[k], first + p * kThreads);
      Acc<T> sum = 0;
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
#pragma unroll
        for (int lane = 0; lane < Lanes; ++lane) sum += widen(g[p].lane[lane]) * widen(x[p].lane[lane]);
      }
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
      if (threadIdx.x % 32 == 0) warp_sums[k][threadIdx.x / 32] = sum;
    }
  }
}

template <class T, int Lanes, bool Dot>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* __restrict__ grad, const Acc<T>* __restrict__ weights,
                    const __grid_constant__ Inputs tensors, const __grid_constant__ Outputs grads, int count,
                    Acc<T>* __restrict__ partials, std::int64_t size) {
  __shared__ Acc<T> warp_sums[Dot ? kMixedSumMaxCount : 1][kWarps];
  // Without packs there is no fast way to keep apart, and one copy of the code less to compile.
  if (Lanes > 1 && (blockIdx.x + 1) * kTile<T> <= size) {
    backward_tile<T, Lanes, Dot, (Lanes > 1)>(grad, weights, tensors, grads, count, size, warp_sums);
  } else {
    backward_tile<T, Lanes, Dot, false>(grad, weights, tensors, grads, count, size, warp_sums);
  }
  if (!Dot) return;
  __syncthreads();
  for (int k = threadIdx.x; k < count; k += kThreads) {
    Acc<T> sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += warp_sums[k][warp];
    partials[std::int64_t{k} * gridDim.x + blockIdx.x] = sum;
  }
}

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("mixed_sum: ") + what + ": " + cudaGetErrorString(status));
}

bool allows_packs(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; }

template <class T>
void forward(const MixedSum& args, cudaStream_t stream) {
  int device = 0;
  int multiprocessors = 0;
  check(cudaGetDevice(&device), "no current device");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "no device attributes");
  Inputs tensors;
  bool packs = allows_packs(args.out);
  for (std::int64_t k = 0; k < args.count; ++k) {
    tensors.at[k] = args.tensors[k];
    packs = packs && allows_packs(args.tensors[k]);
  }
  const std::int64_t lanes = packs ? kFullLanes<T> : 1;
  const std::int64_t wanted = (args.size + lanes * kThreads - 1) / (lanes * kThreads);
  const std::int64_t most = std::int64_t{multiprocessors} * kBlocksPerMultiprocessor;
  const auto blocks = static_cast<unsigned>(wanted < most ? wanted : most);
  const auto* weights = static_cast<const Acc<T>*>(args.weights);
  const auto kernel = packs ? forward_kernel<T, kFullLanes<T>> : forward_kernel<T, 1>;
  kernel<<<blocks, kThreads, 0, stream>>>(tensors, weights, static_cast<int>(args.count), static_cast<T*>(args.out),
                                          args.size);
  check(cudaGetLastError(), "forward launch");
}

template <class T>
std::int64_t tiles(std::int64_t size) {
  return (size + kTile<T> - 1) / kTile<T>;
}

template <class T>
void backward(const MixedSumBackward& args, cudaStream_t stream) {
  const bool dot = args.grad_weights != nullptr;
  Inputs tensors{};
  Outputs grads;
  bool packs = allows_packs(args.grad);
  for (std::int64_t k = 0; k < args.count; ++k) {
    grads.at[k] = args.grad_tensors[k];
    packs = packs && allows_packs(args.grad_tensors[k]);
    if (dot) {
      tensors.at[k] = args.tensors[k];
      packs = packs && allows_packs(args.tensors[k]);
    }
  }
  const auto count = static_cast<int>(args.count);
  const auto blocks = static_cast<unsigned>(tiles<T>(args.size));
  auto* partials = static_cast<Acc<T>*>(args.partials);
  constexpr int kLanes = kFullLanes<T>;
  const auto kernel = dot ? (packs ? backward_kernel<T, kLanes, true> : backward_kernel<T, 1, true>)
                          : (packs ? backward_kernel<T, kLanes, false> : backward_kernel<T, 1, false>);
  kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const T*>(args.grad), static_cast<const Acc<T>*>(args.weights),
                                          tensors, grads, count, partials, args.size);
  check(cudaGetLastError(), "backward launch");
  if (!dot) return;
  // For each tensor the sum over its tiles.
  sum_rows_kernel<<<count, kSumThreads, 0, stream>>>(partials, std::int64_t{blocks},
                                                     static_cast<Acc<T>*>(args.grad_weights));
  check(cudaGetLastError(), "reduction launch");
}

}  // namespace
}  // namespace hwnas::cuda::of_mixed_sum

namespace hwnas::cuda {

std::int64_t mixed_sum_partials(DType dtype, std::int64_t size, std::int64_t count) {
  switch (dtype) {
    case DType::f32: return of_mixed_sum::tiles<float>(size) * count;
    case DType::bf16: return of_mixed_sum::tiles<__nv_bfloat16>(size) * count;
    case DType::f64: return of_mixed_sum::tiles<double>(size) * count;
  }
  return 0;
}

void mixed_sum(const MixedSum& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case DType::f32: return of_mixed_sum::forward<float>(args, on);
    case DType::bf16: return of_mixed_sum::forward<__nv_bfloat16>(args, on);
    case DType::f64: return of_mixed_sum::forward<double>(args, on);
  }
}

void mixed_sum_backward(const MixedSumBackward& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case DType::f32: return of_mixed_sum::backward<float>(args, on);
    case DType::bf16: return of_mixed_sum::backward<__nv_bfloat16>(args, on);
    case DType::f64: return of_mixed_sum::backward<double>(args, on);
  }
}

}  // namespace hwnas::cuda
