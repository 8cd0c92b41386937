#include "hwnas/device.h"
#include "hwnas/registry.h"

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "CUDA kernels of hwnas. They take raw addresses: call them through hwnas.kernels.";
  module.def("unusable_reason", &hwnas::cuda::unusable_reason, pybind11::arg("device"),
             "Why the kernels cannot run on a device; empty when they can.");
  for (const auto bind : hwnas::binders()) bind(module);
}
