// Both modules, of whatever is registered in the library that this is linked into: the headers of pybind11 are compiled
// once.

#include <pybind11/pybind11.h>

#include "hwnas/registry.h"

namespace py = pybind11;

namespace {

void add_registered(py::module_& module) {
  for (const hwnas::Registration* registered : hwnas::Registration::all()) {
    for (const hwnas::Function& function : registered->functions) {
      // One signature for all: pybind11 compiles its part of a call for every other one that it meets, half a second each.
      const auto call = [&function](const py::args& values, const py::kwargs& named) -> py::object {
        PyObject* answer = nullptr;
        try {
          answer = function(values.ptr(), named.ptr());
        } catch (const hwnas::TypeError& error) {
          throw py::type_error(error.what());
        } catch (const hwnas::PythonError&) {
        }
        if (answer == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(answer);
      };
      module.def(function.name, call, function.documentation);
    }
    for (const auto& [name, value] : registered->constants) module.attr(name) = value;
  }
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of hwnas. They take raw addresses: call them through hwnas.kernels.";
  add_registered(module);
}

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "CUDA kernels of hwnas. They take raw addresses: call them through hwnas.kernels.";
  add_registered(module);
}
