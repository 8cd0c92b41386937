#pragma once

// What every binding does with its arguments: addresses become pointers, and what is wrong raises a ValueError that names
// the operator and the argument.

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "hwnas/dtype.h"
#ifdef HWNAS_WITH_CUDA
#include "hwnas/device.h"
#endif

namespace hwnas {

using Address = std::uintptr_t;
using Addresses = std::vector<Address>;

// Where a kernel runs: the trailing arguments of every bound function.
#ifdef HWNAS_WITH_CUDA
struct Where {
  int device;
  Address stream;
};
#else
struct Where {
  int threads;
};
#endif

struct Check {
  const char* op;

  [[noreturn]] void fail(const std::string& message) const { throw pybind11::value_error(std::string(op) + ": " + message); }

  DType dtype(int code) const {
    if (code < 0 || code > 2) {
      fail("dtype is " + std::to_string(code) + ", expected 0 (float32), 1 (bfloat16) or 2 (float64)");
    }
    return static_cast<DType>(code);
  }

  // The name is put together only for a message: these checks are a good part of the time of a small operator.
  void* address(Address value, std::int64_t alignment, const char* name, std::int64_t index = -1) const {
    if (value != 0 && value % static_cast<Address>(alignment) == 0) return reinterpret_cast<void*>(value);
    const std::string where = index < 0 ? name : std::string(name) + "[" + std::to_string(index) + "]";
    if (value == 0) fail(where + " is a null address");
    fail(where + " is not aligned to " + std::to_string(alignment) + " bytes");
  }

  // `optional` lets an address be 0, which stands for what is not there or not wanted.
  std::vector<void*> addresses(const Addresses& values, std::int64_t alignment, const char* name,
                               bool optional = false) const {
    std::vector<void*> pointers(values.size(), nullptr);
    for (std::size_t k = 0; k < values.size(); ++k) {
      if (optional && values[k] == 0) continue;
      pointers[k] = address(values[k], alignment, name, static_cast<std::int64_t>(k));
    }
    return pointers;
  }

#ifndef HWNAS_WITH_CUDA
  void where(const Where& value) const {
    if (value.threads < 1) fail("threads is " + std::to_string(value.threads) + ", expected at least 1");
  }
#endif
};

}  // namespace hwnas
