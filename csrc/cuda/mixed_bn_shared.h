#pragma once

// What all kernels of mixed_bn_sum are given, and what several of them compute of it.

#include <cmath>
#include <cstdint>

#include "hwnas/cuda_element.h"
#include "hwnas/mixed_bn_sum.h"

namespace hwnas::cuda::of_mixed_bn_sum {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kLanes * kWarps;
constexpr int kSamples = 16;  // elements of a channel whose mean is near enough to shift it by
constexpr int kTables = 5;

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

}  // namespace
}  // namespace hwnas::cuda::of_mixed_bn_sum
