// One quick look at tensors before an operator takes their addresses. In Python every attribute of every tensor costs
// time, together more than the sum of two small tensors. In _cpu only, which is always built; tensors may be on any
// device.
#ifndef HWNAS_WITH_CUDA

#include "hwnas/alike.h"

#include <cstdint>
#include <optional>
#include <vector>

#include "hwnas/arguments.h"
#include "hwnas/dlpack.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::alike {
namespace {

using hwnas::Arguments;
using hwnas::Registration;
using hwnas::dlpack::ExchangeApi;
using hwnas::dlpack::Tensor;

const ExchangeApi* api = nullptr;
std::vector<const void*> plain_types;

// The types stay alive: their owner, torch, is never unloaded.
PyObject* use_exchange_api(Arguments& given) {
  PyObject* const capsule = given.any("capsule");
  const auto* table = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule, hwnas::dlpack::kCapsule));
  if (table == nullptr) throw hwnas::PythonError();
  PyObject* const types = given.tuple("types");
  given.end();
  const bool known = table->version.major == hwnas::dlpack::kMajorVersion && table->from_object != nullptr;
  if (!known) return PyBool_FromLong(0);
  plain_types.clear();
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(types); ++k) {
    plain_types.push_back(PyTuple_GET_ITEM(types, k));
  }
  api = table;
  return PyBool_FromLong(1);
}

bool is_plain(PyObject* object) {
  for (const void* type : plain_types) {
    if (Py_TYPE(object) == type) return true;
  }
  return false;
}

// The exchange interface leaves out that a view may stand for its negated memory.
bool is_negated(PyObject* object) {
  static PyObject* const name = PyUnicode_InternFromString("is_neg");
  const hwnas::Reference answer(PyObject_CallMethodNoArgs(object, name));
  if (answer.get() == nullptr) PyErr_Clear();
  return answer.get() != Py_False;
}

bool has_kernels(const Tensor& x) {
  const auto [code, bits, lanes] = x.dtype;
  return lanes == 1 && ((code == hwnas::dlpack::kFloat && (bits == 32 || bits == 64)) ||
                        (code == hwnas::dlpack::kBfloat && bits == 16));
}

// Whether the elements follow each other in memory when the dimensions are walked in this order, innermost first.
template <class Order>
bool is_dense(const Tensor& x, const Order& dimension) {
  std::int64_t expected = 1;
  for (int i = 0; i < x.ndim; ++i) {
    const int d = dimension(i);
    if (x.shape[d] != 1 && x.strides[d] != expected) return false;
    expected *= x.shape[d];
  }
  return true;
}

bool is_laid_out(const Tensor& x) {
  const int last = x.ndim - 1;
  if (is_dense(x, [&](int i) { return last - i; })) return true;
  return (x.ndim == 4 || x.ndim == 5) &&
         is_dense(x, [&](int i) { return i == 0 ? 1 : i == last ? 0 : last - i + 1; });  // channels last
}

bool same(const Tensor& a, const Tensor& b) {
  if (a.ndim != b.ndim || a.dtype.code != b.dtype.code || a.dtype.bits != b.dtype.bits ||
      a.device.type != b.device.type || a.device.id != b.device.id) {
    return false;
  }
  for (int d = 0; d < a.ndim; ++d) {
    if (a.shape[d] != b.shape[d] || a.strides[d] != b.strides[d]) return false;
  }
  return true;
}

// What is known of a tensor that needs no closer look: plain, of a type for which there are kernels, and laid out.
bool look(PyObject* object, Tensor* x) {
  if (!is_plain(object)) return false;
  if (api->from_object(object, x) != 0) {
    PyErr_Clear();
    return false;
  }
  return x->data != nullptr && has_kernels(*x) && is_laid_out(*x) && !is_negated(object);
}

// float for float32 and bfloat16, double for double: see dtype.h.
bool accumulates(const Tensor& scalars, const Tensor& x) {
  return scalars.ndim == 1 && scalars.dtype.code == hwnas::dlpack::kFloat &&
         scalars.dtype.bits == (x.dtype.bits == 64 ? 64 : 32) && scalars.device.type == x.device.type &&
         scalars.device.id == x.device.id;
}

std::uintptr_t data_of(const Tensor& x) { return reinterpret_cast<std::uintptr_t>(x.data) + x.byte_offset; }

PyObject* alike(Arguments& given) {
  PyObject* const tensors = given.tuple("tensors");
  PyObject* const scalars = given.any("scalars");
  given.end();
  const auto found = look_at(tensors, scalars);
  if (!found) return Py_NewRef(Py_None);
  hwnas::Reference addresses(PyList_New(static_cast<Py_ssize_t>(found->addresses.size())));
  for (std::size_t k = 0; k < found->addresses.size(); ++k) {
    PyObject* const address = addresses.get() == nullptr ? nullptr : PyLong_FromUnsignedLongLong(found->addresses[k]);
    if (address == nullptr) throw hwnas::PythonError();
    PyList_SET_ITEM(addresses.get(), static_cast<Py_ssize_t>(k), address);
  }
  return addresses.release();
}

const Registration registration({
    {"use_exchange_api", use_exchange_api,
     "Look at tensors of these types by the DLPack exchange interface in a capsule, if its version is known."},
    {"alike", alike,
     "Addresses of plain tensors, not lazily negated, that have one type (float32, bfloat16 or float64), shape and "
     "device and lie in memory in the same order, contiguous or channels-last; and of a vector of accumulators, "
     "unless it is None, on the same device. None when it is not so."},
});

}  // namespace

std::optional<Alike> look_at(PyObject* tensors, PyObject* scalars) {
  const Py_ssize_t count = PyTuple_GET_SIZE(tensors);
  if (api == nullptr || count == 0) return std::nullopt;
  Alike found{};
  found.addresses.reserve(static_cast<std::size_t>(count) + 1);
  Tensor first{};
  for (Py_ssize_t k = 0; k < count; ++k) {
    Tensor x{};
    if (!look(PyTuple_GET_ITEM(tensors, k), &x)) return std::nullopt;
    if (found.addresses.empty()) first = x;
    if (!same(x, first)) return std::nullopt;
    found.addresses.push_back(data_of(x));
  }
  if (scalars != Py_None) {
    Tensor x{};
    if (!look(scalars, &x) || !accumulates(x, first)) return std::nullopt;
    found.addresses.push_back(data_of(x));
    found.scalars = x.shape[0];
  }
  found.dtype = first.dtype.code == hwnas::dlpack::kBfloat ? DType::bf16
                : first.dtype.bits == 64                   ? DType::f64
                                                           : DType::f32;
  found.size = 1;
  for (int d = 0; d < first.ndim; ++d) found.size *= first.shape[d];
  found.on_cpu = first.device.type == hwnas::dlpack::kCpu;
  return found;
}

std::uintptr_t address_of(PyObject* tensor) {
  Tensor x{};
  if (api->from_object(tensor, &x) != 0) throw hwnas::PythonError();
  return data_of(x);
}

}  // namespace hwnas::bindings::alike

#endif
