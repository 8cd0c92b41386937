#pragma once

// A binding file registers its functions by a Registration of its own, so that a new operator changes no other file.

#include <exception>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "hwnas/arguments.h"
#include "hwnas/python.h"

namespace hwnas {

// A function that Python calls: one that returns nothing, or one that answers. Both strings are literals.
struct Function {
  Function(const char* function, void (*body)(Arguments&), const char* text)
      : name(function), run(body), documentation(text) {}
  Function(const char* function, python::Object (*body)(Arguments&), const char* text)
      : name(function), answer(body), documentation(text) {}

  const char* name;
  void (*run)(Arguments&) = nullptr;
  python::Object (*answer)(Arguments&) = nullptr;
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

namespace python {

inline PyObject* call(PyObject* self, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  const auto* function = static_cast<const Function*>(PyCapsule_GetPointer(self, nullptr));
  try {
    Arguments given(function->name, values, count, names);
    if (function->answer != nullptr) return function->answer(given).release();
    function->run(given);
    return none().release();
  } catch (const ErrorSet&) {
  } catch (const TypeError& error) {
    PyErr_SetString(PyExc_TypeError, error.what());
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

inline void add(PyObject* module, const char* name, Object value) {
  if (PyObject_SetAttrString(module, name, value.get()) != 0) throw ErrorSet();
}

// Definitions and functions live as long as the process, as compiled modules do.
inline PyObject* make_module(PyModuleDef& definition) {
  Object module(PyModule_Create(&definition));
  if (!module) return nullptr;
  try {
    for (const Registration* registered : Registration::all()) {
      for (const Function& function : registered->functions) {
        auto* method = new PyMethodDef{function.name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)),
                                       METH_FASTCALL | METH_KEYWORDS, function.documentation};
        const Object self = checked(PyCapsule_New(const_cast<Function*>(&function), nullptr, nullptr));
        add(module.get(), function.name, checked(PyCFunction_New(method, self.get())));
      }
      for (const auto& [name, value] : registered->constants) {
        add(module.get(), name, checked(PyLong_FromLong(value)));
      }
    }
  } catch (const ErrorSet&) {
    return nullptr;
  }
  return module.release();
}

}  // namespace python
}  // namespace hwnas

#define HWNAS_MODULE(name, documentation)                                                                 \
  PyMODINIT_FUNC PyInit_##name() {                                                                        \
    static PyModuleDef definition = {                                                                     \
        PyModuleDef_HEAD_INIT, #name, documentation, -1, nullptr, nullptr, nullptr, nullptr, nullptr};     \
    return ::hwnas::python::make_module(definition);                                                      \
  }
