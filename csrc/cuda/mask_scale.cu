// Both passes are bound by memory: the weight and its gradient are read or written once. The gradients of the masks
// take two stages without atomics, so that they are the same from run to run: sums for each tile of fixed size, then
// the tiles in order.

#include "hwnas/mask_scale.h"

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "block_sum.h"
#include "hwnas/cuda_element.h"

namespace hwnas::cuda::of_mask_scale {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksPerMultiprocessor = 8;
// A tile of the backward pass: each warp takes every kWarps-th row, each of its lanes every 32nd column.
constexpr int kLaneColumns = 4;
constexpr int kTileColumns = 32 * kLaneColumns;
constexpr int kTileRows = 64;

template <class A>
__device__ A entry(const void* mask, std::int64_t index) {
  return mask == nullptr ? A{1} : static_cast<const A*>(mask)[index];
}

template <class A>
__device__ A column_entry(const Masks& masks, const MaskScaleShape& shape, std::int64_t column) {
  return entry<A>(masks.middle, column / shape.inner) * entry<A>(masks.inner, column % shape.inner);
}

// Also the gradient of the weight, with the gradient of the output in its place.
template <class T>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(const T* __restrict__ weight, const __grid_constant__ Masks masks, T* __restrict__ out,
                 const __grid_constant__ MaskScaleShape shape) {
  const std::int64_t columns = shape.middle * shape.inner, size = shape.rows * columns;
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size; i += stride) {
    const std::int64_t row = i / columns;
    const Acc<T> mask = entry<Acc<T>>(masks.row, row) * column_entry<Acc<T>>(masks, shape, i - row * columns);
    out[i] = narrow<T>(mask * widen(weight[i]));
  }
}

// One tile: the gradient of the weight where it is wanted, and the sums of grad * weight * masks over the columns and
// over the rows of the tile.
template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* __restrict__ grad, const T* __restrict__ weight, const __grid_constant__ Masks masks,
                    T* __restrict__ grad_weight, Acc<T>* __restrict__ row_sums, Acc<T>* __restrict__ column_sums,
                    const __grid_constant__ MaskScaleShape shape) {
  using A = Acc<T>;
  __shared__ A of_warps[kWarps][kTileColumns];
  const std::int64_t columns = shape.middle * shape.inner;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::int64_t column_tile = blockIdx.x, row_tile = blockIdx.y;
  const std::int64_t first_row = row_tile * kTileRows, first_column = column_tile * kTileColumns + lane;

  A mask[kLaneColumns], sum[kLaneColumns] = {};
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) {
    const std::int64_t column = first_column + c * 32;
    mask[c] = column < columns ? column_entry<A>(masks, shape, column) : A{0};
  }
  for (int r = warp; r < kTileRows && first_row + r < shape.rows; r += kWarps) {
    const std::int64_t row = first_row + r;
    const A scale = entry<A>(masks.row, row);
    A of_row = 0;
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      const std::int64_t column = first_column + c * 32;
      if (column < columns) {
        const A g = widen(grad[row * columns + column]);
        const A product = g * widen(weight[row * columns + column]);
        of_row += product * mask[c];
        sum[c] += product * scale;
        if (grad_weight != nullptr) grad_weight[row * columns + column] = narrow<T>(scale * mask[c] * g);
      }
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) of_row += __shfl_down_sync(0xffffffffu, of_row, offset);
    if (lane == 0) row_sums[column_tile * shape.rows + row] = of_row;
  }
#pragma unroll
  for (int c = 0; c < kLaneColumns; ++c) of_warps[warp][c * 32 + lane] = sum[c];
  __syncthreads();
  const std::int64_t column = column_tile * kTileColumns + threadIdx.x;
  if (threadIdx.x < kTileColumns && column < columns) {
    A total = 0;
    for (int w = 0; w < kWarps; ++w) total += of_warps[w][threadIdx.x];
    column_sums[row_tile * columns + column] = total;
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    reduce_rows(const A* __restrict__ row_sums, A* __restrict__ grad_row, std::int64_t rows, std::int64_t tiles) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= rows) return;
  double total = 0;
  for (std::int64_t tile = 0; tile < tiles; ++tile) total += row_sums[tile * rows + row];
  grad_row[row] = static_cast<A>(total);
}

// One block for each entry of the mask, and the same in the kernel below.
template <class A>
__global__ void __launch_bounds__(kSumThreads)
    reduce_middle(const A* __restrict__ column_sums, const void* inner_mask, A* __restrict__ grad_middle,
                  const __grid_constant__ MaskScaleShape shape, std::int64_t tiles) {
  const std::int64_t columns = shape.middle * shape.inner;
  const double total = block_sum(tiles * shape.inner, [&](std::int64_t i) {
    const std::int64_t tile = i / shape.inner, inner = i - tile * shape.inner;
    return static_cast<double>(column_sums[tile * columns + blockIdx.x * shape.inner + inner]) *
           entry<A>(inner_mask, inner);
  });
  if (threadIdx.x == 0) grad_middle[blockIdx.x] = static_cast<A>(total);
}

