#pragma once

// Stands for the CUDA runtime where csrc/cuda/*.cu are compiled for the CPU, to test their arithmetic without a GPU. A
// block runs as fibres, one for each thread, that take turns in a fixed order: each runs until it waits for others. Blocks
// run one after the other. tests/kernels/test_cuda_on_host.py rewrites kernel<<<...>>>(...) into launch() and builds it all.
//
// What the sources must keep to:
// - launches are written kernel<<<blocks, threads, 0, stream>>>(...); with no shared memory of a size chosen at run time;
// - kernels use threadIdx, blockIdx, blockDim, gridDim, __shared__, __syncthreads, __syncwarp, __shfl_sync, its _down and
//   _xor forms with a full mask, and the conversions of cuda_bf16.h; what else they need is added here;
// - all threads of a warp reach the same warp-wide call and all threads of a block the same __syncthreads, unless they
//   have ended: anything else is reported;
// - no asynchronous copies, no tensor cores, no cooperative groups, no inline assembly.
//
// What this cannot see: speed, races between blocks, races inside a block that show in neither order of the threads.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor
};
using cudaStream_t = struct CUstream_st*;

inline const char* cudaGetErrorString(cudaError_t status) { return status == cudaSuccess ? "no error" : "error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  // Few multiprocessors: grids that are limited by them loop over their work.
  *value = attribute == cudaDevAttrMultiProcessorCount ? 2 : attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
  return cudaSuccess;
}

namespace cuda_host {

using Body = std::function<void()>;

void launch(dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream, const Body& body);

// Waits until all threads of the block, or of the warp, that have not ended wait for the same.
void wait_for_block();
void wait_for_warp();

// The index in its block of the running thread, and what the threads of its warp hand to each other.
int thread_index();
inline double exchanged[1024];

template <class T>
T exchange(T value, int from) {
  static_assert(sizeof(T) <= sizeof(double));
  const int self = thread_index();
  *reinterpret_cast<T*>(&exchanged[self]) = value;
  wait_for_warp();
  const T found = *reinterpret_cast<T*>(&exchanged[from]);
  wait_for_warp();
  return found;
}

inline void check_mask(unsigned mask) {
  if (mask != 0xffffffffu) std::abort();
}

}  // namespace cuda_host

inline void __syncthreads() { cuda_host::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_host::check_mask(mask);
  cuda_host::wait_for_warp();
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  cuda_host::check_mask(mask);
  return cuda_host::exchange(value, cuda_host::thread_index() / 32 * 32 + lane % 32);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int offset) {
  cuda_host::check_mask(mask);
  const int self = cuda_host::thread_index();
  return cuda_host::exchange(value, self % 32 + offset < 32 ? self + offset : self);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  cuda_host::check_mask(mask);
  return cuda_host::exchange(value, cuda_host::thread_index() ^ bits);
}
