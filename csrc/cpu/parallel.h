#pragma once

// Loops over independent pieces of work. In an anonymous namespace for the same reason as vector.h.

#include <cstdint>

namespace {

// Below this many elements starting threads costs more than it saves.
constexpr std::int64_t kSerialBelow = 32768;

// Compiled once: inlined, a piece of work would be there for one thread and for many.
template <class Work>
[[gnu::noinline]] void do_piece(const Work& work, std::int64_t i) {
  work(i);
}

// Calls work(i) for every i below `count`. Which thread does a piece of work must not change its result.
template <class Work>
void for_each(std::int64_t count, int threads, const Work& work) {
  // Apart from the parallel loop, and not by its `if` clause: a region of one thread has a cost too.
  if (threads == 1 || count < 2) {
    for (std::int64_t i = 0; i < count; ++i) do_piece(work, i);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t i = 0; i < count; ++i) do_piece(work, i);
}

}  // namespace
