#include "hwnas/device.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::module_cuda {
namespace {

using hwnas::Arguments;
using hwnas::Registration;
using hwnas::python::Object;

Object unusable_reason(Arguments& given) {
  const int device = given.small_integer("device");
  given.end();
  return python::checked(PyUnicode_FromString(hwnas::cuda::unusable_reason(device).c_str()));
}

const Registration registration({
    {"unusable_reason", unusable_reason, "Why the kernels cannot run on a device; empty when they can."},
});

}  // namespace
}  // namespace hwnas::bindings::module_cuda

HWNAS_MODULE(_cuda, "CUDA kernels of hwnas. They take raw addresses: call them through hwnas.kernels.")
