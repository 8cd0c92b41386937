#pragma once

// The little of Python that bindings need. Not of pybind11: its headers take the compiler longer than all bindings, so
// they are in bindings/module.cpp alone, which is compiled once for both modules.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdexcept>

namespace hwnas {

// Becomes Python's error of this name.
struct TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Python has set an error.
struct PythonError {};

// A reference that this owns; null where Python has set an error.
class Reference {
 public:
  explicit Reference(PyObject* owned) : object_(owned) {}
  ~Reference() { Py_XDECREF(object_); }
  Reference(const Reference&) = delete;
  Reference& operator=(const Reference&) = delete;

  PyObject* get() const { return object_; }
  PyObject* release() {
    PyObject* const object = object_;
    object_ = nullptr;
    return object;
  }

 private:
  PyObject* object_;
};

// Other threads may run Python until the end of the scope.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() { PyEval_RestoreThread(state_); }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace hwnas
