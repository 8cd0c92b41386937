// Compiled into _cpu (threads) and, with HWNAS_WITH_CUDA, into _cuda (device and stream).

#include "hwnas/mixed_sum.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "hwnas/registry.h"
#ifdef HWNAS_WITH_CUDA
#include "hwnas/device.h"
#endif

namespace {

namespace py = pybind11;
using hwnas::DType;
using Address = std::uintptr_t;
using Addresses = std::vector<Address>;

[[noreturn]] void fail(const std::string& message) { throw py::value_error("mixed_sum: " + message); }

DType checked_dtype(int code) {
  if (code < 0 || code > 2) {
    fail("dtype is " + std::to_string(code) + ", expected 0 (float32), 1 (bfloat16) or 2 (float64)");
  }
  return static_cast<DType>(code);
}

// The name is put together only for a message: these checks are a good part of the time of a small sum.
void* checked(Address address, std::int64_t alignment, const char* name, std::int64_t index = -1) {
  if (address != 0 && address % static_cast<Address>(alignment) == 0) return reinterpret_cast<void*>(address);
  const std::string where = index < 0 ? name : std::string(name) + "[" + std::to_string(index) + "]";
  if (address == 0) fail(where + " is a null address");
  fail(where + " is not aligned to " + std::to_string(alignment) + " bytes");
}

// `optional` lets an address be 0, which stands for a gradient that is not wanted.
std::vector<void*> checked(const Addresses& addresses, std::int64_t alignment, const char* name, bool optional) {
  std::vector<void*> pointers(addresses.size(), nullptr);
  for (std::size_t k = 0; k < addresses.size(); ++k) {
    if (optional && addresses[k] == 0) continue;
    pointers[k] = checked(addresses[k], alignment, name, static_cast<std::int64_t>(k));
  }
  return pointers;
}

void check_sizes(std::int64_t size, std::size_t count) {
  if (size < 1) fail("size is " + std::to_string(size) + ", expected at least 1");
  if (count < 1) fail("tensors is empty, expected at least one");
#ifdef HWNAS_WITH_CUDA
  if (count > hwnas::cuda::kMixedSumMaxCount) {
    fail("tensors has " + std::to_string(count) + " entries, the CUDA kernel takes at most " +
         std::to_string(hwnas::cuda::kMixedSumMaxCount));
  }
#endif
}

#ifdef HWNAS_WITH_CUDA
struct Where {
  int device;
  Address stream;
};
#else
struct Where {
  int threads;
};

void check(const Where& where) {
  if (where.threads < 1) fail("threads is " + std::to_string(where.threads) + ", expected at least 1");
}
#endif

void forward(int dtype_code, Address weights, const Addresses& tensors, Address out, std::int64_t size,
             const Where& where) {
  const DType dtype = checked_dtype(dtype_code);
  check_sizes(size, tensors.size());
  const std::int64_t unit = hwnas::element_size(dtype);
  const auto pointers = checked(tensors, unit, "tensors", false);
  const hwnas::MixedSum args{dtype,
                             checked(weights, hwnas::accumulator_size(dtype), "weights"),
                             pointers.data(),
                             static_cast<std::int64_t>(pointers.size()),
                             checked(out, unit, "out"),
                             size};
#ifdef HWNAS_WITH_CUDA
  const py::gil_scoped_release release;
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::mixed_sum(args, reinterpret_cast<void*>(where.stream));
#else
  check(where);
  const py::gil_scoped_release release;
  HWNAS_PICK(mixed_sum)(args, where.threads);
#endif
}

void backward(int dtype_code, Address grad, Address weights, const Addresses& tensors, const Addresses& grad_tensors,
              Address grad_weights, Address partials, std::int64_t size, const Where& where) {
  const DType dtype = checked_dtype(dtype_code);
  check_sizes(size, grad_tensors.size());
  const std::int64_t unit = hwnas::element_size(dtype);
  const std::int64_t scalar = hwnas::accumulator_size(dtype);
  const bool need_weights = grad_weights != 0;
  if (need_weights && tensors.size() != grad_tensors.size()) {
    fail("tensors has " + std::to_string(tensors.size()) + " entries and grad_tensors " +
         std::to_string(grad_tensors.size()) + ", expected as many");
  }
  const auto inputs = need_weights ? checked(tensors, unit, "tensors", false) : std::vector<void*>();
  const auto outputs = checked(grad_tensors, unit, "grad_tensors", true);
  const auto count = static_cast<std::int64_t>(outputs.size());
  hwnas::MixedSumBackward args{dtype,
                               checked(grad, unit, "grad"),
                               checked(weights, scalar, "weights"),
                               inputs.data(),
                               count,
                               outputs.data(),
                               need_weights ? checked(grad_weights, scalar, "grad_weights") : nullptr,
                               nullptr,
                               size};
#ifdef HWNAS_WITH_CUDA
  if (need_weights) args.partials = checked(partials, scalar, "partials");
  const py::gil_scoped_release release;
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::mixed_sum_backward(args, reinterpret_cast<void*>(where.stream));
#else
  (void)partials;
  check(where);
  const py::gil_scoped_release release;
  std::vector<double> workspace(
      need_weights ? static_cast<std::size_t>(hwnas::cpu::mixed_sum_partials(size, count)) : 0);
  args.partials = workspace.data();
  HWNAS_PICK(mixed_sum_backward)(args, where.threads);
#endif
}

}  // namespace

