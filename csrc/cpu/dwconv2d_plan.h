#pragma once

// How a depthwise convolution is cut into pieces, and where everything is in the workspace.
//
// All arithmetic is on vectors of channels. Where the channels come first in memory, a vector holds the same position
// of neighbouring planes, whatever images they belong to: then no lane is idle. Only who needs all channels of an image
// together (`by_image`) begins each image with a vector of its own. A plane is copied into a padded buffer
// whose rows lie `pitch` positions apart. There position p of the output is the sum over the taps of weight *
// buffer[p + offset of the tap], one offset for all p. A stride deals the rows and columns of the input out to as many
// phases, each with a buffer of its own, so that the positions stay neighbours. Large images are worked on in bands of
// rows.

#include "hwnas/dwconv2d.h"
#include "parallel.h"
#include "vector.h"

namespace hwnas::cpu::HWNAS_ISA {
namespace {

constexpr std::int64_t kRun = 7;      // taps worked on together: with the vectors of output they fit in registers
constexpr std::int64_t kPieces = 32;  // pieces of work to aim at: few add up longer, many serve more threads
constexpr std::int64_t kBandBytes = 512 * 1024;

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return a <= 0 ? 0 : (a + b - 1) / b; }
constexpr std::int64_t at_least(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
constexpr std::int64_t at_most(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
constexpr std::int64_t common_divisor(std::int64_t a, std::int64_t b) { return b == 0 ? a : common_divisor(b, a % b); }

// What all threads know. Lengths are in positions, each of which is a vector. No template: it is the same for all types
// and layouts, and would be a third of what the compiler has to do.
struct Plan {
  const DwConv2dShape& s;
  std::int64_t lanes;
  bool backward;
  bool by_image;
  std::int64_t taps, phases;
  std::int64_t blocks;   // of channels; where they come first, of planes with the same channels in the same lanes
  std::int64_t repeats;  // how often each block comes: the images, or groups of them that fill up vectors
  std::int64_t spacing;  // columns from one tap of a phase to the next
  std::int64_t halo;     // rows that a band reads behind its last one
  std::int64_t reach;    // the same for columns
  std::int64_t pitch;    // from one row to the next; the gap is the padding right of the one and left of the other
  std::int64_t rows, band;
  std::int64_t plane;     // size of the buffer of one phase of the input
  std::int64_t origin;    // where the first row of a band is in the buffer of the gradient
  std::int64_t gradient;  // size of that buffer
  std::int64_t result;    // size of the buffer of what a band computes
  std::int64_t chunk, chunks;

  // A vector has so many lanes; `more` is the number of bytes that the caller keeps for each row of a band.
  [[gnu::noinline]] Plan(const DwConv2dShape& shape, std::int64_t lane_count, std::int64_t element_bytes,
                         bool is_backward, bool is_by_image, std::int64_t more)
      : s(shape), lanes(lane_count), backward(is_backward), by_image(is_by_image) {
    taps = s.kernel.count();
    phases = s.stride.count();
    if (by_image) {
      blocks = divide_up(s.channels, lanes);
      repeats = s.batch;
    } else {
      const std::int64_t vectors = divide_up(s.batch * s.channels, lanes);
      blocks = at_most(s.channels / common_divisor(s.channels, lanes), vectors);
      repeats = divide_up(vectors, blocks);
    }
    spacing = s.dilation.width / common_divisor(s.dilation.width, s.stride.width);
    halo = (s.kernel.height - 1) * s.dilation.height / s.stride.height;
    reach = (s.kernel.width - 1) * s.dilation.width / s.stride.width;
    pitch = at_least(s.out.width, divide_up(s.in.width + s.padding.width, s.stride.width));
    rows = s.out.height;
    if (backward) rows = at_least(rows, divide_up(s.in.height + s.padding.height, s.stride.height));
    const std::int64_t row_bytes = pitch * kVectorBytes * (phases + (backward ? 1 : 0)) + more;
    band = at_most(rows, at_least(kBandBytes / row_bytes, 1 + halo));
    plane = (band + halo) * pitch + reach;
    origin = reach + halo * pitch;
    gradient = origin + band * pitch;
    result = backward ? band * s.stride.height * s.in.width : band * s.out.width;
    if (s.channels_last) result = backward ? s.in.width : s.out.width;
    chunk = divide_up(repeats, divide_up(kPieces, blocks));
    // Where the channels come last, blocks of a chunk read the same lines of memory: they should still be in a cache.
    const std::int64_t image_bytes = s.in.count() * s.channels * element_bytes;
    if (s.channels_last) chunk = at_least(at_most(chunk, kBandBytes / image_bytes), 1);
    chunks = divide_up(repeats, chunk);
  }

  std::int64_t pieces() const { return chunks * blocks; }

  // The channel in a lane of a block, -1 if there is none.
  std::int64_t channel(std::int64_t block, std::int64_t lane) const {
    const std::int64_t number = block * lanes + lane;
    return by_image ? (number < s.channels ? number : -1) : number % s.channels;
  }

  // The first plane of a block, counted over all images.
  std::int64_t first_plane(std::int64_t block, std::int64_t repeat) const {
    return by_image ? repeat * s.channels + block * lanes : (repeat * blocks + block) * lanes;
  }

  // Lanes in use, at the given repetition of a block.
  std::int64_t lanes_of(std::int64_t block, std::int64_t repeat) const {
    const std::int64_t end = by_image ? (repeat + 1) * s.channels : s.batch * s.channels;
    return at_least(0, at_most(end - first_plane(block, repeat), lanes));
  }

  int threads(int most) const {
    const std::int64_t size = s.batch * s.channels * s.in.count();
    return size < kSerialBelow ? 1 : static_cast<int>(at_most(pieces(), most));
  }
};

// Cuts the workspace into aligned parts. From address 0 it only finds out how large the workspace has to be.
struct Carver {
  std::uintptr_t next;

  template <class P>
  void take(P*& pointer, std::int64_t count) {
    constexpr std::int64_t unit = kDwConv2dAlignment;
    pointer = reinterpret_cast<P*>(next);
    next += static_cast<std::uintptr_t>(divide_up(count * static_cast<std::int64_t>(sizeof(P)), unit) * unit);
  }
};

// Taps of a kernel's row that are `spacing` columns apart.
struct Run {
  std::int64_t offset;  // of what the first one reads, in numbers
  std::int64_t first;   // its weight
  std::int64_t count;
  std::int64_t begin;  // first row of results for which they read inside the image: with large kernels there are few
  std::int64_t end;    // the one behind the last
};

struct Runs {
  const Run* begin;
  std::int64_t count;
};

// Where everything is. The taps of a phase come after each other. To correlate the gradient of the output, everything is
// in reverse.
struct Places {
  std::int64_t* index;     // of each tap in the full kernel
  Run* of_x;               // runs in the buffers of the input
  Run* of_g;               // the same in the buffer of the gradient
  std::int64_t* phase;     // where the runs of each phase begin
  std::int64_t* first;     // for each phase of the columns the first one inside the image
  std::int64_t* last;      // and the one behind the last
  std::int32_t* x_places;  // where each position of the input goes, beginning with the first row of a band
  std::int32_t* g_places;  // the same for the gradient
  Runs all;                // of the input

  [[gnu::noinline]] void carve(Carver& carver, const Plan& plan) {
    carver.take(index, plan.taps);
    carver.take(of_x, plan.taps);
    carver.take(of_g, plan.taps);
    carver.take(phase, plan.phases + 1);
    carver.take(first, plan.s.stride.width);
    carver.take(last, plan.s.stride.width);
    carver.take(x_places, (plan.band + plan.halo) * plan.s.stride.height * plan.s.in.width);
    carver.take(g_places, plan.backward ? (plan.halo + plan.band) * plan.s.out.width : 0);
  }

  [[gnu::noinline]] void fill(const Plan& plan) {
    fill_runs(plan);
    fill_places(plan);
  }

  void fill_runs(const Plan& plan) {
    const DwConv2dShape& s = plan.s;
    std::int64_t tap = 0, runs = 0;
    for (std::int64_t row = 0; row < s.stride.height; ++row) {
      for (std::int64_t column = 0; column < s.stride.width; ++column) {
        const std::int64_t part = row * s.stride.width + column;
        phase[part] = runs;
        for (std::int64_t i = 0; i < s.kernel.height; ++i) {
          const std::int64_t down = i * s.dilation.height;
          if (down % s.stride.height != row) continue;
          std::int64_t length = 0;
          for (std::int64_t j = 0; j < s.kernel.width; ++j) {
            const std::int64_t right = j * s.dilation.width;
            if (right % s.stride.width != column) continue;
            const std::int64_t offset = down / s.stride.height * plan.pitch + right / s.stride.width;
            index[tap] = (s.kernel_start.height + i) * s.full_kernel.width + s.kernel_start.width + j;
            if (length++ % kRun == 0) {
              of_x[runs++] = {(part * plan.plane + offset) * plan.lanes, tap, 0,
                              divide_up(s.padding.height - down, s.stride.height),
                              divide_up(s.in.height + s.padding.height - down, s.stride.height)};
            }
            ++of_x[runs - 1].count;
            // Of the last tap so far: it reads the first position.
            of_g[runs - 1] = {-offset * plan.lanes, plan.taps - 1 - tap, of_x[runs - 1].count,
                              down / s.stride.height, s.out.height + down / s.stride.height};
            ++tap;
          }
        }
      }
    }
    phase[plan.phases] = runs;
    all = {of_x, runs};
    for (std::int64_t column = 0; column < s.stride.width; ++column) {
      first[column] = divide_up(s.padding.width - column, s.stride.width);
      last[column] = at_least(first[column], divide_up(s.in.width + s.padding.width - column, s.stride.width));
    }
  }

  void fill_places(const Plan& plan) {
    const DwConv2dShape& s = plan.s;
    std::int32_t* to = x_places;
    for (std::int64_t i = 0; i < (plan.band + plan.halo) * s.stride.height; ++i) {
      const std::int64_t begin = i % s.stride.height * s.stride.width * plan.plane + i / s.stride.height * plan.pitch;
      std::int64_t phase = s.padding.width % s.stride.width, column = s.padding.width / s.stride.width;
      for (std::int64_t j = 0; j < s.in.width; ++j) {
        *to++ = static_cast<std::int32_t>(begin + phase * plan.plane + column);
        if (++phase == s.stride.width) phase = 0, ++column;
      }
    }
    if (!plan.backward) return;
    to = g_places;
    for (std::int64_t i = -plan.halo; i < plan.band; ++i) {
      for (std::int64_t j = 0; j < s.out.width; ++j) {
        *to++ = static_cast<std::int32_t>(plan.origin + i * plan.pitch + j);
      }
    }
  }
};

// What is read by all threads and written by none of them.
template <class Scalar>
struct Tables : Places {
  Scalar* weights;  // for each block and tap those of its channels; in reverse for the backward pass
  Scalar* bias;     // for each block

  void carve(Carver& carver, const Plan& plan) {
    Places::carve(carver, plan);
    carver.take(weights, plan.blocks * plan.taps * plan.lanes);
    carver.take(bias, plan.blocks * plan.lanes);
  }

  template <class T>
  [[gnu::noinline]] void fill(const Plan& plan, const T* weight, const T* bias_of) {
    Places::fill(plan);
    const std::int64_t full = plan.s.full_kernel.count();
    for (std::int64_t block = 0; block < plan.blocks; ++block) {
      for (std::int64_t lane = 0; lane < plan.lanes; ++lane) {
        const std::int64_t channel = plan.channel(block, lane);
        Scalar* to = weights + block * plan.taps * plan.lanes + lane;
        for (std::int64_t tap = 0; tap < plan.taps; ++tap) {
          const std::int64_t place = plan.backward ? plan.taps - 1 - tap : tap;
          to[place * plan.lanes] = channel < 0 ? 0 : Element<T>::get(weight + channel * full + index[tap]);
        }
        bias[block * plan.lanes + lane] = channel < 0 || bias_of == nullptr ? 0 : Element<T>::get(bias_of + channel);
      }
    }
  }
};

// What a thread has for itself.
template <class Scalar>
struct Buffers {
  Scalar* x;       // the padded input, all phases
  Scalar* g;       // the padded gradient
  Scalar* sums;    // gradients of the weight for each tap, and of the bias behind them
  Scalar* result;  // of a band, or of a row where the channels come last, on its way to the tensor
  std::uintptr_t begin;
  std::uintptr_t end;

  [[gnu::noinline]] void carve(Carver& carver, const Plan& plan) {
    begin = carver.next;
    carver.take(x, plan.phases * plan.plane * plan.lanes);
    carver.take(g, plan.backward ? plan.gradient * plan.lanes : 0);
    carver.take(sums, plan.backward ? (plan.taps + 1) * plan.lanes : 0);
    carver.take(result, plan.result * plan.lanes);
    end = carver.next;
  }

  // What is padding left and right stays zero, sums begin with it.
  void clear() const {
    std::memset(static_cast<void*>(x), 0, reinterpret_cast<std::uintptr_t>(result) - begin);
  }
};

}  // namespace
}  // namespace hwnas::cpu::HWNAS_ISA
