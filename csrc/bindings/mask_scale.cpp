// Compiled into _cpu (threads) and, with HWNAS_WITH_CUDA, into _cuda (device and stream).

#include "hwnas/mask_scale.h"

#include <memory>

#include "hwnas/arguments.h"
#include "hwnas/registry.h"
#ifdef HWNAS_WITH_CUDA
#include "hwnas/device.h"
#endif

namespace hwnas::bindings::mask_scale {
namespace {

using hwnas::Address;
using hwnas::Addresses;
using hwnas::Arguments;
using hwnas::Registration;
using hwnas::DType;
using hwnas::Where;

hwnas::MaskScaleShape shape_of(Arguments& given) {
  const auto sizes = given.sizes<3>("shape", 1);
  return {sizes[0], sizes[1], sizes[2]};
}

// The next argument, an address for each axis: of a mask, or of its gradient.
struct Three {
  void *row, *middle, *inner;
};

Three next_three(Arguments& given, std::int64_t scalar, const char* name) {
  const Addresses three = given.addresses(name);
  given.check_count(name, three.size(), 3);
  const auto pointers = given.pointers(three, scalar, name, true);
  return {pointers[0], pointers[1], pointers[2]};
}

hwnas::Masks next_masks(Arguments& given, std::int64_t scalar) {
  const Three masks = next_three(given, scalar, "masks");
  return {masks.row, masks.middle, masks.inner};
}

void forward(Arguments& given) {
  const DType dtype = given.dtype("dtype");
  const std::int64_t unit = hwnas::element_size(dtype);
  hwnas::MaskScale args{dtype,
                        given.pointer(given.address("weight"), unit, "weight"),
                        next_masks(given, hwnas::accumulator_size(dtype)),
                        given.pointer(given.address("out"), unit, "out"),
                        nullptr,
                        shape_of(given)};
  const Where where = given.where();
  const hwnas::WithoutGil without_gil;
#ifdef HWNAS_WITH_CUDA
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::mask_scale(args, where.stream);
#else
  const std::unique_ptr<double[]> workspace(new double[hwnas::cpu::mask_scale_workspace(args.shape, false)]);
  args.workspace = workspace.get();
  HWNAS_PICK(mask_scale)(args, where.threads);
#endif
}

void backward(Arguments& given) {
  const DType dtype = given.dtype("dtype");
  const std::int64_t unit = hwnas::element_size(dtype);
  const std::int64_t scalar = hwnas::accumulator_size(dtype);
  const Address grad = given.address("grad"), weight = given.address("weight");
  const hwnas::Masks masks = next_masks(given, scalar);
  const Address grad_weight = given.address("grad_weight");
  const Three grads = next_three(given, scalar, "grad_masks");
  const bool of_masks = grads.row != nullptr || grads.middle != nullptr || grads.inner != nullptr;
  void* workspace = nullptr;
#ifdef HWNAS_WITH_CUDA
  const Address scratch = given.address("workspace");
  if (of_masks) workspace = given.pointer(scratch, scalar, "workspace");
#endif
  hwnas::MaskScaleBackward args{dtype,
                                given.pointer(grad, unit, "grad"),
                                of_masks ? given.pointer(weight, unit, "weight") : nullptr,
                                masks,
                                given.optional_pointer(grad_weight, unit, "grad_weight"),
                                grads.row,
                                grads.middle,
                                grads.inner,
                                workspace,
                                shape_of(given)};
  const Where where = given.where();
  const hwnas::WithoutGil without_gil;
#ifdef HWNAS_WITH_CUDA
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::mask_scale_backward(args, where.stream);
#else
  const std::unique_ptr<double[]> own(new double[hwnas::cpu::mask_scale_workspace(args.shape, true)]);
  args.workspace = own.get();
  HWNAS_PICK(mask_scale_backward)(args, where.threads);
#endif
}

#ifdef HWNAS_WITH_CUDA
PyObject* workspace(Arguments& given) {
  const hwnas::MaskScaleShape shape = shape_of(given);
  given.end();
  return PyLong_FromLongLong(hwnas::cuda::mask_scale_workspace(shape));
}
#endif

const Registration registration({
    {"mask_scale", forward, "A weight times the product of a mask for each axis."},
    {"mask_scale_backward", backward, "Gradients of mask_scale."},
#ifdef HWNAS_WITH_CUDA
    {"mask_scale_workspace", workspace, "Accumulators in the workspace of mask_scale_backward."},
#endif
});

}  // namespace
}  // namespace hwnas::bindings::mask_scale
