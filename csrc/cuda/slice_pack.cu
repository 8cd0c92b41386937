// One thread for each element that is written; neighbours are written, and mostly read, by neighbours.

#include "hwnas/slice_pack.h"

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace hwnas::cuda::of_slice_pack {
namespace {

constexpr int kThreads = 256;

std::int64_t elements(const std::int64_t* sizes) {
  std::int64_t product = 1;
  for (int d = 0; d < kSliceRank; ++d) product *= sizes[d];
  return product;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const T* __restrict__ whole, T* __restrict__ part, const __grid_constant__ Box box,
                std::int64_t count) {
  const std::int64_t to = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (to >= count) return;
  std::int64_t rest = to, from = 0, stride = 1;
#pragma unroll
  for (int d = kSliceRank - 1; d >= 0; --d) {
    from += (rest % box.size[d] + box.start[d]) * stride;
    rest /= box.size[d];
    stride *= box.whole[d];
  }
  part[to] = whole[from];
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const T* __restrict__ part, T* __restrict__ whole, const __grid_constant__ Box box,
                  std::int64_t count) {
  const std::int64_t to = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (to >= count) return;
  std::int64_t rest = to, from = 0, stride = 1;
  bool inside = true;
#pragma unroll
  for (int d = kSliceRank - 1; d >= 0; --d) {
    const std::int64_t at = rest % box.whole[d] - box.start[d];
    inside = inside && at >= 0 && at < box.size[d];
    from += at * stride;
    rest /= box.whole[d];
    stride *= box.size[d];
  }
  whole[to] = inside ? part[from] : T{0};
}

void check(cudaError_t status, const char* op) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(op) + ": launch: " + cudaGetErrorString(status));
}

unsigned blocks(std::int64_t count) { return static_cast<unsigned>((count + kThreads - 1) / kThreads); }

template <class T>
void pack(const SlicePack& args, cudaStream_t stream) {
  const std::int64_t count = elements(args.box.size);
  pack_kernel<T><<<blocks(count), kThreads, 0, stream>>>(static_cast<const T*>(args.source),
                                                         static_cast<T*>(args.target), args.box, count);
  check(cudaGetLastError(), "slice_pack");
}

template <class T>
void unpack(const SlicePack& args, cudaStream_t stream) {
  const std::int64_t count = elements(args.box.whole);
  unpack_kernel<T><<<blocks(count), kThreads, 0, stream>>>(static_cast<const T*>(args.source),
                                                           static_cast<T*>(args.target), args.box, count);
  check(cudaGetLastError(), "slice_unpack");
}

}  // namespace
}  // namespace hwnas::cuda::of_slice_pack

namespace hwnas::cuda {

void slice_pack(const SlicePack& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.element_size) {
    case 1: return of_slice_pack::pack<std::uint8_t>(args, on);
    case 2: return of_slice_pack::pack<std::uint16_t>(args, on);
    case 4: return of_slice_pack::pack<std::uint32_t>(args, on);
    default: return of_slice_pack::pack<std::uint64_t>(args, on);
  }
}

void slice_unpack(const SlicePack& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.element_size) {
    case 1: return of_slice_pack::unpack<std::uint8_t>(args, on);
    case 2: return of_slice_pack::unpack<std::uint16_t>(args, on);
    case 4: return of_slice_pack::unpack<std::uint32_t>(args, on);
    default: return of_slice_pack::unpack<std::uint64_t>(args, on);
  }
}

}  // namespace hwnas::cuda