HWNAS_BINDING(module) {
#ifdef HWNAS_WITH_CUDA
  module.attr("MIXED_SUM_MAX_COUNT") = hwnas::cuda::kMixedSumMaxCount;
  module.def(
      "mixed_sum_partials",
      [](int dtype, std::int64_t size, std::int64_t count) {
        return hwnas::cuda::mixed_sum_partials(checked_dtype(dtype), size, count);
      },
      py::arg("dtype"), py::arg("size"), py::arg("count"), "Accumulators in the workspace of mixed_sum_backward.");
  module.def(
      "mixed_sum",
      [](int dtype, Address weights, const Addresses& tensors, Address out, std::int64_t size, int device,
         Address stream) { forward(dtype, weights, tensors, out, size, Where{device, stream}); },
      py::arg("dtype"), py::arg("weights"), py::arg("tensors"), py::arg("out"), py::arg("size"), py::arg("device"),
      py::arg("stream"));
  module.def(
      "mixed_sum_backward",
      [](int dtype, Address grad, Address weights, const Addresses& tensors, const Addresses& grad_tensors,
         Address grad_weights, Address partials, std::int64_t size, int device, Address stream) {
        backward(dtype, grad, weights, tensors, grad_tensors, grad_weights, partials, size, Where{device, stream});
      },
      py::arg("dtype"), py::arg("grad"), py::arg("weights"), py::arg("tensors"), py::arg("grad_tensors"),
      py::arg("grad_weights"), py::arg("partials"), py::arg("size"), py::arg("device"), py::arg("stream"));
#else
  module.def(
      "mixed_sum",
      [](int dtype, Address weights, const Addresses& tensors, Address out, std::int64_t size, int threads) {
        forward(dtype, weights, tensors, out, size, Where{threads});
      },
      py::arg("dtype"), py::arg("weights"), py::arg("tensors"), py::arg("out"), py::arg("size"), py::arg("threads"));
  module.def(
      "mixed_sum_backward",
      [](int dtype, Address grad, Address weights, const Addresses& tensors, const Addresses& grad_tensors,
         Address grad_weights, std::int64_t size, int threads) {
        backward(dtype, grad, weights, tensors, grad_tensors, grad_weights, 0, size, Where{threads});
      },
      py::arg("dtype"), py::arg("grad"), py::arg("weights"), py::arg("tensors"), py::arg("grad_tensors"),
      py::arg("grad_weights"), py::arg("size"), py::arg("threads"));
#endif
}
