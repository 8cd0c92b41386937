// Three kernels for each pass, and one more for the gradient of the weights. Without atomics, so that the results are
// the same from run to run:
// 1. two sums over parts of every channel, by blocks of 8 warps: where the inner part of a channel fills warps, lanes
//    are neighbours within it; else (channels last, tiny images) neighbouring columns of rows of channels * inner;
// 2. the parts in order, and what follows for each channel of each tensor;
// 3. the result, element by element, 16 bytes at a time where the layout allows it.

#include "hwnas/mixed_bn_sum.h"

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "block_sum.h"
#include "hwnas/cuda_element.h"
#include "mixed_bn_result.h"
#include "mixed_bn_sums.h"
#include "mixed_bn_tables.h"

namespace hwnas::cuda::of_mixed_bn_sum {
namespace {

constexpr unsigned kMaxBlocks = 1 << 20;
constexpr std::int64_t kMaxParts = 1024;
constexpr int kTerms = 32;  // about as many are added up by one thread

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
    // For each tensor the sum over its channels.
    sum_rows_kernel<<<static_cast<unsigned>(shared.count), kSumThreads, 0, stream>>>(
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
}  // namespace hwnas::cuda::of_mixed_bn_sum

namespace hwnas::cuda {

std::int64_t mixed_bn_sum_workspace(DType, std::int64_t outer, std::int64_t channels, std::int64_t inner,
                                    std::int64_t count) {
  const of_mixed_bn_sum::Division division(outer, channels, inner);
  return 2 * count * division.parts * division.columns + (of_mixed_bn_sum::kTables + 1) * count * channels;
}

void mixed_bn_sum(const MixedBnSum& args, double* workspace, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.in.dtype) {
    case DType::f32: return of_mixed_bn_sum::forward<float>(args, workspace, on);
    case DType::bf16: return of_mixed_bn_sum::forward<__nv_bfloat16>(args, workspace, on);
    case DType::f64: return of_mixed_bn_sum::forward<double>(args, workspace, on);
  }
}

void mixed_bn_sum_backward(const MixedBnSumBackward& args, double* workspace, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.in.dtype) {
    case DType::f32: return of_mixed_bn_sum::backward<float>(args, workspace, on);
    case DType::bf16: return of_mixed_bn_sum::backward<__nv_bfloat16>(args, workspace, on);
    case DType::f64: return of_mixed_bn_sum::backward<double>(args, workspace, on);
  }
}

}  // namespace hwnas::cuda
