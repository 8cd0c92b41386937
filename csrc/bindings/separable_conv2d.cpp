// In _cpu only: on a GPU the pointwise convolution is that of PyTorch's libraries.
#ifndef HWNAS_WITH_CUDA

#include "hwnas/separable_conv2d.h"

#include <pybind11/stl.h>

#include "hwnas/check.h"
#include "hwnas/dwconv2d_arguments.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::separable_conv2d {
namespace {

namespace py = pybind11;
using hwnas::Address;
using hwnas::SeparableConv2dShape;
using Arguments = hwnas::DwConv2dArguments;

constexpr hwnas::Check check{"separable_conv2d"};
constexpr std::int64_t kUnit = sizeof(float);

thread_local hwnas::Workspace workspace;

SeparableConv2dShape shape_of(const Arguments& arguments, std::int64_t out_channels) {
  const SeparableConv2dShape shape{hwnas::dwconv2d_shape(check, arguments), out_channels};
  const hwnas::DwConv2dShape& s = shape.depthwise;
  if (s.dtype != hwnas::DType::f32) check.fail("dtype is not 0 (float32), for which alone there is a kernel");
  if (s.full_kernel.height != s.kernel.height || s.full_kernel.width != s.kernel.width) {
    check.fail("kernel is only a part of the weight");
  }
  if (out_channels < 1) check.fail("out_channels is " + std::to_string(out_channels) + ", expected at least 1");
  return shape;
}

void forward(const Arguments& arguments, std::int64_t out_channels, Address x, Address depthwise, Address pointwise,
             Address y, int threads) {
  hwnas::SeparableConv2d args{shape_of(arguments, out_channels),
                              check.address(x, kUnit, "x"),
                              check.address(depthwise, kUnit, "depthwise"),
                              check.address(pointwise, kUnit, "pointwise"),
                              check.address(y, kUnit, "y"),
                              nullptr};
  check.where({threads});
  const py::gil_scoped_release release;
  args.workspace = workspace.of(HWNAS_PICK(separable_conv2d_workspace)(args.shape, threads));
  HWNAS_PICK(separable_conv2d)(args, threads);
}

void backward(const Arguments& arguments, std::int64_t out_channels, Address grad, Address x, Address depthwise,
              Address pointwise, Address grad_x, Address grad_depthwise, Address grad_pointwise, int threads) {
  hwnas::SeparableConv2dBackward args{shape_of(arguments, out_channels),
                                      check.address(grad, kUnit, "grad"),
                                      check.address(x, kUnit, "x"),
                                      check.address(depthwise, kUnit, "depthwise"),
                                      check.address(pointwise, kUnit, "pointwise"),
                                      hwnas::optional_address(check, grad_x, kUnit, "grad_x"),
                                      hwnas::optional_address(check, grad_depthwise, kUnit, "grad_depthwise"),
                                      hwnas::optional_address(check, grad_pointwise, kUnit, "grad_pointwise"),
                                      nullptr};
  check.where({threads});
  const py::gil_scoped_release release;
  args.workspace = workspace.of(HWNAS_PICK(separable_conv2d_backward_workspace)(args.shape, threads));
  HWNAS_PICK(separable_conv2d_backward)(args, threads);
}

}  // namespace

HWNAS_BINDING(module) {
  module.def("separable_conv2d", &forward, py::arg("arguments"), py::arg("out_channels"), py::arg("x"),
             py::arg("depthwise"), py::arg("pointwise"), py::arg("y"), py::arg("threads"));
  module.def("separable_conv2d_backward", &backward, py::arg("arguments"), py::arg("out_channels"), py::arg("grad"),
             py::arg("x"), py::arg("depthwise"), py::arg("pointwise"), py::arg("grad_x"), py::arg("grad_depthwise"),
             py::arg("grad_pointwise"), py::arg("threads"));
}

}  // namespace hwnas::bindings::separable_conv2d
#endif
