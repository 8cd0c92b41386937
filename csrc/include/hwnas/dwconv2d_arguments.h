#pragma once

// What bindings of operators that convolve by depth have in common: their arguments, checked, and memory to work in.

#include <array>
#include <cstdint>
#include <new>
#include <string>

#include "hwnas/arguments.h"
#include "hwnas/dwconv2d.h"

namespace hwnas {

inline Size2d size_of(const std::array<std::int64_t, 2>& pair) { return {pair[0], pair[1]}; }

// The next argument, a tuple: dtype, channels_last, pre_relu, size of x (N, C, H, W), size of the full weight (channels,
// height, width), kernel, stride, padding, dilation.
inline DwConv2dShape dwconv2d_shape(Arguments& given) {
  Arguments group = given.group("arguments");
  const DType dtype = group.dtype("dtype");
  const bool channels_last = group.flag("channels_last");
  const bool pre_relu = group.flag("pre_relu");
  const auto size = group.sizes<4>("size", 1);
  const auto weight_size = group.sizes<3>("weight_size", 1);
  const auto kernel = group.sizes<2>("kernel", 1);
  const auto stride = group.sizes<2>("stride", 1);
  const auto padding = group.sizes<2>("padding", 0);
  const auto dilation = group.sizes<2>("dilation", 1);
  group.end();
  if (size[1] > weight_size[0]) {
    given.fail("x has " + std::to_string(size[1]) + " channels and the weight " + std::to_string(weight_size[0]));
  }
  std::array<std::int64_t, 2> out;
  std::array<std::int64_t, 2> start;
  for (std::size_t k = 0; k < 2; ++k) {
    const std::int64_t full = weight_size[k + 1];
    if (kernel[k] > full) {
      given.fail("kernel[" + std::to_string(k) + "] is " + std::to_string(kernel[k]) + ", that of the weight is " +
                 std::to_string(full));
    }
    start[k] = (full - kernel[k]) / 2;
    const std::int64_t room = size[k + 2] + 2 * padding[k] - dilation[k] * (kernel[k] - 1) - 1;
    if (room < 0) given.fail("the kernel is larger than the padded image in dimension " + std::to_string(k + 2));
    out[k] = room / stride[k] + 1;
  }
  return {dtype,
          channels_last,
          pre_relu,
          size[0],
          size[1],
          {size[2], size[3]},
          size_of(out),
          size_of(kernel),
          {weight_size[1], weight_size[2]},
          size_of(start),
          size_of(stride),
          size_of(padding),
          size_of(dilation)};
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
