// Compiled into _cpu (threads) and, with HWNAS_WITH_CUDA, into _cuda (device and stream).

#include "hwnas/dwconv2d.h"

#include "hwnas/arguments.h"
#include "hwnas/dwconv2d_arguments.h"
#include "hwnas/registry.h"
#ifdef HWNAS_WITH_CUDA
#include "hwnas/device.h"
#endif

namespace hwnas::bindings::dwconv2d {
namespace {

using hwnas::Address;
using hwnas::Arguments;
using hwnas::Registration;
using hwnas::DwConv2dShape;
using hwnas::Where;

#ifndef HWNAS_WITH_CUDA
thread_local hwnas::Workspace workspace;
#endif

void forward(Arguments& given) {
  const DwConv2dShape shape = hwnas::dwconv2d_shape(given);
  const std::int64_t unit = hwnas::element_size(shape.dtype);
  hwnas::DwConv2d args{shape,
                       given.pointer(given.address("x"), unit, "x"),
                       given.pointer(given.address("weight"), unit, "weight"),
                       given.optional_pointer(given.address("bias"), unit, "bias"),
                       given.pointer(given.address("y"), unit, "y"),
                       nullptr};
  const Where where = given.where();
  const hwnas::WithoutGil without_gil;
#ifdef HWNAS_WITH_CUDA
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::dwconv2d(args, where.stream);
#else
  args.workspace = workspace.of(HWNAS_PICK(dwconv2d_workspace)(shape, where.threads));
  HWNAS_PICK(dwconv2d)(args, where.threads);
#endif
}

void backward(Arguments& given) {
  const DwConv2dShape shape = hwnas::dwconv2d_shape(given);
  const std::int64_t unit = hwnas::element_size(shape.dtype);
  const Address grad = given.address("grad"), x = given.address("x"), weight = given.address("weight");
  const Address grad_x = given.address("grad_x"), grad_weight = given.address("grad_weight");
  const Address grad_bias = given.address("grad_bias");
  const bool reads_x = grad_weight != 0 || (grad_x != 0 && shape.pre_relu);
  hwnas::DwConv2dBackward args{shape,
                               given.pointer(grad, unit, "grad"),
                               reads_x ? given.pointer(x, unit, "x") : nullptr,
                               given.pointer(weight, unit, "weight"),
                               given.optional_pointer(grad_x, unit, "grad_x"),
                               given.optional_pointer(grad_weight, unit, "grad_weight"),
                               given.optional_pointer(grad_bias, unit, "grad_bias"),
                               nullptr};
#ifdef HWNAS_WITH_CUDA
  const Address partials = given.address("partials");
  if (grad_weight != 0 || grad_bias != 0) args.workspace = given.pointer(partials, 8, "partials");
#endif
  const Where where = given.where();
  const hwnas::WithoutGil without_gil;
#ifdef HWNAS_WITH_CUDA
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::dwconv2d_backward(args, where.stream);
#else
  args.workspace = workspace.of(HWNAS_PICK(dwconv2d_backward_workspace)(shape, where.threads));
  HWNAS_PICK(dwconv2d_backward)(args, where.threads);
#endif
}

#ifdef HWNAS_WITH_CUDA
PyObject* partials(Arguments& given) {
  const DwConv2dShape shape = hwnas::dwconv2d_shape(given);
  given.end();
  return PyLong_FromLongLong(hwnas::cuda::dwconv2d_backward_workspace(shape));
}
#endif

const Registration registration({
    {"dwconv2d", forward, "Depthwise convolution by a part of a larger weight."},
    {"dwconv2d_backward", backward, "Gradients of dwconv2d."},
#ifdef HWNAS_WITH_CUDA
    {"dwconv2d_partials", partials, "Bytes in the workspace of dwconv2d_backward."},
#endif
});

}  // namespace
}  // namespace hwnas::bindings::dwconv2d
