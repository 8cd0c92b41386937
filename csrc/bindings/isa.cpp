// In _cpu only.
#ifndef HWNAS_WITH_CUDA

#include "hwnas/isa.h"

#include <string>

#include "hwnas/arguments.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::isa {
namespace {

using hwnas::Arguments;
using hwnas::Registration;

PyObject* supported_isas(Arguments& given) {
  given.end();
  hwnas::Reference names(PyList_New(0));
  for (const std::string& name : hwnas::cpu::supported_isas()) {
    const hwnas::Reference text(PyUnicode_FromString(name.c_str()));
    if (names.get() == nullptr || text.get() == nullptr || PyList_Append(names.get(), text.get()) != 0) {
      throw hwnas::PythonError();
    }
  }
  return names.release();
}

PyObject* current_isa(Arguments& given) {
  given.end();
  return PyUnicode_FromString(hwnas::cpu::current_isa_name().c_str());
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
}  // namespace hwnas::bindings::isa

#endif
