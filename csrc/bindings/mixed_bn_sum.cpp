// Compiled into _cpu (threads) and, with HWNAS_WITH_CUDA, into _cuda (device and stream).

#include "hwnas/mixed_bn_sum.h"

#include <pybind11/stl.h>

#include <limits>
#include <string>
#include <vector>

#include "hwnas/check.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::mixed_bn_sum {
namespace {

namespace py = pybind11;
using hwnas::Address;
using hwnas::Addresses;
using hwnas::DType;
using hwnas::Where;

constexpr hwnas::Check check{"mixed_bn_sum"};

// What both passes are given.
struct Arguments {
  int dtype;
  Address weights;
  Addresses tensors;
  std::vector<bool> normalised;
  std::vector<double> eps;
  Address gamma;  // 0: none
  Address beta;
  std::vector<std::int64_t> shape;  // outer, channels, inner
  double low;
  double high;
};

void check_count(std::size_t found, std::size_t expected, const char* name) {
  if (found == expected) return;
  check.fail(std::string(name) + " has " + std::to_string(found) + " entries, expected " + std::to_string(expected) +
             ", one for each tensor");
}

void* optional(Address address, std::int64_t alignment, const char* name) {
  return address == 0 ? nullptr : check.address(address, alignment, name);
}

// The checked arguments, and what their pointers point to.
class Tensors {
 public:
  Tensors(const Arguments& given, bool optional_tensors) {
    in.dtype = check.dtype(given.dtype);
    const std::size_t count = given.tensors.size();
    if (count < 1) check.fail("tensors is empty, expected at least one");
#ifdef HWNAS_WITH_CUDA
    if (count > hwnas::cuda::kMixedBnMaxCount) {
      check.fail("tensors has " + std::to_string(count) + " entries, the CUDA kernel takes at most " +
                 std::to_string(hwnas::cuda::kMixedBnMaxCount));
    }
#endif
    if (given.shape.size() != 3) {
      check.fail("shape has " + std::to_string(given.shape.size()) + " entries, expected outer, channels and inner");
    }
    std::int64_t size = 1;
    for (const std::int64_t extent : given.shape) {
      if (extent < 1) check.fail("shape holds " + std::to_string(extent) + ", expected at least 1");
      if (extent > std::numeric_limits<std::int64_t>::max() / 8 / size) check.fail("shape is too large");
      size *= extent;
    }
    check_count(given.normalised.size(), count, "normalised");
    check_count(given.eps.size(), count, "eps");
    unit = hwnas::element_size(in.dtype);
    scalar = hwnas::accumulator_size(in.dtype);
    tensors_ = check.addresses(given.tensors, unit, "tensors", optional_tensors);
    normalised_.assign(given.normalised.begin(), given.normalised.end());
    eps_ = given.eps;
    for (std::size_t k = 0; k < count; ++k) {
      if (!(eps_[k] >= 0)) {
        check.fail("eps[" + std::to_string(k) + "] is " + std::to_string(eps_[k]) + ", expected at least 0");
      }
      if (tensors_[k] == nullptr && normalised_[k] != 0) {
        check.fail("tensors[" + std::to_string(k) + "] is a null address, and it is normalised");
      }
    }
    in.weights = check.address(given.weights, scalar, "weights");
    in.tensors = tensors_.data();
    in.normalised = normalised_.data();
    in.eps = eps_.data();
    in.gamma = optional(given.gamma, scalar, "gamma");
    in.beta = optional(given.beta, scalar, "beta");
    in.low = given.low;
    in.high = given.high;
    if (!(in.low < in.high)) {
      check.fail("low is " + std::to_string(in.low) + " and high " + std::to_string(in.high) + ", expected low < high");
    }
    if (in.clamped() && (count != 1 || normalised_[0] == 0)) {
      check.fail("low and high need one tensor, normalised; got " + std::to_string(count));
    }
    in.count = static_cast<std::int64_t>(count);
    in.outer = given.shape[0];
    in.channels = given.shape[1];
    in.inner = given.shape[2];
  }
  Tensors(const Tensors&) = delete;
  Tensors& operator=(const Tensors&) = delete;

  std::size_t count() const { return tensors_.size(); }

  hwnas::MixedBnTensors in;
  std::int64_t unit;
  std::int64_t scalar;

