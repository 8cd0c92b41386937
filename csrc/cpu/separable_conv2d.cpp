// Compiled once for each instruction set; HWNAS_ISA names the namespace.
//
// Each image, or band of its rows, goes through both convolutions while it is in the caches. The output of the depthwise
// one stands in a buffer [position][channel], blocks of channels side by side. Where the channels come first in memory,
// what the pointwise one reads and writes is copied between planes and buffers of the same kind.

#include "hwnas/separable_conv2d.h"

#include "dwconv2d_block.h"
#include "dwconv2d_plan.h"
#include "parallel.h"
#include "small_product.h"
#include "vector.h"

namespace hwnas::cpu::HWNAS_ISA {
namespace {

using E = Element<float>;

constexpr std::int64_t kLanes = E::lanes;

std::int64_t vectors_of(std::int64_t channels) { return divide_up(channels, kLanes); }

std::int64_t row_bytes(const SeparableConv2dShape& shape) {
  return shape.depthwise.out.width * kVectorBytes *
         (vectors_of(shape.depthwise.channels) + vectors_of(shape.out_channels));
}

// What the layouts have in common.
struct Frame {
  const SeparableConv2dShape& shape;
  const DwConv2dShape& s;
  Plan plan;
  std::int64_t channels, outputs;  // in vectors
  std::int64_t positions;          // the most of the output that a band computes or reads
  std::int64_t bands, units, chunk, pieces;
  std::int64_t sums;  // those of all gradients of weights

  // The same for all threads.
  Tables<float> tables;
  float* taps;         // weights of the depthwise convolution, for each block and tap
  float* pointwise;    // rows of vectors: for each channel forward, for each output backward
  std::int32_t* side;  // where positions of one vector go in a buffer of all outputs
  float* partials;     // sums of each piece
  double* totals;

  struct Own {
    Buffers<float> buffers;
    float* between;  // output of the depthwise convolution
    float* outside;  // output of the pointwise one, or its gradient; that of `between` in the backward pass
    float* gradient;
    float* sums;
    std::uintptr_t end;
  };

  [[gnu::noinline]] Frame(const SeparableConv2dShape& of, bool backward)
      : shape(of), s(of.depthwise), plan(s, kLanes, sizeof(float), backward, true, row_bytes(of)) {
    channels = plan.blocks;
    outputs = vectors_of(shape.out_channels);
    positions = (plan.band + (backward ? plan.halo : 0)) * s.out.width;
    bands = divide_up(plan.rows, plan.band);
    units = s.batch * bands;
    chunk = divide_up(units, kPieces);
    pieces = divide_up(units, chunk);
    sums = plan.backward ? (channels * plan.taps + shape.out_channels * channels) * kLanes : 0;
  }

  // The outputs of the pointwise convolution are written by itself.
  bool direct() const { return s.channels_last && shape.out_channels % kLanes == 0; }

  int threads(int most) const {
    const std::int64_t size = s.batch * (s.channels * s.in.count() + shape.out_channels * s.out.count());
    return size < kSerialBelow ? 1 : static_cast<int>(at_most(pieces, most));
  }

  [[gnu::noinline]] void carve(Carver& carver) {
    tables.carve(carver, plan);
    carver.take(taps, channels * plan.taps * kLanes);
    carver.take(pointwise, plan.backward ? shape.out_channels * channels * kLanes : s.channels * outputs * kLanes);
    carver.take(side, positions);
    carver.take(partials, pieces * sums);
    carver.take(totals, sums);
  }

  [[gnu::noinline]] Own carve_own(Carver& carver) const {
    Own own;
    own.buffers.carve(carver, plan);
    carver.take(own.between, positions * (plan.backward ? 1 : channels) * kLanes);
    carver.take(own.outside, s.channels_last && (plan.backward || direct()) ? 0 : positions * outputs * kLanes);
    carver.take(own.gradient, plan.backward ? positions * kLanes : 0);
    carver.take(own.sums, sums);
    own.end = carver.next;
    return own;
  }

  std::int64_t workspace(int most) {
    Carver carver{0};
    carve(carver);
    for (int thread = 0; thread < threads(most); ++thread) carve_own(carver);
    return static_cast<std::int64_t>(carver.next);
  }

  [[gnu::noinline]] void fill(const float* depthwise, const float* weights) {
    tables.fill(plan, depthwise, static_cast<const float*>(nullptr));
    for (std::int64_t row = 0; row < channels * plan.taps; ++row) {
      const std::int64_t tap = row % plan.taps;
      const std::int64_t from = plan.backward ? row - tap + (plan.taps - 1 - tap) : row;
      E::store(taps + row * kLanes, E::load(tables.weights + from * kLanes));
    }
    const std::int64_t rows = plan.backward ? shape.out_channels : s.channels;
    const std::int64_t columns = plan.backward ? s.channels : shape.out_channels;
    const std::int64_t next = (plan.backward ? channels : outputs) * kLanes;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t column = 0; column < next; ++column) {
        const std::int64_t at = plan.backward ? row * columns + column : column * rows + row;
        pointwise[row * next + column] = column < columns ? weights[at] : 0.0f;
      }
    }
    for (std::int64_t p = 0; p < positions; ++p) side[p] = static_cast<std::int32_t>(p * outputs);
  }

