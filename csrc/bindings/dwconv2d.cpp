// Compiled into _cpu (threads) and, with HWNAS_WITH_CUDA, into _cuda (device and stream).

#include "hwnas/dwconv2d.h"

#include <pybind11/stl.h>

#include <array>
#include <new>
#include <string>
#include <tuple>

#include "hwnas/check.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::dwconv2d {
namespace {

namespace py = pybind11;
using hwnas::Address;
using hwnas::DwConv2dShape;
using hwnas::Size2d;
using hwnas::Where;

using Pair = std::array<std::int64_t, 2>;

constexpr hwnas::Check check{"dwconv2d"};

// What Python passes for a DwConv2dShape: dtype, channels_last, pre_relu, size of x (N, C, H, W), size of the full
// weight (channels, height, width), kernel, stride, padding, dilation.
using Arguments =
    std::tuple<int, bool, bool, std::array<std::int64_t, 4>, std::array<std::int64_t, 3>, Pair, Pair, Pair, Pair>;

template <std::size_t Count>
void check_least(const std::array<std::int64_t, Count>& values, std::int64_t least, const char* name) {
  for (std::size_t k = 0; k < Count; ++k) {
    if (values[k] < least) {
      check.fail(std::string(name) + "[" + std::to_string(k) + "] is " + std::to_string(values[k]) +
                 ", expected at least " + std::to_string(least));
    }
  }
}

Size2d size_of(const Pair& pair) { return {pair[0], pair[1]}; }

DwConv2dShape shape_of(const Arguments& arguments) {
  const auto& [dtype, channels_last, pre_relu, size, weight_size, kernel, stride, padding, dilation] = arguments;
  check_least(size, 1, "size");
  check_least(kernel, 1, "kernel");
  check_least(stride, 1, "stride");
  check_least(padding, 0, "padding");
  check_least(dilation, 1, "dilation");
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

void* optional_address(Address value, std::int64_t alignment, const char* name) {
  return value == 0 ? nullptr : check.address(value, alignment, name);
}

#ifndef HWNAS_WITH_CUDA
constexpr std::align_val_t kAlignment{hwnas::cpu::kDwConv2dAlignment};

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
  void* pointer_ = nullptr;
  std::int64_t bytes_ = 0;
};

thread_local Workspace workspace;
#endif

void forward(const Arguments& arguments, Address x, Address weight, Address bias, Address y, const Where& where) {
  const DwConv2dShape shape = shape_of(arguments);
  const std::int64_t unit = hwnas::element_size(shape.dtype);
  hwnas::DwConv2d args{shape,
                       check.address(x, unit, "x"),
                       check.address(weight, unit, "weight"),
                       optional_address(bias, unit, "bias"),
                       check.address(y, unit, "y"),
                       nullptr};
#ifdef HWNAS_WITH_CUDA
  const py::gil_scoped_release release;
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::dwconv2d(args, reinterpret_cast<void*>(where.stream));
#else
  check.where(where);
  const py::gil_scoped_release release;
  args.workspace = workspace.of(HWNAS_PICK(dwconv2d_workspace)(shape, where.threads));
  HWNAS_PICK(dwconv2d)(args, where.threads);
#endif
}

void backward(const Arguments& arguments, Address grad, Address x, Address weight, Address grad_x, Address grad_weight,
              Address grad_bias, Address partials, const Where& where) {
  const DwConv2dShape shape = shape_of(arguments);
  const std::int64_t unit = hwnas::element_size(shape.dtype);
  const bool reads_x = grad_weight != 0 || (grad_x != 0 && shape.pre_relu);
  hwnas::DwConv2dBackward args{shape,
                               check.address(grad, unit, "grad"),
                               reads_x ? check.address(x, unit, "x") : nullptr,
                               check.address(weight, unit, "weight"),
                               optional_address(grad_x, unit, "grad_x"),
                               optional_address(grad_weight, unit, "grad_weight"),
                               optional_address(grad_bias, unit, "grad_bias"),
                               nullptr};
#ifdef HWNAS_WITH_CUDA
  if (grad_weight != 0 || grad_bias != 0) args.workspace = check.address(partials, 8, "partials");
  const py::gil_scoped_release release;
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::dwconv2d_backward(args, reinterpret_cast<void*>(where.stream));
#else
  (void)partials;
  check.where(where);
  const py::gil_scoped_release release;
  args.workspace = workspace.of(HWNAS_PICK(dwconv2d_backward_workspace)(shape, where.threads));
  HWNAS_PICK(dwconv2d_backward)(args, where.threads);
#endif
}

}  // namespace

HWNAS_BINDING(module) {
#ifdef HWNAS_WITH_CUDA
  module.def(
      "dwconv2d_partials",
      [](const Arguments& arguments) { return hwnas::cuda::dwconv2d_backward_workspace(shape_of(arguments)); },
      py::arg("arguments"), "Bytes in the workspace of dwconv2d_backward.");
  module.def(
      "dwconv2d",
      [](const Arguments& arguments, Address x, Address weight, Address bias, Address y, int device, Address stream) {
        forward(arguments, x, weight, bias, y, Where{device, stream});
      },
      py::arg("arguments"), py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("y"), py::arg("device"),
      py::arg("stream"));
  module.def(
      "dwconv2d_backward",
      [](const Arguments& arguments, Address grad, Address x, Address weight, Address grad_x, Address grad_weight,
         Address grad_bias, Address partials, int device, Address stream) {
        backward(arguments, grad, x, weight, grad_x, grad_weight, grad_bias, partials, Where{device, stream});
      },
      py::arg("arguments"), py::arg("grad"), py::arg("x"), py::arg("weight"), py::arg("grad_x"), py::arg("grad_weight"),
      py::arg("grad_bias"), py::arg("partials"), py::arg("device"), py::arg("stream"));
#else
  module.def(
      "dwconv2d",
      [](const Arguments& arguments, Address x, Address weight, Address bias, Address y, int threads) {
        forward(arguments, x, weight, bias, y, Where{threads});
      },
      py::arg("arguments"), py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("y"), py::arg("threads"));
  module.def(
      "dwconv2d_backward",
      [](const Arguments& arguments, Address grad, Address x, Address weight, Address grad_x, Address grad_weight,
         Address grad_bias, int threads) {
        backward(arguments, grad, x, weight, grad_x, grad_weight, grad_bias, 0, Where{threads});
      },
      py::arg("arguments"), py::arg("grad"), py::arg("x"), py::arg("weight"), py::arg("grad_x"), py::arg("grad_weight"),
      py::arg("grad_bias"), py::arg("threads"));
#endif
}

}  // namespace hwnas::bindings::dwconv2d
