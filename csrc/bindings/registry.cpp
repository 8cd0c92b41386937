#include "hwnas/registry.h"

#include "hwnas/arguments.h"

namespace hwnas {

PyObject* Function::operator()(PyObject* values, PyObject* named) const {
  Arguments given(name, values, named);
  if (answer != nullptr) return answer(given);
  run(given);
  return Py_NewRef(Py_None);
}

}  // namespace hwnas
