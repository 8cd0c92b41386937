#pragma once

// Loops over independent pieces of work. In an anonymous namespace for the same reason as vector.h.

#include <cstdint>

namespace {

// Below this many elements starting threads costs more than it saves.
constexpr std::int64_t kSerialBelow = 32768;

// Calls work(i) for every i below `count`. Which thread does a piece of work must not change its result.
template <class Work>
void for_each(std::int64_t count, int threads, const Work& work) {
  // Apart from the parallel loop, and not by its `if` clause: a region of one thread has a cost too.
  if (threads == 1 || count < 2) {
    for (std::int64_t i = 0; i < count; ++i) work(i);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t i = 0; i < count; ++i) work(i);
}

}  // namespace
