#pragma once

// What bindings of operators that convolve by depth have in common: their arguments, checked, and memory to work in.

#include <array>
#include <cstdint>
#include <new>
#include <string>
#include <tuple>

#include "hwnas/check.h"
#include "hwnas/dwconv2d.h"

namespace hwnas {

using Pair = std::array<std::int64_t, 2>;

// What Python passes for a DwConv2dShape: dtype, channels_last, pre_relu, size of x (N, C, H, W), size of the full
// weight (channels, height, width), kernel, stride, padding, dilation.
using DwConv2dArguments =
    std::tuple<int, bool, bool, std::array<std::int64_t, 4>, std::array<std::int64_t, 3>, Pair, Pair, Pair, Pair>;

template <std::size_t Count>
void check_least(const Check& check, const std::array<std::int64_t, Count>& values, std::int64_t least,
                 const char* name) {
  for (std::size_t k = 0; k < Count; ++k) {
    if (values[k] < least) {
      check.fail(std::string(name) + "[" + std::to_string(k) + "] is " + std::to_string(values[k]) +
                 ", expected at least " + std::to_string(least));
    }
  }
}

inline Size2d size_of(const Pair& pair) { return {pair[0], pair[1]}; }

inline DwConv2dShape dwconv2d_shape(const Check& check, const DwConv2dArguments& arguments) {
  const auto& [dtype, channels_last, pre_relu, size, weight_size, kernel, stride, padding, dilation] = arguments;
  check_least(check, size, 1, "size");
  check_least(check, kernel, 1, "kernel");
  check_least(check, stride, 1, "stride");
  check_least(check, padding, 0, "padding");
  check_least(check, dilation, 1, "dilation");
  if (size[1] > weight_size[0]) {
    check.fail("x has " + std::to_string(size[1]) + " channels and the weight " + std::to_string(weight_size[0]));
  }
  Pair out;
  Pair start;
  for (std::size_t k = 0; k < 2; ++k) {
    const std::int64_t full = weight_size[k + 1];
    if (kernel[k] > full) {
      check.fail("kernel[" + std::to_string(k) + "] is " + std::to_string(kernel[k]) + ", that of the weight is " +
                 std::to_string(full));
    }
    start[k] = (full - kernel[k]) / 2;
    const std::int64_t room = size[k + 2] + 2 * padding[k] - dilation[k] * (kernel[k] - 1) - 1;
    if (room < 0) check.fail("the kernel is larger than the padded image in dimension " + std::to_string(k + 2));
    out[k] = room / stride[k] + 1;
  }
  return {check.dtype(dtype), channels_last,   pre_relu,         size[0],          size[1],
          {size[2], size[3]}, size_of(out),    size_of(kernel),  {weight_size[1], weight_size[2]},
          size_of(start),     size_of(stride), size_of(padding), size_of(dilation)};
}

inline void* optional_address(const Check& check, Address value, std::int64_t alignment, const char* name) {
  return value == 0 ? nullptr : check.address(value, alignment, name);
}

#ifndef HWNAS_WITH_CUDA
// Memory for a call. A thread keeps the largest for its next calls: pages fresh from the system cost more time than the
// work on a small image. Where accesses past the end are looked for, each call gets memory of just its size.
class Workspace {
 public:
  ~Workspace() { ::operator delete(pointer_, kAlignment); }

  void* of(std::int64_t bytes) {
#ifdef HWNAS_SANITIZE
    bytes_ = 0;
#endif
    if (bytes > bytes_) {
      ::operator delete(pointer_, kAlignment);
      pointer_ = nullptr;
      bytes_ = 0;
      pointer_ = ::operator new(static_cast<std::size_t>(bytes), kAlignment);
      bytes_ = bytes;
    }
    return pointer_;
  }

 private:
  static constexpr std::align_val_t kAlignment{cpu::kDwConv2dAlignment};
  void* pointer_ = nullptr;
  std::int64_t bytes_ = 0;
};
#endif

}  // namespace hwnas
