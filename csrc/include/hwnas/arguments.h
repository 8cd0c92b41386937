#pragma once

// How the bindings take their arguments: one after the other, by position or by the name that each has here. What is
// wrong raises an error that names the operator and the argument.

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "hwnas/dtype.h"
#include "hwnas/python.h"

namespace hwnas {

using Address = std::uintptr_t;
using Addresses = std::vector<Address>;

// Where a kernel runs: the trailing arguments.
#ifdef HWNAS_WITH_CUDA
struct Where {
  int device;
  void* stream;
};
#else
struct Where {
  int threads;
};
#endif

class Arguments {
 public:
  // By position, in a tuple, and by name, in a dictionary or null.
  Arguments(const char* op, PyObject* values, PyObject* named = nullptr)
      : op_(op), values_(values), named_(named), count_(PyTuple_GET_SIZE(values)) {}

  // --- taking the next one ---

  PyObject* any(const char* name) {
    if (taken_++ < count_) return PyTuple_GET_ITEM(values_, taken_ - 1);
    if (named_ != nullptr) {
      if (PyObject* const found = PyDict_GetItemString(named_, name)) return found;
    }
    throw TypeError(message(std::string(name) + " is missing"));
  }

  std::int64_t integer(const char* name) { return integer_of(any(name), name); }

  std::int64_t integer(const char* name, std::int64_t least) {
    const std::int64_t value = integer(name);
    if (value < least) too_small(name, value, least);
    return value;
  }

  int small_integer(const char* name) {
    const std::int64_t value = integer(name);
    if (value != static_cast<int>(value)) fail(std::string(name) + " is " + std::to_string(value) + ", out of range");
    return static_cast<int>(value);
  }

  double real(const char* name) { return real_of(any(name), name); }

  bool flag(const char* name) { return flag_of(any(name)); }

  DType dtype(const char* name) {
    const std::int64_t code = integer(name);
    if (code < 0 || code > 2) {
      fail(std::string(name) + " is " + std::to_string(code) + ", expected 0 (float32), 1 (bfloat16) or 2 (float64)");
    }
    return static_cast<DType>(code);
  }

  // An address of which `pointer` below says whether it is one; 0 stands for what is not there or not wanted.
  Address address(const char* name) { return address_of(any(name), name); }

  Addresses addresses(const char* name) {
    return list<Address>(name, [&](PyObject* entry) { return address_of(entry, name); });
  }
  std::vector<std::int64_t> integers(const char* name) {
    return list<std::int64_t>(name, [&](PyObject* entry) { return integer_of(entry, name); });
  }
  std::vector<double> reals(const char* name) {
    return list<double>(name, [&](PyObject* entry) { return real_of(entry, name); });
  }
  std::vector<unsigned char> flags(const char* name) {
    return list<unsigned char>(name, [&](PyObject* entry) { return flag_of(entry) ? 1 : 0; });
  }

  // So many integers.
  template <std::size_t Count>
  std::array<std::int64_t, Count> sizes(const char* name, std::int64_t least) {
    const std::vector<std::int64_t> values = integers(name);
    check_count(name, values.size(), Count);
    std::array<std::int64_t, Count> result;
    for (std::size_t k = 0; k < Count; ++k) {
      result[k] = values[k];
      if (values[k] < least) too_small((std::string(name) + "[" + std::to_string(k) + "]").c_str(), values[k], least);
    }
    return result;
  }

  std::string text(const char* name) {
    PyObject* const found = any(name);
    const char* const text = PyUnicode_Check(found) != 0 ? PyUnicode_AsUTF8(found) : nullptr;
    if (text == nullptr) wrong_type(found, name, "a text");
    return text;
  }

  PyObject* tuple(const char* name) {
    PyObject* const found = any(name);
    if (PyTuple_Check(found) == 0) wrong_type(found, name, "a tuple");
    return found;
  }

  // Arguments in a tuple.
  Arguments group(const char* name) {
    return {op_, tuple(name)};
  }

  // The trailing ones.
  Where where() {
#ifdef HWNAS_WITH_CUDA
    const int device = small_integer("device");
    const Where result{device, reinterpret_cast<void*>(address("stream"))};
#else
    const Where result{small_integer("threads")};
    if (result.threads < 1) too_small("threads", result.threads, 1);
#endif
    end();
    return result;
  }

