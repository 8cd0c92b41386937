#pragma once

// A binding file registers itself with HWNAS_BINDING, so that a new operator changes no other file.

#include <pybind11/pybind11.h>

#include <vector>

namespace hwnas {

using Binder = void (*)(pybind11::module_&);

inline std::vector<Binder>& binders() {
  static std::vector<Binder> all;
  return all;
}

struct Registration {
  explicit Registration(Binder binder) { binders().push_back(binder); }
};

}  // namespace hwnas

#define HWNAS_BINDING(module)                                    \
  static void hwnas_bind(pybind11::module_& module);             \
  static const ::hwnas::Registration hwnas_binding(hwnas_bind);  \
  static void hwnas_bind(pybind11::module_& module)