 private:
  std::vector<void*> tensors_;
  std::vector<unsigned char> normalised_;
  std::vector<double> eps_;
};

double* doubles(Address address, const char* name) {
  return static_cast<double*>(check.address(address, static_cast<std::int64_t>(sizeof(double)), name));
}

void forward(const Arguments& given, Address out, Address means, Address variances, Address workspace,
             const Where& where) {
  const Tensors tensors(given, false);
  const hwnas::MixedBnSum args{tensors.in, check.address(out, tensors.unit, "out"), doubles(means, "means"),
                               doubles(variances, "variances")};
#ifdef HWNAS_WITH_CUDA
  double* const space = doubles(workspace, "workspace");
  const py::gil_scoped_release release;
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::mixed_bn_sum(args, space, reinterpret_cast<void*>(where.stream));
#else
  (void)workspace;
  check.where(where);
  const py::gil_scoped_release release;
  HWNAS_PICK(mixed_bn_sum)(args, where.threads);
#endif
}

void backward(const Arguments& given, Address grad, Address means, Address variances, const Addresses& grad_tensors,
              Address grad_weights, Address grad_gamma, Address grad_beta, Address workspace, const Where& where) {
  const Tensors tensors(given, grad_weights == 0);
  check_count(grad_tensors.size(), tensors.count(), "grad_tensors");
  const auto to_tensors = check.addresses(grad_tensors, tensors.unit, "grad_tensors", true);
  const hwnas::MixedBnSumBackward args{tensors.in,
                                       check.address(grad, tensors.unit, "grad"),
                                       doubles(means, "means"),
                                       doubles(variances, "variances"),
                                       to_tensors.data(),
                                       optional(grad_weights, tensors.scalar, "grad_weights"),
                                       optional(grad_gamma, tensors.scalar, "grad_gamma"),
                                       optional(grad_beta, tensors.scalar, "grad_beta")};
#ifdef HWNAS_WITH_CUDA
  double* const space = doubles(workspace, "workspace");
  const py::gil_scoped_release release;
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::mixed_bn_sum_backward(args, space, reinterpret_cast<void*>(where.stream));
#else
  (void)workspace;
  check.where(where);
  const py::gil_scoped_release release;
  HWNAS_PICK(mixed_bn_sum_backward)(args, where.threads);
#endif
}

}  // namespace

// What both passes take first, as parameters and by name.
#define HWNAS_GIVEN                                                                                \
  int dtype, Address weights, const Addresses &tensors, const std::vector<bool>&normalised,        \
      const std::vector<double>&eps, Address gamma, Address beta, const std::vector<std::int64_t>&shape, double low,  \
      double high
#define HWNAS_ARGUMENTS \
  Arguments { dtype, weights, tensors, normalised, eps, gamma, beta, shape, low, high }
#define HWNAS_NAMES                                                                                         \
  py::arg("dtype"), py::arg("weights"), py::arg("tensors"), py::arg("normalised"), py::arg("eps"),          \
      py::arg("gamma"), py::arg("beta"), py::arg("shape"), py::arg("low"), py::arg("high")
#define HWNAS_GRADIENTS                                                                                    \
  Address grad, Address means, Address variances, const Addresses &grad_tensors, Address grad_weights,     \
      Address grad_gamma, Address grad_beta
#define HWNAS_GRADIENT_NAMES                                                                                   \
  py::arg("grad"), py::arg("means"), py::arg("variances"), py::arg("grad_tensors"), py::arg("grad_weights"),   \
      py::arg("grad_gamma"), py::arg("grad_beta")

HWNAS_BINDING(module) {
#ifdef HWNAS_WITH_CUDA
  module.attr("MIXED_BN_SUM_MAX_COUNT") = hwnas::cuda::kMixedBnMaxCount;
  module.def(
      "mixed_bn_sum_workspace",
      [](int dtype, const std::vector<std::int64_t>& shape, std::int64_t count) {
        if (shape.size() != 3) check.fail("shape has not three entries");
        return hwnas::cuda::mixed_bn_sum_workspace(check.dtype(dtype), shape[0], shape[1], shape[2], count);
      },
      py::arg("dtype"), py::arg("shape"), py::arg("count"),
      "Doubles in the workspace of mixed_bn_sum and of mixed_bn_sum_backward.");
  module.def(
      "mixed_bn_sum",
      [](HWNAS_GIVEN, Address out, Address means, Address variances, Address workspace, int device, Address stream) {
        forward(HWNAS_ARGUMENTS, out, means, variances, workspace, Where{device, stream});
      },
      HWNAS_NAMES, py::arg("out"), py::arg("means"), py::arg("variances"), py::arg("workspace"), py::arg("device"),
      py::arg("stream"));
  module.def(
      "mixed_bn_sum_backward",
      [](HWNAS_GIVEN, HWNAS_GRADIENTS, Address workspace, int device, Address stream) {
        backward(HWNAS_ARGUMENTS, grad, means, variances, grad_tensors, grad_weights, grad_gamma, grad_beta, workspace,
                 Where{device, stream});
      },
      HWNAS_NAMES, HWNAS_GRADIENT_NAMES, py::arg("workspace"), py::arg("device"), py::arg("stream"));
#else
  module.def(
      "mixed_bn_sum",
      [](HWNAS_GIVEN, Address out, Address means, Address variances, int threads) {
        forward(HWNAS_ARGUMENTS, out, means, variances, 0, Where{threads});
      },
      HWNAS_NAMES, py::arg("out"), py::arg("means"), py::arg("variances"), py::arg("threads"));
  module.def(
      "mixed_bn_sum_backward",
      [](HWNAS_GIVEN, HWNAS_GRADIENTS, int threads) {
        backward(HWNAS_ARGUMENTS, grad, means, variances, grad_tensors, grad_weights, grad_gamma, grad_beta, 0,
                 Where{threads});
      },
      HWNAS_NAMES, HWNAS_GRADIENT_NAMES, py::arg("threads"));
#endif
}

}  // namespace hwnas::bindings::mixed_bn_sum
