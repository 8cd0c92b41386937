// Compiled into _cpu (threads) and, with HWNAS_WITH_CUDA, into _cuda (device and stream).

#include "hwnas/mixed_bn_sum.h"

#include <limits>
#include <string>
#include <vector>

#include "hwnas/arguments.h"
#include "hwnas/registry.h"
#ifdef HWNAS_WITH_CUDA
#include "hwnas/device.h"
#endif

namespace hwnas::bindings::mixed_bn_sum {
namespace {

using hwnas::Address;
using hwnas::Addresses;
using hwnas::Arguments;
using hwnas::Registration;
using hwnas::Where;

// The next argument: outer, channels, inner.
struct Extents {
  explicit Extents(Arguments& given) {
    const auto shape = given.integers("shape");
    given.check_count("shape", shape.size(), 3);
    std::int64_t size = 1;
    for (const std::int64_t extent : shape) {
      if (extent < 1) given.fail("shape holds " + std::to_string(extent) + ", expected at least 1");
      if (extent > std::numeric_limits<std::int64_t>::max() / 8 / size) given.fail("shape is too large");
      size *= extent;
    }
    outer = shape[0];
    channels = shape[1];
    inner = shape[2];
  }
  std::int64_t outer, channels, inner;
};

// What both passes are given first, and what its pointers point to.
class Tensors {
 public:
  explicit Tensors(Arguments& given) {
    in.dtype = given.dtype("dtype");
    unit = hwnas::element_size(in.dtype);
    scalar = hwnas::accumulator_size(in.dtype);
    in.weights = given.pointer(given.address("weights"), scalar, "weights");
    addresses_ = given.addresses("tensors");
    const std::size_t count = addresses_.size();
    if (count < 1) given.fail("tensors is empty, expected at least one");
#ifdef HWNAS_WITH_CUDA
    if (count > hwnas::cuda::kMixedBnMaxCount) {
      given.fail("tensors has " + std::to_string(count) + " entries, the CUDA kernel takes at most " +
                 std::to_string(hwnas::cuda::kMixedBnMaxCount));
    }
#endif
    normalised_ = given.flags("normalised");
    given.check_count("normalised", normalised_.size(), count);
    eps_ = given.reals("eps");
    given.check_count("eps", eps_.size(), count);
    for (std::size_t k = 0; k < count; ++k) {
      if (!(eps_[k] >= 0)) {
        given.fail("eps[" + std::to_string(k) + "] is " + std::to_string(eps_[k]) + ", expected at least 0");
      }
    }
    in.normalised = normalised_.data();
    in.eps = eps_.data();
    in.gamma = given.optional_pointer(given.address("gamma"), scalar, "gamma");
    in.beta = given.optional_pointer(given.address("beta"), scalar, "beta");
    const Extents extents(given);
    in.count = static_cast<std::int64_t>(count);
    in.outer = extents.outer;
    in.channels = extents.channels;
    in.inner = extents.inner;
    in.low = given.real("low");
    in.high = given.real("high");
    if (!(in.low < in.high)) {
      given.fail("low is " + std::to_string(in.low) + " and high " + std::to_string(in.high) + ", expected low < high");
    }
    if (in.clamped() && (count != 1 || normalised_[0] == 0)) {
      given.fail("low and high need one tensor, normalised; got " + std::to_string(count));
    }
  }
  Tensors(const Tensors&) = delete;
  Tensors& operator=(const Tensors&) = delete;

  // A tensor that is not normalised may be optional: null.
  void check(const Arguments& given, bool optional) {
    tensors_ = given.pointers(addresses_, unit, "tensors", optional);
    for (std::size_t k = 0; k < tensors_.size(); ++k) {
      if (tensors_[k] == nullptr && normalised_[k] != 0) {
        given.fail("tensors[" + std::to_string(k) + "] is a null address, and it is normalised");
      }
    }
    in.tensors = tensors_.data();
  }

  std::size_t count() const { return addresses_.size(); }

  hwnas::MixedBnTensors in;
  std::int64_t unit;
  std::int64_t scalar;

 private:
  Addresses addresses_;
  std::vector<void*> tensors_;
  std::vector<unsigned char> normalised_;
  std::vector<double> eps_;
};

double* next_doubles(Arguments& given, const char* name) {
  return static_cast<double*>(given.pointer(given.address(name), static_cast<std::int64_t>(sizeof(double)), name));
}

void forward(Arguments& given) {
  Tensors tensors(given);
  tensors.check(given, false);
  const hwnas::MixedBnSum args{tensors.in, given.pointer(given.address("out"), tensors.unit, "out"),
                               next_doubles(given, "means"), next_doubles(given, "variances")};
#ifdef HWNAS_WITH_CUDA
  double* const workspace = next_doubles(given, "workspace");
#endif
  const Where where = given.where();
  const hwnas::WithoutGil without_gil;
#ifdef HWNAS_WITH_CUDA
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::mixed_bn_sum(args, workspace, where.stream);
#else
  HWNAS_PICK(mixed_bn_sum)(args, where.threads);
#endif
}

void backward(Arguments& given) {
  Tensors tensors(given);
  const auto* grad = given.pointer(given.address("grad"), tensors.unit, "grad");
  const double* means = next_doubles(given, "means");
  const double* variances = next_doubles(given, "variances");
  const Addresses grad_tensors = given.addresses("grad_tensors");
  given.check_count("grad_tensors", grad_tensors.size(), tensors.count());
  const auto to_tensors = given.pointers(grad_tensors, tensors.unit, "grad_tensors", true);
  void* const grad_weights = given.optional_pointer(given.address("grad_weights"), tensors.scalar, "grad_weights");
  void* const grad_gamma = given.optional_pointer(given.address("grad_gamma"), tensors.scalar, "grad_gamma");
  void* const grad_beta = given.optional_pointer(given.address("grad_beta"), tensors.scalar, "grad_beta");
  tensors.check(given, grad_weights == nullptr);
  const hwnas::MixedBnSumBackward args{tensors.in,   grad,         means,      variances,
                                       to_tensors.data(), grad_weights, grad_gamma, grad_beta};
#ifdef HWNAS_WITH_CUDA
  double* const workspace = next_doubles(given, "workspace");
#endif
  const Where where = given.where();
  const hwnas::WithoutGil without_gil;
#ifdef HWNAS_WITH_CUDA
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::mixed_bn_sum_backward(args, workspace, where.stream);
#else
  HWNAS_PICK(mixed_bn_sum_backward)(args, where.threads);
#endif
}

#ifdef HWNAS_WITH_CUDA
PyObject* workspace(Arguments& given) {
  const hwnas::DType dtype = given.dtype("dtype");
  const Extents extents(given);
  const std::int64_t count = given.integer("count", 1);
  given.end();
  return PyLong_FromLongLong(hwnas::cuda::mixed_bn_sum_workspace(dtype, extents.outer, extents.channels, extents.inner, count));
}
#endif

const Registration registration({
    {"mixed_bn_sum", forward, "Weighted sum of tensors whose channels are normalised."},
    {"mixed_bn_sum_backward", backward, "Gradients of mixed_bn_sum."},
#ifdef HWNAS_WITH_CUDA
    {"mixed_bn_sum_workspace", workspace,
     "Doubles in the workspace of mixed_bn_sum and of mixed_bn_sum_backward."},
#endif
});

#ifdef HWNAS_WITH_CUDA
const Registration constants({}, {{"MIXED_BN_SUM_MAX_COUNT", hwnas::cuda::kMixedBnMaxCount}});
#endif

}  // namespace
}  // namespace hwnas::bindings::mixed_bn_sum
