// Compiled into _cpu (threads) and, with HWNAS_WITH_CUDA, into _cuda (device and stream).

#include "hwnas/mixed_sum.h"

#include <pybind11/stl.h>

#include <string>
#include <vector>

#ifndef HWNAS_WITH_CUDA
#include "hwnas/alike.h"
#endif
#include "hwnas/check.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::mixed_sum {
namespace {

namespace py = pybind11;
using hwnas::DType;
using hwnas::Address;
using hwnas::Addresses;
using hwnas::Where;

constexpr hwnas::Check check{"mixed_sum"};

void check_sizes(std::int64_t size, std::size_t count) {
  if (size < 1) check.fail("size is " + std::to_string(size) + ", expected at least 1");
  if (count < 1) check.fail("tensors is empty, expected at least one");
#ifdef HWNAS_WITH_CUDA
  if (count > hwnas::cuda::kMixedSumMaxCount) {
    check.fail("tensors has " + std::to_string(count) + " entries, the CUDA kernel takes at most " +
         std::to_string(hwnas::cuda::kMixedSumMaxCount));
  }
#endif
}

void forward(int dtype_code, Address weights, const Addresses& tensors, Address out, std::int64_t size,
             const Where& where) {
  const DType dtype = check.dtype(dtype_code);
  check_sizes(size, tensors.size());
  const std::int64_t unit = hwnas::element_size(dtype);
  const auto pointers = check.addresses(tensors, unit, "tensors");
  const hwnas::MixedSum args{dtype,
                             check.address(weights, hwnas::accumulator_size(dtype), "weights"),
                             pointers.data(),
                             static_cast<std::int64_t>(pointers.size()),
                             check.address(out, unit, "out"),
                             size};
#ifdef HWNAS_WITH_CUDA
  const py::gil_scoped_release release;
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::mixed_sum(args, reinterpret_cast<void*>(where.stream));
#else
  check.where(where);
  const py::gil_scoped_release release;
  HWNAS_PICK(mixed_sum)(args, where.threads);
#endif
}

#ifndef HWNAS_WITH_CUDA
// The whole forward pass in one call, for tensors on which looking at them from Python takes longer than adding them up.
// None where they need a closer look.
py::object forward_of(const py::tuple& tensors, const py::object& weights, const py::object& empty_like, int threads) {
  check.where(Where{threads});
  auto found = alike::look_at(tensors, weights);
  if (!found || !found->on_cpu || found->scalars != static_cast<std::int64_t>(tensors.size())) return py::none();
  py::object out = empty_like(tensors[0]);
  const auto pointer = [&](std::size_t k) { return reinterpret_cast<void*>(found->addresses[k]); };
  std::vector<const void*> inputs;
  for (std::size_t k = 0; k < tensors.size(); ++k) inputs.push_back(pointer(k));
  const hwnas::MixedSum args{found->dtype,
                             pointer(tensors.size()),
                             inputs.data(),
                             static_cast<std::int64_t>(inputs.size()),
                             reinterpret_cast<void*>(alike::address_of(out)),
                             found->size};
  const py::gil_scoped_release release;
  HWNAS_PICK(mixed_sum)(args, threads);
  return out;
}
#endif

void backward(int dtype_code, Address grad, Address weights, const Addresses& tensors, const Addresses& grad_tensors,
              Address grad_weights, Address partials, std::int64_t size, const Where& where) {
  const DType dtype = check.dtype(dtype_code);
  check_sizes(size, grad_tensors.size());
  const std::int64_t unit = hwnas::element_size(dtype);
  const std::int64_t scalar = hwnas::accumulator_size(dtype);
  const bool need_weights = grad_weights != 0;
  if (need_weights && tensors.size() != grad_tensors.size()) {
    check.fail("tensors has " + std::to_string(tensors.size()) + " entries and grad_tensors " +
         std::to_string(grad_tensors.size()) + ", expected as many");
  }
  const auto inputs = need_weights ? check.addresses(tensors, unit, "tensors") : std::vector<void*>();
  const auto outputs = check.addresses(grad_tensors, unit, "grad_tensors", true);
  const auto count = static_cast<std::int64_t>(outputs.size());
  hwnas::MixedSumBackward args{dtype,
                               check.address(grad, unit, "grad"),
                               check.address(weights, scalar, "weights"),
                               inputs.data(),
                               count,
                               outputs.data(),
                               need_weights ? check.address(grad_weights, scalar, "grad_weights") : nullptr,
                               nullptr,
                               size};
#ifdef HWNAS_WITH_CUDA
  if (need_weights) args.partials = check.address(partials, scalar, "partials");
  const py::gil_scoped_release release;
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::mixed_sum_backward(args, reinterpret_cast<void*>(where.stream));
#else
  (void)partials;
  check.where(where);
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
        return hwnas::cuda::mixed_sum_partials(check.dtype(dtype), size, count);
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
  module.def("mixed_sum_of", &forward_of, py::arg("tensors"), py::arg("weights"), py::arg("empty_like"),
             py::arg("threads"),
             "The sum as a tensor that `empty_like` makes of the first one; None where `alike` says nothing, where the "
             "tensors are not on the CPU and where the number of weights does not match.");
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

}  // namespace hwnas::bindings::mixed_sum
