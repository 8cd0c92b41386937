// Compiled into _cpu (threads) and, with HWNAS_WITH_CUDA, into _cuda (device and stream).

#include "hwnas/mask_scale.h"

#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>

#include "hwnas/check.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::mask_scale {
namespace {

namespace py = pybind11;
using hwnas::Address;
using hwnas::DType;
using hwnas::Where;
using Sizes = std::array<std::int64_t, 3>;
using Three = std::array<Address, 3>;

constexpr hwnas::Check check{"mask_scale"};

hwnas::MaskScaleShape shape_of(const Sizes& sizes) {
  for (int axis = 0; axis < 3; ++axis) {
    if (sizes[axis] < 1) {
      check.fail("shape[" + std::to_string(axis) + "] is " + std::to_string(sizes[axis]) + ", expected at least 1");
    }
  }
  return {sizes[0], sizes[1], sizes[2]};
}

void* optional(Address value, std::int64_t alignment, const char* name, std::int64_t index = -1) {
  return value == 0 ? nullptr : check.address(value, alignment, name, index);
}

hwnas::Masks masks_of(const Three& masks, std::int64_t scalar) {
  return {optional(masks[0], scalar, "masks", 0), optional(masks[1], scalar, "masks", 1),
          optional(masks[2], scalar, "masks", 2)};
}

void forward(int dtype_code, Address weight, const Three& masks, Address out, const Sizes& sizes, const Where& where) {
  const DType dtype = check.dtype(dtype_code);
  const std::int64_t unit = hwnas::element_size(dtype);
  hwnas::MaskScale args{dtype,
                        check.address(weight, unit, "weight"),
                        masks_of(masks, hwnas::accumulator_size(dtype)),
                        check.address(out, unit, "out"),
                        nullptr,
                        shape_of(sizes)};
#ifdef HWNAS_WITH_CUDA
  const py::gil_scoped_release release;
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::mask_scale(args, reinterpret_cast<void*>(where.stream));
#else
  check.where(where);
  const py::gil_scoped_release release;
  const std::unique_ptr<double[]> workspace(new double[hwnas::cpu::mask_scale_workspace(args.shape, false)]);
  args.workspace = workspace.get();
  HWNAS_PICK(mask_scale)(args, where.threads);
#endif
}

void backward(int dtype_code, Address grad, Address weight, const Three& masks, Address grad_weight,
              const Three& grad_masks, Address device_workspace, const Sizes& sizes, const Where& where) {
  const DType dtype = check.dtype(dtype_code);
  const std::int64_t unit = hwnas::element_size(dtype);
  const std::int64_t scalar = hwnas::accumulator_size(dtype);
  const hwnas::Masks grads = masks_of(grad_masks, scalar);
  const bool of_masks = grads.row != nullptr || grads.middle != nullptr || grads.inner != nullptr;
  hwnas::MaskScaleBackward args{dtype,
                                check.address(grad, unit, "grad"),
                                of_masks ? check.address(weight, unit, "weight") : nullptr,
                                masks_of(masks, scalar),
                                optional(grad_weight, unit, "grad_weight"),
                                const_cast<void*>(grads.row),
                                const_cast<void*>(grads.middle),
                                const_cast<void*>(grads.inner),
                                nullptr,
                                shape_of(sizes)};
#ifdef HWNAS_WITH_CUDA
  if (of_masks) args.workspace = check.address(device_workspace, scalar, "workspace");
  const py::gil_scoped_release release;
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::mask_scale_backward(args, reinterpret_cast<void*>(where.stream));
#else
  (void)device_workspace;
  check.where(where);
  const py::gil_scoped_release release;
  const std::unique_ptr<double[]> workspace(new double[hwnas::cpu::mask_scale_workspace(args.shape, true)]);
  args.workspace = workspace.get();
  HWNAS_PICK(mask_scale_backward)(args, where.threads);
#endif
}

}  // namespace

HWNAS_BINDING(module) {
#ifdef HWNAS_WITH_CUDA
  module.def(
      "mask_scale_workspace", [](const Sizes& shape) { return hwnas::cuda::mask_scale_workspace(shape_of(shape)); },
      py::arg("shape"), "Accumulators in the workspace of mask_scale_backward.");
  module.def(
      "mask_scale",
      [](int dtype, Address weight, const Three& masks, Address out, const Sizes& shape, int device, Address stream) {
        forward(dtype, weight, masks, out, shape, Where{device, stream});
      },
      py::arg("dtype"), py::arg("weight"), py::arg("masks"), py::arg("out"), py::arg("shape"), py::arg("device"),
      py::arg("stream"));
  module.def(
      "mask_scale_backward",
      [](int dtype, Address grad, Address weight, const Three& masks, Address grad_weight, const Three& grad_masks,
         Address workspace, const Sizes& shape, int device, Address stream) {
        backward(dtype, grad, weight, masks, grad_weight, grad_masks, workspace, shape, Where{device, stream});
      },
      py::arg("dtype"), py::arg("grad"), py::arg("weight"), py::arg("masks"), py::arg("grad_weight"),
      py::arg("grad_masks"), py::arg("workspace"), py::arg("shape"), py::arg("device"), py::arg("stream"));
#else
  module.def(
      "mask_scale",
      [](int dtype, Address weight, const Three& masks, Address out, const Sizes& shape, int threads) {
        forward(dtype, weight, masks, out, shape, Where{threads});
      },
      py::arg("dtype"), py::arg("weight"), py::arg("masks"), py::arg("out"), py::arg("shape"), py::arg("threads"));
  module.def(
      "mask_scale_backward",
      [](int dtype, Address grad, Address weight, const Three& masks, Address grad_weight, const Three& grad_masks,
         const Sizes& shape, int threads) {
        backward(dtype, grad, weight, masks, grad_weight, grad_masks, 0, shape, Where{threads});
      },
      py::arg("dtype"), py::arg("grad"), py::arg("weight"), py::arg("masks"), py::arg("grad_weight"),
      py::arg("grad_masks"), py::arg("shape"), py::arg("threads"));
#endif
}

}  // namespace hwnas::bindings::mask_scale
