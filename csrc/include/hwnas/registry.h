#pragma once

// A binding file registers its functions by a Registration of its own, so that a new operator changes no other file.

#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

#include "hwnas/arguments.h"

namespace hwnas {

// A function that Python calls: one that returns nothing, or one that answers. Both strings are literals.
struct Function {
  Function(const char* function, void (*body)(Arguments&), const char* text)
      : name(function), run(body), documentation(text) {}
  Function(const char* function, py::object (*body)(Arguments&), const char* text)
      : name(function), answer(body), documentation(text) {}

  const char* name;
  void (*run)(Arguments&) = nullptr;
  py::object (*answer)(Arguments&) = nullptr;
  const char* documentation;
};

// What a file adds to its module.
class Registration {
 public:
  struct Constant {
    const char* name;
    long value;
  };

  explicit Registration(std::vector<Function> its_functions, std::vector<Constant> its_constants = {})
      : functions(std::move(its_functions)), constants(std::move(its_constants)) {
    all().push_back(this);
  }
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

  static std::vector<const Registration*>& all() {
    static std::vector<const Registration*> list;
    return list;
  }

  const std::vector<Function> functions;
  const std::vector<Constant> constants;
};

inline void add_registered(py::module_& module) {
  for (const Registration* registered : Registration::all()) {
    for (const Function& function : registered->functions) {
      // One signature for all: pybind11 compiles its part of a call for every other one that it meets, half a second each.
      const auto call = [&function](const py::args& values, const py::kwargs& named) -> py::object {
        Arguments given(function.name, values, named);
        if (function.answer != nullptr) return function.answer(given);
        function.run(given);
        return py::none();
      };
      module.def(function.name, call, function.documentation);
    }
    for (const auto& [name, value] : registered->constants) module.attr(name) = value;
  }
}

}  // namespace hwnas
