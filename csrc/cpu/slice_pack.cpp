// Compiled once for each instruction set; HWNAS_ISA names the namespace.

#include "hwnas/slice_pack.h"

#include <cstring>

#include "parallel.h"

namespace hwnas::cpu::HWNAS_ISA {
namespace {

// A batch of lines that one thread works on: about half of the first-level cache.
constexpr std::int64_t kBatchBytes = 16384;

// Kernels of 3 inside 7 make runs of a few bytes, for which a call of memcpy takes longer than copying. The first and
// the last `Bytes` may overlap.
template <int Bytes>
void copy_ends(char* to, const char* from, std::int64_t bytes) {
  std::memcpy(to, from, Bytes);
  std::memcpy(to + bytes - Bytes, from + bytes - Bytes, Bytes);
}

void copy(char* to, const char* from, std::int64_t bytes) {
  if (bytes > 64) {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
  } else if (bytes > 32) {
    copy_ends<32>(to, from, bytes);
  } else if (bytes >= 16) {
    copy_ends<16>(to, from, bytes);
  } else if (bytes >= 8) {
    copy_ends<8>(to, from, bytes);
  } else if (bytes >= 4) {
    copy_ends<4>(to, from, bytes);
  } else {
    for (std::int64_t i = 0; i < bytes; ++i) to[i] = from[i];
  }
}

// A line is all that lies along the last dimension, a plane the lines along the one before. Planes are counted along
// the three others, whose sizes are `sizes`.
struct Plane {
  const std::int64_t* sizes;
  std::int64_t at[3];

  Plane(const std::int64_t* sizes, std::int64_t index) : sizes(sizes) {
    for (int d = 2; d >= 0; --d) {
      at[d] = index % sizes[d];
      index /= sizes[d];
    }
  }
  void advance() {
    for (int d = 2; d >= 0 && ++at[d] == sizes[d]; --d) at[d] = 0;
  }
};

std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Calls work(plane, line, lines, number) for parts of planes that fill a batch, after begin(first, lines) for all of
// it. `number` is that of the part's first line among all lines.
template <class Batch, class Work>
void for_each_part(const std::int64_t* sizes, int threads, const Batch& begin, const Work& work) {
  const std::int64_t line_bytes = sizes[4], lines = sizes[0] * sizes[1] * sizes[2] * sizes[3];
  const std::int64_t batch = kBatchBytes / line_bytes > 1 ? kBatchBytes / line_bytes : 1;
  const bool serial = lines * line_bytes < 4 * kSerialBelow;
  for_each((lines + batch - 1) / batch, serial ? 1 : threads, [&](std::int64_t index) {
    const std::int64_t first = index * batch, last = smaller(first + batch, lines);
    begin(first, last - first);
    std::int64_t line = first % sizes[3];
    Plane plane(sizes, first / sizes[3]);
    for (std::int64_t number = first; number < last; plane.advance()) {
      const std::int64_t count = smaller(sizes[3] - line, last - number);
      work(plane, line, count, number);
      number += count;
      line = 0;
    }
  });
}

Box in_bytes(Box box, std::int64_t element_size) {
  box.whole[4] *= element_size;
  box.start[4] *= element_size;
  box.size[4] *= element_size;
  return box;
}

}  // namespace

void slice_pack(const SlicePack& args, int threads) {
  const Box box = in_bytes(args.box, args.element_size);
  const auto nothing = [](std::int64_t, std::int64_t) {};
  const auto part = [&](const Plane& plane, std::int64_t line, std::int64_t lines, std::int64_t to) {
    std::int64_t from = 0;
    for (int d = 0; d < 3; ++d) from = from * box.whole[d] + box.start[d] + plane.at[d];
    from = from * box.whole[3] + box.start[3] + line;
    const char* source = static_cast<const char*>(args.source) + from * box.whole[4] + box.start[4];
    char* target = static_cast<char*>(args.target) + to * box.size[4];
    for (std::int64_t i = 0; i < lines; ++i) copy(target + i * box.size[4], source + i * box.whole[4], box.size[4]);
  };
  for_each_part(box.size, threads, nothing, part);
}

void slice_unpack(const SlicePack& args, int threads) {
  const Box box = in_bytes(args.box, args.element_size);
  const auto clear = [&](std::int64_t first, std::int64_t lines) {
    // The batch stays in the first-level cache: to clear all of it is quicker than to find what lies around the runs.
    char* target = static_cast<char*>(args.target) + first * box.whole[4];
    std::memset(target, 0, static_cast<std::size_t>(lines * box.whole[4]));
  };
  const auto part = [&](const Plane& plane, std::int64_t line, std::int64_t lines, std::int64_t to) {
    std::int64_t from = 0;
    for (int d = 0; d < 3; ++d) {
      const std::int64_t at = plane.at[d] - box.start[d];
      if (at < 0 || at >= box.size[d]) return;
      from = from * box.size[d] + at;
    }
    const std::int64_t begin = line > box.start[3] ? line : box.start[3];
    const std::int64_t end = smaller(line + lines, box.start[3] + box.size[3]);
    from = from * box.size[3] + begin - box.start[3];
    const char* source = static_cast<const char*>(args.source) + from * box.size[4];
    char* target = static_cast<char*>(args.target) + (to + begin - line) * box.whole[4] + box.start[4];
    const std::int64_t count = end - begin;
    for (std::int64_t i = 0; i < count; ++i) copy(target + i * box.whole[4], source + i * box.size[4], box.size[4]);
  };
  for_each_part(box.whole, threads, clear, part);
}

}  // namespace hwnas::cpu::HWNAS_ISA
