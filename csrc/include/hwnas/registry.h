#pragma once

// A binding file registers its functions by a Registration of its own, so that a new operator changes no other file.

#include <utility>
#include <vector>

#include "hwnas/python.h"

namespace hwnas {

class Arguments;

// A function that Python calls: one that returns nothing, or one that answers with a new reference, null where Python has
// set an error. Both strings are literals.
struct Function {
  Function(const char* function, void (*body)(Arguments&), const char* text)
      : name(function), run(body), documentation(text) {}
  Function(const char* function, PyObject* (*body)(Arguments&), const char* text)
      : name(function), answer(body), documentation(text) {}

  PyObject* operator()(PyObject* values, PyObject* named) const;

  const char* name;
  void (*run)(Arguments&) = nullptr;
  PyObject* (*answer)(Arguments&) = nullptr;
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

}  // namespace hwnas
