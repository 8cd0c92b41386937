// In _cpu only: on a GPU the pointwise convolution is that of PyTorch's libraries.
#ifndef HWNAS_WITH_CUDA

#include "hwnas/separable_conv2d.h"

#include "hwnas/arguments.h"
#include "hwnas/dwconv2d_arguments.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::separable_conv2d {
namespace {

using hwnas::Address;
using hwnas::Arguments;
using hwnas::Registration;
using hwnas::SeparableConv2dShape;

constexpr std::int64_t kUnit = sizeof(float);

thread_local hwnas::Workspace workspace;

SeparableConv2dShape shape_of(Arguments& given) {
  const hwnas::DwConv2dShape depthwise = hwnas::dwconv2d_shape(given);
  if (depthwise.dtype != hwnas::DType::f32) given.fail("dtype is not 0 (float32), for which alone there is a kernel");
  if (depthwise.full_kernel.height != depthwise.kernel.height ||
      depthwise.full_kernel.width != depthwise.kernel.width) {
    given.fail("kernel is only a part of the weight");
  }
  return {depthwise, given.integer("out_channels", 1)};
}

void* next_pointer(Arguments& given, const char* name) { return given.pointer(given.address(name), kUnit, name); }

void* next_optional_pointer(Arguments& given, const char* name) {
  return given.optional_pointer(given.address(name), kUnit, name);
}

void forward(Arguments& given) {
  hwnas::SeparableConv2d args{shape_of(given),
                              next_pointer(given, "x"),
                              next_pointer(given, "depthwise"),
                              next_pointer(given, "pointwise"),
                              next_pointer(given, "y"),
                              nullptr};
  const int threads = given.where().threads;
  const hwnas::WithoutGil without_gil;
  args.workspace = workspace.of(HWNAS_PICK(separable_conv2d_workspace)(args.shape, threads));
  HWNAS_PICK(separable_conv2d)(args, threads);
}

void backward(Arguments& given) {
  hwnas::SeparableConv2dBackward args{shape_of(given),
                                      next_pointer(given, "grad"),
                                      next_pointer(given, "x"),
                                      next_pointer(given, "depthwise"),
                                      next_pointer(given, "pointwise"),
                                      next_optional_pointer(given, "grad_x"),
                                      next_optional_pointer(given, "grad_depthwise"),
                                      next_optional_pointer(given, "grad_pointwise"),
                                      nullptr};
  const int threads = given.where().threads;
  const hwnas::WithoutGil without_gil;
  args.workspace = workspace.of(HWNAS_PICK(separable_conv2d_backward_workspace)(args.shape, threads));
  HWNAS_PICK(separable_conv2d_backward)(args, threads);
}

const Registration registration({
    {"separable_conv2d", forward, "A depthwise and a pointwise convolution after each other."},
    {"separable_conv2d_backward", backward, "Gradients of separable_conv2d."},
});

}  // namespace
}  // namespace hwnas::bindings::separable_conv2d
#endif
