// Compiled into _cpu (threads) and, with HWNAS_WITH_CUDA, into _cuda (device and stream).

#include "hwnas/slice_pack.h"

#include <string>
#include <vector>

#include "hwnas/arguments.h"
#include "hwnas/registry.h"
#ifdef HWNAS_WITH_CUDA
#include "hwnas/device.h"
#endif

namespace hwnas::bindings::slice_pack {
namespace {

using hwnas::Address;
using hwnas::Arguments;
using hwnas::Registration;
using hwnas::Where;

// The next three arguments: sizes of the whole, and start and sizes of a box in it, of at most five dimensions. Joins
// those that can be.
hwnas::Box box_of(Arguments& given) {
  const auto whole = given.integers("whole"), start = given.integers("start"), size = given.integers("size");
  const std::size_t rank = whole.size();
  if (rank < 1 || rank > hwnas::kSliceRank) {
    const std::string most = std::to_string(hwnas::kSliceRank);
    given.fail("whole has " + std::to_string(rank) + " dimensions, expected 1 to " + most);
  }
  if (start.size() != rank || size.size() != rank) {
    given.fail("whole has " + std::to_string(rank) + " dimensions, start " + std::to_string(start.size()) +
               " and size " + std::to_string(size.size()) + ", expected as many");
  }
  hwnas::Box box{{1, 1, 1, 1, 1}, {0, 0, 0, 0, 0}, {1, 1, 1, 1, 1}};
  for (std::size_t d = 0; d < rank; ++d) {
    if (size[d] < 1 || start[d] < 0 || start[d] > whole[d] - size[d]) {
      given.fail("in dimension " + std::to_string(d) + " " + std::to_string(size[d]) + " elements from " +
                 std::to_string(start[d]) + " do not lie inside " + std::to_string(whole[d]));
    }
    const std::size_t to = hwnas::kSliceRank - rank + d;
    box.whole[to] = whole[d];
    box.start[to] = start[d];
    box.size[to] = size[d];
  }
  return hwnas::joined(box);
}

hwnas::SlicePack copy_of(Arguments& given) {
  const int element_size = given.small_integer("element_size");
  if (element_size != 1 && element_size != 2 && element_size != 4 && element_size != 8) {
    given.fail("element_size is " + std::to_string(element_size) + ", expected 1, 2, 4 or 8");
  }
  const Address source = given.address("source"), target = given.address("target");
  return {element_size, given.pointer(source, element_size, "source"), given.pointer(target, element_size, "target"),
          box_of(given)};
}

void pack(Arguments& given) {
  const hwnas::SlicePack args = copy_of(given);
  const Where where = given.where();
  const hwnas::WithoutGil without_gil;
#ifdef HWNAS_WITH_CUDA
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::slice_pack(args, where.stream);
#else
  HWNAS_PICK(slice_pack)(args, where.threads);
#endif
}

void unpack(Arguments& given) {
  const hwnas::SlicePack args = copy_of(given);
  const Where where = given.where();
  const hwnas::WithoutGil without_gil;
#ifdef HWNAS_WITH_CUDA
  const hwnas::cuda::DeviceGuard guard(where.device);
  hwnas::cuda::slice_unpack(args, where.stream);
#else
  HWNAS_PICK(slice_unpack)(args, where.threads);
#endif
}

const Registration registration({
    {"slice_pack", pack, "A box of a tensor, copied into a tensor of its size."},
    {"slice_unpack", unpack, "A tensor copied into a box of a larger one, with zeros around."},
});

}  // namespace
}  // namespace hwnas::bindings::slice_pack
