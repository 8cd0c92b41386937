// Three kernels for each pass, and one more for the gradient of the weights. Without atomics, so that the results are
// the same from run to run:
// 1. two sums over parts of every channel, by blocks of 8 warps: where the inner part of a channel fills warps, lanes
//    are neighbours within it; else (channels last, tiny images) neighbouring columns of rows of channels * inner;
// 2. the parts in order, and what follows for each channel of each tensor;
// 3. the result, element by element, 16 bytes at a time where the layout allows it.

#include "hwnas/mixed_bn_sum.h"

#include <cuda_runtime.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "hwnas/cuda_element.h"

namespace hwnas::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kLanes * kWarps;
constexpr int kTerms = 32;           // about as many are added up by one thread
constexpr std::int64_t kMaxParts = 1024;
constexpr int kSamples = 16;         // elements of a channel whose mean is near enough to shift it by
constexpr int kTables = 5;
constexpr unsigned kMaxBlocks = 1 << 20;

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T lane[N];
};

template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

// What every kernel is given: the tensors, and how they and the sums lie in memory.
struct Shared {
  const void* tensors[kMixedBnMaxCount];
  double eps[kMixedBnMaxCount];
  bool normalised[kMixedBnMaxCount];
  bool summed[kMixedBnMaxCount];  // whether the first kernel has to read it
  const void* weights;
  const void* gamma;
  const void* beta;
  int count;
  std::int64_t outer, channels, inner;
  double low, high;
  bool clamped;
  std::int64_t parts, rows;  // rows of `outer` in a part
  std::int64_t columns;      // sums of a part: channels, or channels * inner
  double* sums;              // 2 * count * parts * columns
  double* tables;            // kTables * count * channels accumulators, each in the place of a double
  double* of_weights;        // count * channels
};

template <class A>
__device__ double at(const void* table, std::int64_t i, double otherwise) {
  return table == nullptr ? otherwise : static_cast<double>(static_cast<const A*>(table)[i]);
}

template <class A>
__device__ A& entry(const Shared& shared, int table, std::int64_t i) {
  return reinterpret_cast<A*>(shared.tables)[table * shared.count * shared.channels + i];
}

// A value near the mean of a channel: without subtracting it a large mean would leave nothing of the variance.
template <class T>
__device__ Acc<T> near_mean(const Shared& shared, const T* y, std::int64_t channel) {
  double total = 0;
  for (int i = 0; i < kSamples; ++i) {
    const std::int64_t outer = i * shared.outer / kSamples;
    const std::int64_t inner = i * shared.inner / kSamples;
    total += static_cast<double>(widen(y[(outer * shared.channels + channel) * shared.inner + inner]));
  }
  return std::isfinite(total) ? static_cast<Acc<T>>(total / kSamples) : Acc<T>(0);
}

// What normalising channel i (counted over all tensors) with weight and statistics amounts to:
// scale * (y - centre) + shift. What the centre lacks of the mean is part of the shift.
struct Affine {
  double scale, shift;
};

template <class A>
__device__ Affine affine_of(const Shared& shared, int k, std::int64_t i, double mean, double variance) {
  const double weight = static_cast<const A*>(shared.weights)[k];
  const double scale = weight * at<A>(shared.gamma, i, 1) / std::sqrt(variance + shared.eps[k]);
  return {scale, weight * at<A>(shared.beta, i, 0) - scale * (mean - static_cast<double>(static_cast<A>(mean)))};
}

// Comparisons of which NaN passes unchanged, and so does its gradient, as in PyTorch.
template <class A>
__device__ A clamp(const Shared& shared, A value) {
  const A low = static_cast<A>(shared.low), high = static_cast<A>(shared.high);
  return value < low ? low : value > high ? high : value;
}

template <class A>
__device__ A through_clamp(const Shared& shared, A value, A grad) {
  return value <= static_cast<A>(shared.low) || value >= static_cast<A>(shared.high) ? A(0) : grad;
}

// --- 1: sums of parts ---------------------------------------------------------------------------------------------
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

// --- 2: what follows for a channel --------------------------------------------------------------------------------

struct Sums {
  double first, second;
};