  // Calls work(own, image, top) for each band of each piece, a range of pieces on each thread, then finish(own, piece).
  template <class Work, class Finish>
  void for_each_band(Carver carver, int most, const Work& work, const Finish& finish) const {
    const std::int64_t ranges = threads(most);
    Carver probe = carver;
    const std::uintptr_t size = carve_own(probe).end - carver.next;
    for_each(ranges, static_cast<int>(ranges), [&](std::int64_t range) {
      Carver mine{carver.next + static_cast<std::uintptr_t>(range) * size};
      const Own own = carve_own(mine);
      own.buffers.clear();
      for (std::int64_t i = 0; i < sums; ++i) own.sums[i] = 0;
      for (std::int64_t piece = pieces * range / ranges; piece < pieces * (range + 1) / ranges; ++piece) {
        for (std::int64_t unit = piece * chunk; unit < at_most((piece + 1) * chunk, units); ++unit) {
          work(own, unit / bands, unit % bands * plan.band);
        }
        finish(own, piece);
      }
    });
  }

  // The sums over the pieces, always in the same order.
  [[gnu::noinline]] void add_pieces(float* grad_depthwise, float* grad_pointwise) const {
    if (grad_depthwise == nullptr && grad_pointwise == nullptr) return;
    for (std::int64_t i = 0; i < sums; ++i) totals[i] = 0;
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
      for (std::int64_t i = 0; i < sums; ++i) totals[i] += static_cast<double>(partials[piece * sums + i]);
    }
    const double* of_points = totals + channels * plan.taps * kLanes;
    for (std::int64_t c = 0; c < s.channels; ++c) {
      const double* of_taps = totals + (c / kLanes * plan.taps) * kLanes + c % kLanes;
      for (std::int64_t tap = 0; tap < plan.taps && grad_depthwise != nullptr; ++tap) {
        grad_depthwise[c * plan.taps + tables.index[tap]] = static_cast<float>(of_taps[tap * kLanes]);
      }
    }
    for (std::int64_t o = 0; o < shape.out_channels && grad_pointwise != nullptr; ++o) {
      for (std::int64_t c = 0; c < s.channels; ++c) {
        grad_pointwise[o * s.channels + c] = static_cast<float>(of_points[o * channels * kLanes + c]);
      }
    }
  }
};

template <bool Last>
struct Separable : Frame {
  using Frame::Frame;

  Block<float, Last> block_of(const Own& own, std::int64_t block, std::int64_t image, std::int64_t top) const {
    return {plan, tables, own.buffers, block, image, top, plan.lanes_of(block, image)};
  }

  // The depthwise convolution of what is packed, of rows that a band computes.
  void convolve(const Block<float, Last>& block, std::int64_t rows, float* to, std::int64_t next) const {
    for (std::int64_t r = 0; r < rows; ++r) {
      const Row<float> row{block.buffers.x + r * plan.pitch * kLanes, taps + block.block * plan.taps * kLanes, nullptr,
                           to + r * s.out.width * next, next, block.top + r};
      correlate_row(row, tables.all, s.out.width, plan.spacing, f32v{});
    }
  }

  void forward_band(const Own& own, std::int64_t image, std::int64_t top, const float* x, float* y) const {
    const std::int64_t rows = at_most(plan.band, s.out.height - top), count = rows * s.out.width;
    for (std::int64_t b = 0; b < channels; ++b) {
      const Block<float, Last> block = block_of(own, b, image, top);
      block.pack_input(x);
      convolve(block, rows, own.between + b * kLanes, channels * kLanes);
    }
    Product p{own.between, channels * kLanes, s.channels, pointwise, outputs * kLanes, own.outside, kLanes,
              count * kLanes};
    const std::int64_t begin = top * s.out.width;
    float* to = y + image * s.out.count() * shape.out_channels + begin * (Last ? shape.out_channels : 1);
    if (direct()) p.to = to, p.to_next = shape.out_channels, p.to_step = kLanes;
    product(count, outputs, p);
    if (direct()) return;
    for (std::int64_t v = 0; v < outputs; ++v) {
      const float* from = own.outside + v * count * kLanes;
      const std::int64_t used = at_most(kLanes, shape.out_channels - v * kLanes);
      if (Last) {
        for (std::int64_t i = 0; i < count; ++i) {
          store_some(to + i * shape.out_channels + v * kLanes, E::load(from + i * kLanes), used);
        }
      } else {
        unpack_planes(to + v * kLanes * s.out.count(), from, s.out.count(), count, used);
      }
    }
  }

