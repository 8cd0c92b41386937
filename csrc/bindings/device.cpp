// In _cuda only.
#ifdef HWNAS_WITH_CUDA

#include "hwnas/device.h"

#include "hwnas/arguments.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::device {
namespace {

using hwnas::Arguments;
using hwnas::Registration;

PyObject* unusable_reason(Arguments& given) {
  const int device = given.small_integer("device");
  given.end();
  return PyUnicode_FromString(hwnas::cuda::unusable_reason(device).c_str());
}

const Registration registration({
    {"unusable_reason", unusable_reason, "Why the kernels cannot run on a device; empty when they can."},
});

}  // namespace
}  // namespace hwnas::bindings::device

#endif
