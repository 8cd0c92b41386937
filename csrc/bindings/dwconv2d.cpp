// Compiled into _cpu (threads) and, with HWNAS_WITH_CUDA, into _cuda (device and stream).

#include "hwnas/dwconv2d.h"

#include <pybind11/stl.h>

#include "hwnas/check.h"
#include "hwnas/dwconv2d_arguments.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::dwconv2d {
namespace {

namespace py = pybind11;
using hwnas::Address;
using hwnas::DwConv2dShape;
using hwnas::Where;
using Arguments = hwnas::DwConv2dArguments;

constexpr hwnas::Check check{"dwconv2d"};

#ifndef HWNAS_WITH_CUDA
thread_local hwnas::Workspace workspace;
#endif

void forward(const Arguments& arguments, Address x, Address weight, Address bias, Address y, const Where& where) {
  const DwConv2dShape shape = hwnas::dwconv2d_shape(check, arguments);
  const std::int64_t unit = hwnas::element_size(shape.dtype);
  hwnas::DwConv2d args{shape,
                       check.address(x, unit, "x"),
                       check.address(weight, unit, "weight"),
                       hwnas::optional_address(check, bias, unit, "bias"),
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
  const DwConv2dShape shape = hwnas::dwconv2d_shape(check, arguments);
  const std::int64_t unit = hwnas::element_size(shape.dtype);
  const bool reads_x = grad_weight != 0 || (grad_x != 0 && shape.pre_relu);
  hwnas::DwConv2dBackward args{shape,
                               check.address(grad, unit, "grad"),
                               reads_x ? check.address(x, unit, "x") : nullptr,
                               check.address(weight, unit, "weight"),
                               hwnas::optional_address(check, grad_x, unit, "grad_x"),
                               hwnas::optional_address(check, grad_weight, unit, "grad_weight"),
                               hwnas::optional_address(check, grad_bias, unit, "grad_bias"),
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
      [](const Arguments& arguments) { return hwnas::cuda::dwconv2d_backward_workspace(hwnas::dwconv2d_shape(check, arguments)); },
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