  void forward(const SeparableConv2d& args, int most) {
    Carver carver{reinterpret_cast<std::uintptr_t>(args.workspace)};
    carve(carver);
    fill(static_cast<const float*>(args.depthwise), static_cast<const float*>(args.pointwise));
    for_each_band(
        carver, most,
        [&](const Own& own, std::int64_t image, std::int64_t top) {
          forward_band(own, image, top, static_cast<const float*>(args.x), static_cast<float*>(args.y));
        },
        [](const Own&, std::int64_t) {});
  }

  // Rows of the gradient of the output as [position][channel]: where they are, or copied.
  struct Gradient {
    const float* at;
    std::int64_t next;
  };

  Gradient gradient_of(const Own& own, const float* grad, std::int64_t image, std::int64_t begin,
                       std::int64_t count) const {
    const float* from = grad + image * s.out.count() * shape.out_channels + begin * (Last ? shape.out_channels : 1);
    if (Last) return {from, shape.out_channels};
    for (std::int64_t v = 0; v < outputs; ++v) {
      pack_planes(own.outside + v * kLanes, side, from + v * kLanes * s.out.count(), s.out.count(), count,
                  at_most(kLanes, shape.out_channels - v * kLanes), false, kLanes * s.out.count());
    }
    return {own.outside, outputs * kLanes};
  }

  void backward_band(const Own& own, std::int64_t image, std::int64_t top, const SeparableConv2dBackward& args) const {
    const std::int64_t begin = at_least(0, top - plan.halo), end = at_most(top + plan.band, s.out.height);
    const std::int64_t rows = end - top, count = at_least(0, end - begin) * s.out.width;
    const bool of_taps = args.grad_depthwise != nullptr, of_points = args.grad_pointwise != nullptr && rows > 0;
    const Gradient g =
        gradient_of(own, static_cast<const float*>(args.grad), image, begin * s.out.width, count);
    for (std::int64_t b = 0; b < channels; ++b) {
      Buffers<float> buffers = own.buffers;
      buffers.sums = own.sums + b * plan.taps * kLanes;
      const Block<float, Last> block{plan, tables, buffers, b, image, top, plan.lanes_of(b, image)};
      if (of_taps || of_points || s.pre_relu) block.pack_input(static_cast<const float*>(args.x));
      if (of_points) {
        convolve(block, rows, own.between, kLanes);
        outer_product(shape.out_channels,
                      {g.at + (top - begin) * s.out.width * g.next, g.next, own.between, kLanes, rows * s.out.width,
                       own.sums + (channels * plan.taps + b) * kLanes, channels * kLanes});
      }
      if (!of_taps && args.grad_x == nullptr) continue;
      product(count, 1, {g.at, g.next, shape.out_channels, pointwise + b * kLanes, channels * kLanes, own.gradient,
                         kLanes, 0});
      const std::int32_t* places = tables.g_places + (begin - (top - plan.halo)) * s.out.width;
      pack_pixels(buffers.g, places, own.gradient, kLanes, count, kLanes, false, 0);
      if (args.grad_x != nullptr) block.input_gradient(static_cast<float*>(args.grad_x));
      block.add_gradients(of_taps, false);
    }
  }

  void backward(const SeparableConv2dBackward& args, int most) {
    Carver carver{reinterpret_cast<std::uintptr_t>(args.workspace)};
    carve(carver);
    fill(static_cast<const float*>(args.depthwise), static_cast<const float*>(args.pointwise));
    for_each_band(
        carver, most,
        [&](const Own& own, std::int64_t image, std::int64_t top) { backward_band(own, image, top, args); },
        [&](const Own& own, std::int64_t piece) {
          for (std::int64_t i = 0; i < sums; ++i) {
            partials[piece * sums + i] = own.sums[i];
            own.sums[i] = 0;
          }
        });
    add_pieces(static_cast<float*>(args.grad_depthwise), static_cast<float*>(args.grad_pointwise));
  }
};

// Calls work(...) for the layout of a shape.
template <class Work>
auto dispatch(const SeparableConv2dShape& shape, bool backward, const Work& work) {
  return shape.depthwise.channels_last ? work(Separable<true>(shape, backward))
                                       : work(Separable<false>(shape, backward));
}

}  // namespace

std::int64_t separable_conv2d_workspace(const SeparableConv2dShape& shape, int threads) {
  return dispatch(shape, false, [&](auto run) { return run.workspace(threads); });
}

std::int64_t separable_conv2d_backward_workspace(const SeparableConv2dShape& shape, int threads) {
  return dispatch(shape, true, [&](auto run) { return run.workspace(threads); });
}

void separable_conv2d(const SeparableConv2d& args, int threads) {
  dispatch(args.shape, false, [&](auto run) { run.forward(args, threads); });
}

void separable_conv2d_backward(const SeparableConv2dBackward& args, int threads) {
  dispatch(args.shape, true, [&](auto run) { run.backward(args, threads); });
}

}  // namespace hwnas::cpu::HWNAS_ISA
