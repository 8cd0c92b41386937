// Compiled into _cpu (threads) and, with HWNAS_WITH_CUDA, into _cuda (device and stream).

#include "hwnas/slice_pack.h"

#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "hwnas/check.h"
#include "hwnas/registry.h"

namespace hwnas::bindings::slice_pack {
namespace {

namespace py = pybind11;
using hwnas::Address;
using hwnas::Where;
using Sizes = std::vector<std::int64_t>;

// Joins the dimensions of a box with at most five of them.
hwnas::Box box_of(const hwnas::Check& check, const Sizes& whole, const Sizes& start, const Sizes& size) {
  const std::size_t rank = whole.size();
  if (rank < 1 || rank > hwnas::kSliceRank) {
    const std::string most = std::to_string(hwnas::kSliceRank);
    check.fail("whole has " + std::to_string(rank) + " dimensions, expected 1 to " + most);
  }
  if (start.size() != rank || size.size() != rank) {
    check.fail("whole has " + std::to_string(rank) + " dimensions, start " + std::to_string(start.size()) +
               " and size " + std::to_string(size.size()) + ", expected as many");
  }
  hwnas::Box box{{1, 1, 1, 1, 1}, {0, 0, 0, 0, 0}, {1, 1, 1, 1, 1}};
  for (std::size_t d = 0; d < rank; ++d) {
    if (size[d] < 1 || start[d] < 0 || start[d] > whole[d] - size[d]) {
      check.fail("in dimension " + std::to_string(d) + " " + std::to_string(size[d]) + " elements from " +
                 std::to_string(start[d]) + " do not lie inside " + std::to_string(whole[d]));
    }
    const std::size_t to = hwnas::kSliceRank - rank + d;
    box.whole[to] = whole[d];
    box.start[to] = start[d];
    box.size[to] = size[d];
  }
  return hwnas::joined(box);
}

hwnas::SlicePack arguments(const hwnas::Check& check, int element_size, Address source, Address target,
                           const Sizes& whole, const Sizes& start, const Sizes& size) {
  if (element_size != 1 && element_size != 2 && element_size != 4 && element_size != 8) {
    check.fail("element_size is " + std::to_string(element_size) + ", expected 1, 2, 4 or 8");
  }
  return {element_size, check.address(source, element_size, "source"), check.address(target, element_size, "target"),
          box_of(check, whole, start, size)};
}

void pack(int element_size, Address source, Address target, const Sizes& whole, const Sizes& start, const Sizes& size,
          const Where& where) {
  constexpr hwnas::Check check{"slice_pack"};
  const hwnas::SlicePack args = arguments(check, element_size, source, target, whole, start, size);
#ifdef HWNAS_WITH_CUDA
  const py::gil_scoped_release release;
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::slice_pack(args, reinterpret_cast<void*>(where.stream));
#else
  check.where(where);
  const py::gil_scoped_release release;
  HWNAS_PICK(slice_pack)(args, where.threads);
#endif
}

void unpack(int element_size, Address source, Address target, const Sizes& whole, const Sizes& start, const Sizes& size,
            const Where& where) {
  constexpr hwnas::Check check{"slice_unpack"};
  const hwnas::SlicePack args = arguments(check, element_size, source, target, whole, start, size);
#ifdef HWNAS_WITH_CUDA
  const py::gil_scoped_release release;
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::slice_unpack(args, reinterpret_cast<void*>(where.stream));
#else
  check.where(where);
  const py::gil_scoped_release release;
  HWNAS_PICK(slice_unpack)(args, where.threads);
#endif
}

}  // namespace

HWNAS_BINDING(module) {
#ifdef HWNAS_WITH_CUDA
  const auto bind = [&](const char* name, auto function) {
    module.def(
        name,
        [function](int element_size, Address source, Address target, const Sizes& whole, const Sizes& start,
                   const Sizes& size, int device, Address stream) {
          function(element_size, source, target, whole, start, size, Where{device, stream});
        },
        py::arg("element_size"), py::arg("source"), py::arg("target"), py::arg("whole"), py::arg("start"),
        py::arg("size"), py::arg("device"), py::arg("stream"));
  };
#else
  const auto bind = [&](const char* name, auto function) {
    module.def(
        name,
        [function](int element_size, Address source, Address target, const Sizes& whole, const Sizes& start,
                   const Sizes& size, int threads) {
          function(element_size, source, target, whole, start, size, Where{threads});
        },
        py::arg("element_size"), py::arg("source"), py::arg("target"), py::arg("whole"), py::arg("start"),
        py::arg("size"), py::arg("threads"));
  };
#endif
  bind("slice_pack", pack);
  bind("slice_unpack", unpack);
}

}  // namespace hwnas::bindings::slice_pack
