#pragma once

// slice_pack copies a box out of a tensor: part[i] = whole[start + i]. slice_unpack is its transpose: it writes the box
// into a tensor and zeros around it, every element once. Elements are copied as bits, so only their size matters.

#include <cstdint>

#include "hwnas/isa.h"

namespace hwnas {

constexpr int kSliceRank = 5;

// A box inside a tensor: sizes in the order of memory, outermost first. There are always five; the first may be 1.
struct Box {
  std::int64_t whole[kSliceRank], start[kSliceRank], size[kSliceRank];
};

// Joins dimensions that the box takes as a whole to the ones outside them, so that what is contiguous is one run.
constexpr Box joined(const Box& box) {
  Box result{{1, 1, 1, 1, 1}, {0, 0, 0, 0, 0}, {1, 1, 1, 1, 1}};
  int to = kSliceRank - 1;
  for (int from = kSliceRank - 1; from >= 0; --from) {
    const std::int64_t inside = result.whole[to];  // all of it is taken so far
    result.whole[to] = box.whole[from] * inside;
    result.start[to] = box.start[from] * inside;
    result.size[to] = box.size[from] * inside;
    if (box.size[from] != box.whole[from] && from > 0) --to;
  }
  return result;
}

struct SlicePack {
  int element_size;  // 1, 2, 4 or 8 bytes
  const void* source;
  void* target;
  Box box;  // joined
};

namespace cpu {

HWNAS_FOR_EACH_ISA(void slice_pack(const SlicePack& args, int threads);
                   void slice_unpack(const SlicePack& args, int threads);)

}  // namespace cpu

namespace cuda {

void slice_pack(const SlicePack& args, void* stream);
void slice_unpack(const SlicePack& args, void* stream);

}  // namespace cuda

}  // namespace hwnas
