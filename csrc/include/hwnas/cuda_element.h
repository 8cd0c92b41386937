#pragma once

// How the CUDA kernels read an element type into its accumulator type and write it back. Only .cu files include this.
// It is in an anonymous namespace, as the kernels are.

#include <cuda_bf16.h>

namespace hwnas::cuda {
namespace {

template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using Acc = typename Accumulator<T>::type;

__device__ float widen(float value) { return value; }
__device__ double widen(double value) { return value; }
__device__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ T narrow(Acc<T> value) {
  return value;
}
template <>
__device__ __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

}  // namespace
}  // namespace hwnas::cuda
