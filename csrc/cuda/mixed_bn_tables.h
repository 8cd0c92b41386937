#pragma once

// The second step of both passes of mixed_bn_sum: the parts in order, and what follows for each channel of each tensor.

#include "mixed_bn_shared.h"

namespace hwnas::cuda::of_mixed_bn_sum {
namespace {

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

}  // namespace
}  // namespace hwnas::cuda::of_mixed_bn_sum
