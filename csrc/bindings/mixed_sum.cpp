// Compiled into _cpu (threads) and, with HWNAS_WITH_CUDA, into _cuda (device and stream).

#include "hwnas/mixed_sum.h"

#include <string>
#include <vector>

#include "hwnas/arguments.h"
#include "hwnas/registry.h"
#ifdef HWNAS_WITH_CUDA
#include "hwnas/device.h"
#else
#include "hwnas/alike.h"
#endif

namespace hwnas::bindings::mixed_sum {
namespace {

using hwnas::Address;
using hwnas::Addresses;
using hwnas::Arguments;
using hwnas::Registration;
using hwnas::DType;
using hwnas::Where;

void check_number(const Arguments& given, std::size_t count) {
  if (count < 1) given.fail("tensors is empty, expected at least one");
#ifdef HWNAS_WITH_CUDA
  if (count > hwnas::cuda::kMixedSumMaxCount) {
    given.fail("tensors has " + std::to_string(count) + " entries, the CUDA kernel takes at most " +
               std::to_string(hwnas::cuda::kMixedSumMaxCount));
  }
#endif
}

void forward(Arguments& given) {
  const DType dtype = given.dtype("dtype");
  const std::int64_t unit = hwnas::element_size(dtype);
  const void* weights = given.pointer(given.address("weights"), hwnas::accumulator_size(dtype), "weights");
  const auto tensors = given.pointers(given.addresses("tensors"), unit, "tensors");
  check_number(given, tensors.size());
  void* const out = given.pointer(given.address("out"), unit, "out");
  const hwnas::MixedSum args{dtype,
                             weights,
                             tensors.data(),
                             static_cast<std::int64_t>(tensors.size()),
                             out,
                             given.integer("size", 1)};
  const Where where = given.where();
  const hwnas::WithoutGil without_gil;
#ifdef HWNAS_WITH_CUDA
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::mixed_sum(args, where.stream);
#else
  HWNAS_PICK(mixed_sum)(args, where.threads);
#endif
}

#ifndef HWNAS_WITH_CUDA
// The whole forward pass in one call, for tensors on which looking at them from Python takes longer than adding them
// up. None where they need a closer look.
PyObject* forward_of(Arguments& given) {
  PyObject* const tensors = given.tuple("tensors");
  PyObject* const weights = given.any("weights");
  PyObject* const empty_like = given.any("empty_like");
  const int threads = given.where().threads;
  const auto found = alike::look_at(tensors, weights);
  const auto count = static_cast<std::size_t>(PyTuple_GET_SIZE(tensors));
  if (!found || !found->on_cpu || found->scalars != static_cast<std::int64_t>(count)) return Py_NewRef(Py_None);
  hwnas::Reference out(PyObject_CallOneArg(empty_like, PyTuple_GET_ITEM(tensors, 0)));
  if (out.get() == nullptr) return nullptr;
  const auto pointer = [&](std::size_t k) { return reinterpret_cast<void*>(found->addresses[k]); };
  std::vector<const void*> inputs;
  for (std::size_t k = 0; k < count; ++k) inputs.push_back(pointer(k));
  const hwnas::MixedSum args{found->dtype,
                             pointer(count),
                             inputs.data(),
                             static_cast<std::int64_t>(inputs.size()),
                             reinterpret_cast<void*>(alike::address_of(out.get())),
                             found->size};
  const hwnas::WithoutGil without_gil;
  HWNAS_PICK(mixed_sum)(args, threads);
  return out.release();
}
#endif

void backward(Arguments& given) {
  const DType dtype = given.dtype("dtype");
  const std::int64_t unit = hwnas::element_size(dtype);
  const std::int64_t scalar = hwnas::accumulator_size(dtype);
  const void* grad = given.pointer(given.address("grad"), unit, "grad");
  const void* weights = given.pointer(given.address("weights"), scalar, "weights");
  const Addresses tensors = given.addresses("tensors");
  const auto outputs = given.pointers(given.addresses("grad_tensors"), unit, "grad_tensors", true);
  check_number(given, outputs.size());
  void* const grad_weights = given.optional_pointer(given.address("grad_weights"), scalar, "grad_weights");
  std::vector<void*> inputs;
  if (grad_weights != nullptr) {
    given.check_count("tensors", tensors.size(), outputs.size());
    inputs = given.pointers(tensors, unit, "tensors");
  }
#ifdef HWNAS_WITH_CUDA
  const Address partials = given.address("partials");
#endif
  hwnas::MixedSumBackward args{dtype,
                               grad,
                               weights,
                               inputs.data(),
                               static_cast<std::int64_t>(outputs.size()),
                               outputs.data(),
                               grad_weights,
                               nullptr,
                               given.integer("size", 1)};
#ifdef HWNAS_WITH_CUDA
  if (grad_weights != nullptr) args.partials = given.pointer(partials, scalar, "partials");
#endif
  const Where where = given.where();
  const hwnas::WithoutGil without_gil;
#ifdef HWNAS_WITH_CUDA
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::mixed_sum_backward(args, where.stream);
#else
  std::vector<double> workspace(
      grad_weights == nullptr ? 0 : static_cast<std::size_t>(hwnas::cpu::mixed_sum_partials(args.size, args.count)));
  args.partials = workspace.data();
  HWNAS_PICK(mixed_sum_backward)(args, where.threads);
#endif
}

#ifdef HWNAS_WITH_CUDA
PyObject* partials(Arguments& given) {
  const DType dtype = given.dtype("dtype");
  const std::int64_t size = given.integer("size"), count = given.integer("count");
  given.end();
  return PyLong_FromLongLong(hwnas::cuda::mixed_sum_partials(dtype, size, count));
}
#endif

const Registration registration({
    {"mixed_sum", forward, "Weighted sum of tensors."},
    {"mixed_sum_backward", backward, "Gradients of mixed_sum."},
#ifdef HWNAS_WITH_CUDA
    {"mixed_sum_partials", partials, "Accumulators in the workspace of mixed_sum_backward."},
#else
    {"mixed_sum_of", forward_of,
     "The sum as a tensor that `empty_like` makes of the first one; None where `alike` says nothing, where the "
     "tensors are not on the CPU and where the number of weights does not match."},
#endif
});

#ifdef HWNAS_WITH_CUDA
const Registration constants({}, {{"MIXED_SUM_MAX_COUNT", hwnas::cuda::kMixedSumMaxCount}});
#endif

}  // namespace
}  // namespace hwnas::bindings::mixed_sum
