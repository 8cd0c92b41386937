#pragma once

// Element types that the kernels take. The numbers are the ones that Python passes (hwnas/kernels/native.py).
// float32 and bfloat16 accumulate in float, float64 in double: that type also holds the mixture weights.

#include <cstdint>

namespace hwnas {

enum class DType : int { f32 = 0, bf16 = 1, f64 = 2 };

constexpr std::int64_t element_size(DType dtype) {
  return dtype == DType::f32 ? 4 : dtype == DType::bf16 ? 2 : 8;
}

constexpr std::int64_t accumulator_size(DType dtype) { return dtype == DType::f64 ? 8 : 4; }

}  // namespace hwnas
