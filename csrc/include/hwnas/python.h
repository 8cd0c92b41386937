#pragma once

// What the bindings need of Python's C interface. A library that makes bindings of any C++ signature would take five
// seconds to compile, twice: more than all of the bindings.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdexcept>
#include <utility>

namespace hwnas::python {

// A reference that is given back.
class Object {
 public:
  explicit Object(PyObject* owned) : pointer_(owned) {}
  Object(Object&& other) noexcept : pointer_(std::exchange(other.pointer_, nullptr)) {}
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  ~Object() { Py_XDECREF(pointer_); }

  PyObject* get() const { return pointer_; }
  PyObject* release() { return std::exchange(pointer_, nullptr); }
  explicit operator bool() const { return pointer_ != nullptr; }

 private:
  PyObject* pointer_;
};

// Python has set its error.
struct ErrorSet : std::exception {};

struct TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The result of a call, unless that failed.
inline Object checked(PyObject* owned) {
  if (owned == nullptr) throw ErrorSet();
  return Object(owned);
}

inline Object none() {
  Py_INCREF(Py_None);
  return Object(Py_None);
}

// Lets other threads run Python until the end of the scope.
class WithoutLock {
 public:
  WithoutLock() : state_(PyEval_SaveThread()) {}
  ~WithoutLock() { PyEval_RestoreThread(state_); }
  WithoutLock(const WithoutLock&) = delete;
  WithoutLock& operator=(const WithoutLock&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace hwnas::python