__device__ Sums total_of(const Shared& shared, int k, std::int64_t channel) {
  Sums total{0, 0};
  if (!shared.summed[k]) return total;
  const std::int64_t width = shared.columns / shared.channels;
  for (std::int64_t part = 0; part < shared.parts; ++part) {
    const std::int64_t first = (std::int64_t{k} * shared.parts + part) * shared.columns + channel * width;
    for (std::int64_t i = first; i < first + width; ++i) {
      total.first += shared.sums[2 * i];
      total.second += shared.sums[2 * i + 1];
    }
  }
  return total;
}

// Tables: 0 scale, 1 centre, 2 shift; out = sum_k scale * (y - centre) + shift.
template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_tables_kernel(const __grid_constant__ Shared shared, double* __restrict__ means,
                          double* __restrict__ variances) {
  using A = Acc<T>;
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= shared.count * shared.channels) return;
  const int k = static_cast<int>(i / shared.channels);
  const std::int64_t channel = i % shared.channels;
  double mean = 0;
  double variance = 0;
  Affine affine{static_cast<double>(static_cast<const A*>(shared.weights)[k]), 0};
  if (shared.normalised[k]) {
    const Sums total = total_of(shared, k, channel);
    const double n = static_cast<double>(shared.outer * shared.inner);
    const A near = near_mean<T>(shared, static_cast<const T*>(shared.tensors[k]), channel);
    mean = static_cast<double>(near) + total.first / n;
    variance = (total.second - total.first / n * total.first) / n;
    if (variance < 0) variance = 0;
    affine = affine_of<A>(shared, k, i, mean, variance);
  }
  means[i] = mean;
  variances[i] = variance;
  entry<A>(shared, 0, i) = static_cast<A>(affine.scale);
  entry<A>(shared, 1, i) = static_cast<A>(mean);
  entry<A>(shared, 2, i) = static_cast<A>(affine.shift);
}

// Tables: 0 scale, 1 centre, 2 slope, 3 shift; grad_tensor = scale * grad + slope * (y - centre) + shift. 4 is the shift
// of the forward pass.
template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_tables_kernel(const __grid_constant__ Shared shared, const double* __restrict__ means,
                           const double* __restrict__ variances, void* grad_gamma, void* grad_beta) {
  using A = Acc<T>;
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= shared.count * shared.channels) return;
  const int k = static_cast<int>(i / shared.channels);
  const double weight = static_cast<const A*>(shared.weights)[k];
  const Sums total = total_of(shared, k, i % shared.channels);
  const A centre = static_cast<A>(means[i]);
  double scale = weight;
  double slope = 0;
  double shift = 0;
  double forward_shift = 0;
  double of_weights = total.second;
  double of_gamma = 0;
  double of_beta = 0;
  if (shared.normalised[k]) {
    const double n = static_cast<double>(shared.outer * shared.inner);
    const double missing = means[i] - static_cast<double>(centre);
    const double product = total.second - missing * total.first;
    const double inverse = 1 / std::sqrt(variances[i] + shared.eps[k]);
    const double gamma = at<A>(shared.gamma, i, 1);
    const Affine affine = affine_of<A>(shared, k, i, means[i], variances[i]);
    scale = affine.scale;
    forward_shift = affine.shift;
    slope = -scale * inverse * inverse * product / n;
    shift = -scale * total.first / n - slope * missing;
    of_gamma = weight * inverse * product;
    of_beta = weight * total.first;
    of_weights = gamma * inverse * product + at<A>(shared.beta, i, 0) * total.first;
  }
  entry<A>(shared, 0, i) = static_cast<A>(scale);
  entry<A>(shared, 1, i) = centre;
  entry<A>(shared, 2, i) = static_cast<A>(slope);
  entry<A>(shared, 3, i) = static_cast<A>(shift);
  entry<A>(shared, 4, i) = static_cast<A>(forward_shift);
  shared.of_weights[i] = of_weights;
  if (grad_gamma != nullptr) static_cast<A*>(grad_gamma)[i] = static_cast<A>(of_gamma);
  if (grad_beta != nullptr) static_cast<A*>(grad_beta)[i] = static_cast<A>(of_beta);
}

