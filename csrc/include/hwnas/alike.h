#pragma once

// What one quick look tells of tensors: see bindings/alike.cpp. In _cpu only.

#include <cstdint>
#include <optional>
#include <vector>

#include "hwnas/dtype.h"
#include "hwnas/python.h"

namespace hwnas::bindings::alike {

struct Alike {
  std::vector<std::uintptr_t> addresses;  // of the tensors, and of the scalars behind them
  DType dtype;
  std::int64_t size;     // elements of each
  std::int64_t scalars;  // how many; 0 where there are none
  bool on_cpu;
};

// Nothing where the tensors, which are in a tuple, need a closer look. `scalars` may be None.
std::optional<Alike> look_at(PyObject* tensors, PyObject* scalars);

// The address of a tensor that PyTorch just made.
std::uintptr_t address_of(PyObject* tensor);

}  // namespace hwnas::bindings::alike
