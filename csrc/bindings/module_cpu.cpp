#include <string>

#include "hwnas/isa.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::module_cpu {
namespace {

using hwnas::Arguments;
using hwnas::Registration;

py::object supported_isas(Arguments& given) {
  given.end();
  py::list names;
  for (const std::string& name : hwnas::cpu::supported_isas()) names.append(name);
  return names;
}

py::object current_isa(Arguments& given) {
  given.end();
  return py::str(hwnas::cpu::current_isa_name());
}

void select_isa(Arguments& given) {
  const std::string name = given.text("name");
  given.end();
  hwnas::cpu::select_isa(name);
}

#ifdef _OPENMP
constexpr long kOpenMp = 1;
#else
constexpr long kOpenMp = 0;
#endif

const Registration registration(
    {
        {"supported_isas", supported_isas, "Instruction sets that this processor runs, slowest first."},
        {"current_isa", current_isa, "The instruction set in use."},
        {"select_isa", select_isa, "Use the kernels of another instruction set."},
    },
    {{"OPENMP", kOpenMp}});

}  // namespace
}  // namespace hwnas::bindings::module_cpu

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of hwnas. They take raw addresses: call them through hwnas.kernels.";
  hwnas::add_registered(module);
}