// One block for each tensor: the sum over its channels, in a fixed order.
template <class A>
__global__ void __launch_bounds__(kThreads)
    weights_kernel(const double* __restrict__ of_weights, std::int64_t channels, A* __restrict__ grad_weights) {
  __shared__ double sums[kThreads];
  double sum = 0;
  for (std::int64_t c = threadIdx.x; c < channels; c += kThreads) sum += of_weights[blockIdx.x * channels + c];
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) grad_weights[blockIdx.x] = static_cast<A>(sums[0]);
}

// --- 3: the result ------------------------------------------------------------------------------------------------

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

// --- host ---------------------------------------------------------------------------------------------------------

void check(const char* what) {
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("mixed_bn_sum: ") + what + ": " + cudaGetErrorString(status));
  }
}

bool allows_packs(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; }

std::int64_t blocks_for(std::int64_t items) { return (items + kThreads - 1) / kThreads; }

bool are_planes(std::int64_t inner) { return inner >= kLanes; }

// How the sums are divided into parts.
struct Division {
  Division(std::int64_t outer, std::int64_t channels, std::int64_t inner)
      : columns(are_planes(inner) ? channels : channels * inner) {
    const std::int64_t terms_of_row = are_planes(inner) ? (inner + kLanes - 1) / kLanes : 1;
    rows = kWarps * kTerms / terms_of_row;
    if (rows < kWarps) rows = kWarps;
    if (rows * kMaxParts < outer) rows = (outer + kMaxParts - 1) / kMaxParts;
    parts = (outer + rows - 1) / rows;
  }
  std::int64_t columns, rows, parts;
};

Shared make_shared(const MixedBnTensors& in, double* workspace) {
  const Division division(in.outer, in.channels, in.inner);
  Shared shared{};
  for (std::int64_t k = 0; k < in.count; ++k) {
    shared.tensors[k] = in.tensors[k];
    shared.eps[k] = in.eps[k];
    shared.normalised[k] = in.normalised[k] != 0;
  }
  shared.weights = in.weights;
  shared.gamma = in.gamma;
  shared.beta = in.beta;
  shared.count = static_cast<int>(in.count);
  shared.outer = in.outer;
  shared.channels = in.channels;
  shared.inner = in.inner;
  shared.low = in.low;
  shared.high = in.high;
  shared.clamped = in.clamped();
  shared.parts = division.parts;
  shared.rows = division.rows;
  shared.columns = division.columns;
  shared.sums = workspace;
  shared.tables = shared.sums + 2 * in.count * division.parts * division.columns;
  shared.of_weights = shared.tables + kTables * in.count * in.channels;
  return shared;
}

// 16 bytes at a time need addresses that allow it, and packs that stay in one channel or hold whole steps of channels.
template <class T>
bool packed(const MixedBnTensors& in, bool aligned) {
  return aligned && (in.inner == 1 ? in.channels : in.inner) % kPack<T> == 0;
}

template <class T, bool Backward>
void sum_parts(const Shared& shared, const T* grad, const double* means, const double* variances,
               cudaStream_t stream) {
  const bool planes = are_planes(shared.inner);
  const std::int64_t across = planes ? shared.channels : (shared.columns + kLanes - 1) / kLanes;
  const dim3 grid(static_cast<unsigned>(across), static_cast<unsigned>(shared.parts),
                  static_cast<unsigned>(shared.count));
  if (planes) {
    sum_kernel<T, true, Backward><<<grid, kThreads, 0, stream>>>(shared, grad, means, variances);
  } else {
    sum_kernel<T, false, Backward><<<grid, kThreads, 0, stream>>>(shared, grad, means, variances);
  }
  check("launch of the sums");
}

unsigned element_blocks(std::int64_t packs) {
  const std::int64_t wanted = blocks_for(packs);
  return wanted < kMaxBlocks ? static_cast<unsigned>(wanted) : kMaxBlocks;
}

