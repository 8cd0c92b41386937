#include "hwnas/device.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::module_cuda {
namespace {

using hwnas::Arguments;
using hwnas::Registration;

py::object unusable_reason(Arguments& given) {
  const int device = given.small_integer("device");
  given.end();
  return py::str(hwnas::cuda::unusable_reason(device));
}

const Registration registration({
    {"unusable_reason", unusable_reason, "Why the kernels cannot run on a device; empty when they can."},
});

}  // namespace
}  // namespace hwnas::bindings::module_cuda

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "CUDA kernels of hwnas. They take raw addresses: call them through hwnas.kernels.";
  hwnas::add_registered(module);
}
