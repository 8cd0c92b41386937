#include <pybind11/stl.h>

#include "hwnas/isa.h"
#include "hwnas/registry.h"

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of hwnas. They take raw addresses: call them through hwnas.kernels.";
  module.def("supported_isas", &hwnas::cpu::supported_isas, "Instruction sets that this processor runs, slowest first.");
  module.def("current_isa", &hwnas::cpu::current_isa_name, "The instruction set in use.");
  module.def("select_isa", &hwnas::cpu::select_isa, pybind11::arg("name"), "Use the kernels of another instruction set.");
#ifdef _OPENMP
  module.attr("OPENMP") = true;
#else
  module.attr("OPENMP") = false;
#endif
  for (const auto bind : hwnas::binders()) bind(module);
}