template <class T>
void forward(const MixedBnSum& args, double* workspace, cudaStream_t stream) {
  Shared shared = make_shared(args.in, workspace);
  bool any = false;
  bool aligned = allows_packs(args.out);
  for (int k = 0; k < shared.count; ++k) {
    shared.summed[k] = shared.normalised[k];
    any = any || shared.summed[k];
    aligned = aligned && allows_packs(shared.tensors[k]);
  }
  if (any) sum_parts<T, false>(shared, nullptr, nullptr, nullptr, stream);
  const auto table_blocks = static_cast<unsigned>(blocks_for(shared.count * shared.channels));
  forward_tables_kernel<T><<<table_blocks, kThreads, 0, stream>>>(shared, args.means, args.variances);
  check("launch of the statistics");
  const bool packs = packed<T>(args.in, aligned);
  const std::int64_t size = shared.outer * shared.channels * shared.inner;
  const std::int64_t number = packs ? size / kPack<T> : size;
  const auto kernel = packs ? forward_kernel<T, kPack<T>> : forward_kernel<T, 1>;
  kernel<<<element_blocks(number), kThreads, 0, stream>>>(shared, static_cast<T*>(args.out), number);
  check("launch of the sum");
}

template <class T>
void backward(const MixedBnSumBackward& args, double* workspace, cudaStream_t stream) {
  Shared shared = make_shared(args.in, workspace);
  const T* grad = static_cast<const T*>(args.grad);
  Outputs outputs{};
  bool any_sum = false;
  bool any_output = false;
  bool aligned = allows_packs(grad);
  for (int k = 0; k < shared.count; ++k) {
    outputs.at[k] = args.grad_tensors[k];
    const bool for_norm = outputs.at[k] != nullptr || args.grad_gamma != nullptr || args.grad_beta != nullptr;
    shared.summed[k] = args.grad_weights != nullptr || (shared.normalised[k] && for_norm);
    any_sum = any_sum || shared.summed[k];
    any_output = any_output || outputs.at[k] != nullptr;
    aligned = aligned && allows_packs(shared.tensors[k]) && allows_packs(outputs.at[k]);
  }
  if (any_sum) sum_parts<T, true>(shared, grad, args.means, args.variances, stream);
  const auto table_blocks = static_cast<unsigned>(blocks_for(shared.count * shared.channels));
  backward_tables_kernel<T><<<table_blocks, kThreads, 0, stream>>>(shared, args.means, args.variances, args.grad_gamma,
                                                                   args.grad_beta);
  check("launch of the coefficients");
  if (args.grad_weights != nullptr) {
    weights_kernel<<<static_cast<unsigned>(shared.count), kThreads, 0, stream>>>(
        shared.of_weights, shared.channels, static_cast<Acc<T>*>(args.grad_weights));
    check("launch for the weights");
  }
  if (!any_output) return;
  const bool packs = packed<T>(args.in, aligned);
  const std::int64_t size = shared.outer * shared.channels * shared.inner;
  const std::int64_t number = packs ? size / kPack<T> : size;
  const auto kernel = packs ? backward_kernel<T, kPack<T>> : backward_kernel<T, 1>;
  kernel<<<element_blocks(number), kThreads, 0, stream>>>(shared, grad, outputs, number);
  check("launch of the gradients");
}

}  // namespace

std::int64_t mixed_bn_sum_workspace(DType, std::int64_t outer, std::int64_t channels, std::int64_t inner,
                                    std::int64_t count) {
  const Division division(outer, channels, inner);
  return 2 * count * division.parts * division.columns + (kTables + 1) * count * channels;
}

void mixed_bn_sum(const MixedBnSum& args, double* workspace, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.in.dtype) {
    case DType::f32: return forward<float>(args, workspace, on);
    case DType::bf16: return forward<__nv_bfloat16>(args, workspace, on);
    case DType::f64: return forward<double>(args, workspace, on);
  }
}

void mixed_bn_sum_backward(const MixedBnSumBackward& args, double* workspace, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.in.dtype) {
    case DType::f32: return backward<float>(args, workspace, on);
    case DType::bf16: return backward<__nv_bfloat16>(args, workspace, on);
    case DType::f64: return backward<double>(args, workspace, on);
  }
}

}  // namespace hwnas::cuda