  // There must be no more.
  void end() const {
    if (count_ + named() == taken_) return;
    throw TypeError(
        message("got " + std::to_string(count_ + named()) + " arguments, expected " + std::to_string(taken_)));
  }

  // --- checking what was taken ---

  // The name is put together only for a message: these checks are a good part of the time of a small operator.
  void* pointer(Address value, std::int64_t alignment, const char* name, std::int64_t index = -1) const {
    if (value != 0 && value % static_cast<Address>(alignment) == 0) return reinterpret_cast<void*>(value);
    const std::string where = index < 0 ? name : std::string(name) + "[" + std::to_string(index) + "]";
    if (value == 0) fail(where + " is a null address");
    fail(where + " is not aligned to " + std::to_string(alignment) + " bytes");
  }

  void* optional_pointer(Address value, std::int64_t alignment, const char* name) const {
    return value == 0 ? nullptr : pointer(value, alignment, name);
  }

  std::vector<void*> pointers(const Addresses& values, std::int64_t alignment, const char* name,
                              bool optional = false) const {
    std::vector<void*> result(values.size(), nullptr);
    for (std::size_t k = 0; k < values.size(); ++k) {
      if (optional && values[k] == 0) continue;
      result[k] = pointer(values[k], alignment, name, static_cast<std::int64_t>(k));
    }
    return result;
  }

  void check_count(const char* name, std::size_t found, std::size_t expected) const {
    if (found == expected) return;
    fail(std::string(name) + " has " + std::to_string(found) + " entries, expected " + std::to_string(expected));
  }

  [[noreturn]] void fail(const std::string& what) const { throw std::invalid_argument(message(what)); }

 private:
  Py_ssize_t named() const { return named_ == nullptr ? 0 : PyDict_Size(named_); }

  std::string message(const std::string& what) const { return std::string(op_) + ": " + what; }

  [[noreturn]] void too_small(const char* name, std::int64_t value, std::int64_t least) const {
    fail(std::string(name) + " is " + std::to_string(value) + ", expected at least " + std::to_string(least));
  }

  // This replaces an error that Python has set.
  [[noreturn]] void wrong_type(PyObject* found, const char* name, const char* expected) const {
    throw TypeError(
        message(std::string(name) + " is or holds a " + Py_TYPE(found)->tp_name + ", expected " + expected));
  }

  std::int64_t integer_of(PyObject* value, const char* name) const {
    const long long result = PyLong_AsLongLong(value);
    if (result == -1 && PyErr_Occurred() != nullptr) wrong_type(value, name, "an integer of 64 bits");
    return result;
  }

  Address address_of(PyObject* value, const char* name) const {
    const std::int64_t result = integer_of(value, name);
    if (result < 0) fail(std::string(name) + " holds " + std::to_string(result) + ", which is no address");
    return static_cast<Address>(result);
  }

  double real_of(PyObject* value, const char* name) const {
    const double result = PyFloat_AsDouble(value);
    if (result == -1 && PyErr_Occurred() != nullptr) wrong_type(value, name, "a number");
    return result;
  }

  static bool flag_of(PyObject* value) {
    const int result = PyObject_IsTrue(value);
    if (result < 0) throw PythonError();
    return result != 0;
  }

  template <class T, class Convert>
  std::vector<T> list(const char* name, const Convert& convert) {
    PyObject* const given = any(name);
    const Reference entries(PySequence_Fast(given, ""));
    if (entries.get() == nullptr) wrong_type(given, name, "a sequence");
    std::vector<T> result;
    result.reserve(static_cast<std::size_t>(PySequence_Fast_GET_SIZE(entries.get())));
    for (Py_ssize_t k = 0; k < PySequence_Fast_GET_SIZE(entries.get()); ++k) {
      result.push_back(convert(PySequence_Fast_GET_ITEM(entries.get(), k)));
    }
    return result;
  }

  const char* op_;
  PyObject* values_;
  PyObject* named_;
  Py_ssize_t count_;
  Py_ssize_t taken_ = 0;
};

}  // namespace hwnas
