#include <string>
#include <vector>

#include "hwnas/isa.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::module_cpu {
namespace {

using hwnas::Arguments;
using hwnas::Registration;
using hwnas::python::Object;

Object as_object(const std::string& text) { return python::checked(PyUnicode_FromString(text.c_str())); }

Object supported_isas(Arguments& given) {
  given.end();
  const std::vector<std::string> names = hwnas::cpu::supported_isas();
  Object list = python::checked(PyList_New(static_cast<Py_ssize_t>(names.size())));
  for (std::size_t k = 0; k < names.size(); ++k) {
    PyList_SET_ITEM(list.get(), static_cast<Py_ssize_t>(k), as_object(names[k]).release());
  }
  return list;
}

Object current_isa(Arguments& given) {
  given.end();
  return as_object(hwnas::cpu::current_isa_name());
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

HWNAS_MODULE(_cpu, "CPU kernels of hwnas. They take raw addresses: call them through hwnas.kernels.")