template <class A>
__global__ void __launch_bounds__(kSumThreads)
    reduce_inner(const A* __restrict__ column_sums, const void* middle_mask, A* __restrict__ grad_inner,
                 const __grid_constant__ MaskScaleShape shape, std::int64_t tiles) {
  const double total = block_sum(tiles * shape.middle, [&](std::int64_t i) {
    const std::int64_t middle = i % shape.middle;
    return static_cast<double>(column_sums[i * shape.inner + blockIdx.x]) * entry<A>(middle_mask, middle);
  });
  if (threadIdx.x == 0) grad_inner[blockIdx.x] = static_cast<A>(total);
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("mask_scale: ") + what + ": " + cudaGetErrorString(status));
}

template <class T>
void scale(const void* weight, const Masks& masks, void* out, const MaskScaleShape& shape, cudaStream_t stream) {
  int device = 0;
  int multiprocessors = 0;
  check(cudaGetDevice(&device), "no current device");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "no device attributes");
  const std::int64_t wanted = (shape.rows * shape.columns() + kThreads - 1) / kThreads;
  const std::int64_t most = std::int64_t{multiprocessors} * kBlocksPerMultiprocessor;
  const auto blocks = static_cast<unsigned>(wanted < most ? wanted : most);
  scale_kernel<T><<<blocks, kThreads, 0, stream>>>(static_cast<const T*>(weight), masks, static_cast<T*>(out), shape);
  check(cudaGetLastError(), "launch");
}

std::int64_t column_tiles(const MaskScaleShape& shape) { return (shape.columns() + kTileColumns - 1) / kTileColumns; }
std::int64_t row_tiles(const MaskScaleShape& shape) { return (shape.rows + kTileRows - 1) / kTileRows; }

template <class T>
void backward(const MaskScaleBackward& args, cudaStream_t stream) {
  using A = Acc<T>;
  const MaskScaleShape& shape = args.shape;
  const bool of_masks = args.grad_row != nullptr || args.grad_middle != nullptr || args.grad_inner != nullptr;
  if (!of_masks) {
    if (args.grad_weight != nullptr) scale<T>(args.grad, args.masks, args.grad_weight, shape, stream);
    return;
  }
  auto* row_sums = static_cast<A*>(args.workspace);
  auto* column_sums = row_sums + column_tiles(shape) * shape.rows;
  const dim3 tiles(static_cast<unsigned>(column_tiles(shape)), static_cast<unsigned>(row_tiles(shape)));
  const auto* grad = static_cast<const T*>(args.grad);
  const auto* weight = static_cast<const T*>(args.weight);
  backward_kernel<T><<<tiles, kThreads, 0, stream>>>(grad, weight, args.masks, static_cast<T*>(args.grad_weight),
                                                     row_sums, column_sums, shape);
  check(cudaGetLastError(), "backward launch");
  if (args.grad_row != nullptr) {
    const auto blocks = static_cast<unsigned>((shape.rows + kThreads - 1) / kThreads);
    reduce_rows<A><<<blocks, kThreads, 0, stream>>>(row_sums, static_cast<A*>(args.grad_row), shape.rows,
                                                    column_tiles(shape));
    check(cudaGetLastError(), "reduction launch");
  }
  if (args.grad_middle != nullptr) {
    reduce_middle<A><<<static_cast<unsigned>(shape.middle), kSumThreads, 0, stream>>>(
        column_sums, args.masks.inner, static_cast<A*>(args.grad_middle), shape, row_tiles(shape));
    check(cudaGetLastError(), "reduction launch");
  }
  if (args.grad_inner != nullptr) {
    reduce_inner<A><<<static_cast<unsigned>(shape.inner), kSumThreads, 0, stream>>>(
        column_sums, args.masks.middle, static_cast<A*>(args.grad_inner), shape, row_tiles(shape));
    check(cudaGetLastError(), "reduction launch");
  }
}

}  // namespace
}  // namespace hwnas::cuda::of_mask_scale

namespace hwnas::cuda {

std::int64_t mask_scale_workspace(const MaskScaleShape& shape) {
  return of_mask_scale::column_tiles(shape) * shape.rows + of_mask_scale::row_tiles(shape) * shape.columns();
}

void mask_scale(const MaskScale& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case DType::f32: return of_mask_scale::scale<float>(args.weight, args.masks, args.out, args.shape, on);
    case DType::bf16: return of_mask_scale::scale<__nv_bfloat16>(args.weight, args.masks, args.out, args.shape, on);
    case DType::f64: return of_mask_scale::scale<double>(args.weight, args.masks, args.out, args.shape, on);
  }
}

void mask_scale_backward(const MaskScaleBackward& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case DType::f32: return of_mask_scale::backward<float>(args, on);
    case DType::bf16: return of_mask_scale::backward<__nv_bfloat16>(args, on);
    case DType::f64: return of_mask_scale::backward<double>(args, on);
  }
}

}  // namespace hwnas::cuda
