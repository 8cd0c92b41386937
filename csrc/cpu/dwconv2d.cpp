// Compiled once for each instruction set; HWNAS_ISA names the namespace.

#include "hwnas/dwconv2d.h"

#include "dwconv2d_pack.h"
#include "dwconv2d_plan.h"
#include "dwconv2d_sums.h"
#include "parallel.h"
#include "vector.h"

namespace hwnas::cpu::HWNAS_ISA {
namespace {

// One block of channels, one image after the other, band by band.
template <class T, bool Last>
struct Block {
  using E = Element<T>;
  using Scalar = typename E::Scalar;
  using Vector = typename E::Vector;
  using B = Element<Scalar>;

  const Plan<T, Last>& plan;
  const Tables<Scalar>& tables;
  const Buffers<Scalar>& buffers;
  std::int64_t block;
  std::int64_t repeat;
  std::int64_t top;   // first row of the band
  std::int64_t used;  // lanes

  // Where the channels of the block begin in a tensor of images of `size`.
  template <class P>
  P* part_of(P* tensor, const Size2d& size) const {
    return Last ? tensor + repeat * size.count() * plan.s.channels + block * plan.lanes
                : tensor + (repeat * plan.blocks + block) * plan.lanes * size.count();
  }

  // Copies rows of a tensor to their places, which begin with that of row `start`. Nobody reads rows outside the image.
  void pack(Scalar* to, const std::int32_t* places, const T* tensor, const Size2d& size, std::int64_t start,
            std::int64_t rows, bool rectify) const {
    const std::int64_t begin = at_least(start, 0), end = at_most(start + rows, size.height);
    if (begin >= end) return;
    const T* from = part_of(tensor, size) + begin * size.width * (Last ? plan.s.channels : 1);
    places += (begin - start) * size.width;
    const std::int64_t positions = (end - begin) * size.width;
    if (Last) {
      pack_pixels(to, places, from, plan.s.channels, positions, used, rectify, block == 0 ? plan.blocks : 0);
    } else {
      pack_planes(to, places, from, size.count(), positions, used, rectify, plan.blocks * plan.lanes * size.count());
    }
  }

  // The rows that the band reads.
  void pack_input(const T* x) const {
    const DwConv2dShape& s = plan.s;
    pack(buffers.x, tables.x_places, x, s.in, top * s.stride.height - s.padding.height,
         (plan.band + plan.halo) * s.stride.height, s.pre_relu);
  }

  void pack_gradient(const T* grad) const {
    pack(buffers.g, tables.g_places, grad, plan.s.out, top - plan.halo, plan.band + plan.halo, false);
  }

  // Computes columns of a row, which are `next` apart in the tensor. Where the channels come first, the results stay in
  // the buffer, from where planes of them are written at once.
  void correlate_columns(T* to, std::int64_t next, Scalar* result, const Scalar* at, const Runs& runs,
                         const Scalar* open, std::int64_t columns) const {
    const std::int64_t channels = plan.s.channels;
    const Scalar* weights = tables.weights + block * plan.taps * plan.lanes;
    const Vector start = B::load(tables.bias + block * plan.lanes);
    if constexpr (Last && sizeof(T) == sizeof(Scalar)) {
      if (used == plan.lanes) {
        return correlate_row(Row<Scalar>{at, weights, open, to, next * channels}, runs, columns, plan.spacing, start);
      }
    }
    correlate_row(Row<Scalar>{at, weights, open, result, next * plan.lanes}, runs, columns, plan.spacing, start);
    for (std::int64_t c = 0; c < columns && Last; ++c) {
      store_some(to + c * next * channels, B::load(result + c * next * plan.lanes), used);
    }
  }

  void forward(T* y) const {
    const DwConv2dShape& s = plan.s;
    const std::int64_t rows = at_most(plan.band, s.out.height - top);
    T* to = part_of(y, s.out) + top * s.out.width * (Last ? s.channels : 1);
    for (std::int64_t r = 0; r < rows; ++r) {
      const Runs runs = inside(tables.all, (top + r) * s.stride.height, s.in.height, buffers.runs);
      correlate_columns(Last ? to + r * s.out.width * s.channels : nullptr, 1,
                        Last ? buffers.result : buffers.result + r * s.out.width * plan.lanes,
                        buffers.x + r * plan.pitch * plan.lanes, runs, nullptr, s.out.width);
    }
    if (!Last) unpack_planes(to, buffers.result, s.out.count(), rows * s.out.width, used);
  }

  // The gradient of the input, masked where the ReLU was closed: there the buffer of the input holds zeros.
  void input_gradient(T* grad_x) const {
    const DwConv2dShape& s = plan.s;
    const std::int64_t start = top * s.stride.height - s.padding.height;
    const std::int64_t begin = at_least(start, 0), end = at_most(start + plan.band * s.stride.height, s.in.height);
    if (begin >= end) return;
    T* to = part_of(grad_x, s.in) + begin * s.in.width * (Last ? s.channels : 1);
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t r = (row - start) / s.stride.height, row_phase = (row - start) % s.stride.height;
      for (std::int64_t column_phase = 0; column_phase < s.stride.width; ++column_phase) {
        const std::int64_t phase = row_phase * s.stride.width + column_phase;
        const std::int64_t first = tables.first[column_phase], columns = tables.last[column_phase] - first;
        const Runs of_phase{tables.of_g + tables.phase[phase], tables.phase[phase + 1] - tables.phase[phase]};
        const Runs runs = inside(of_phase, top + r, s.out.height, buffers.runs);
        const std::int64_t at = r * plan.pitch + first;
        const std::int64_t column = first * s.stride.width + column_phase - s.padding.width;
        const std::int64_t place = (row - begin) * s.in.width + column;
        correlate_columns(Last ? to + place * s.channels : nullptr, s.stride.width,
                          Last ? buffers.result : buffers.result + place * plan.lanes,
                          buffers.g + (plan.origin + at) * plan.lanes, runs,
                          s.pre_relu ? buffers.x + (phase * plan.plane + at) * plan.lanes : nullptr, columns);
      }
    }
    if (!Last) unpack_planes(to, buffers.result, s.in.count(), (end - begin) * s.in.width, used);
  }

  void add_gradients(bool of_weight, bool of_bias) const {
    const DwConv2dShape& s = plan.s;
    const std::int64_t bottom = at_most(top + plan.band, s.out.height);
    const Scalar* g = buffers.g + plan.origin * plan.lanes;
    const Run* end = tables.all.begin + tables.all.count;
    for (const Run* run = tables.all.begin; run != end && of_weight; ++run) {
      const std::int64_t first = at_least(top, divide_up(-run->row, s.stride.height));
      const std::int64_t last = at_most(bottom, divide_up(s.in.height - run->row, s.stride.height));
      const std::int64_t at = (first - top) * plan.pitch * plan.lanes;
      some_run_sums(run->count, Area{last - first, s.out.width, plan.pitch, plan.spacing}, g + at,
                    buffers.x + run->offset + at, buffers.sums + run->first * plan.lanes);
    }
    if (of_bias) {
      add_up(Area{bottom - top, s.out.width, plan.pitch, plan.spacing}, g, buffers.sums + plan.taps * plan.lanes);
    }
  }
};

template <class T, bool Last>
struct Whole {
  using P = Plan<T, Last>;
  using E = Element<T>;
  using Scalar = typename E::Scalar;

  // The tables, and sums for each piece of the backward pass: those of the taps, and that of the bias.
  struct Shared {
    Tables<Scalar> tables;
    double* partials;

    void carve(Carver& carver, const P& plan) {
      tables.carve(carver, plan);
      carver.take(partials, plan.backward ? plan.pieces() * (plan.taps + 1) * plan.lanes : 0);
    }
  };

  static std::int64_t workspace(const DwConv2dShape& shape, bool backward, int threads) {
    const P plan(shape, backward);
    Carver carver{0};
    Shared shared;
    shared.carve(carver, plan);
    for (int thread = 0; thread < plan.threads(threads); ++thread) Buffers<Scalar>{}.carve(carver, plan);
    return static_cast<std::int64_t>(carver.next);
  }

  // Calls work(block, piece) for each band of each piece, a range of pieces on each thread.
  template <class Work, class Finish>
  static void for_each_band(const P& plan, const Tables<Scalar>& tables, Carver carver, int threads, const Work& work,
                            const Finish& finish) {
    const std::int64_t pieces = plan.pieces(), ranges = plan.threads(threads);
    Buffers<Scalar> first;
    first.carve(carver, plan);
    for_each(ranges, static_cast<int>(ranges), [&](std::int64_t range) {
      Carver own{first.begin + static_cast<std::uintptr_t>(range) * (first.end - first.begin)};
      Buffers<Scalar> buffers;
      buffers.carve(own, plan);
      buffers.clear();
      for (std::int64_t piece = pieces * range / ranges; piece < pieces * (range + 1) / ranges; ++piece) {
        const std::int64_t block = piece % plan.blocks, begin = piece / plan.blocks * plan.chunk;
        for (std::int64_t repeat = begin; repeat < at_most(begin + plan.chunk, plan.repeats); ++repeat) {
          for (std::int64_t top = 0; top < plan.rows; top += plan.band) {
            work(Block<T, Last>{plan, tables, buffers, block, repeat, top, plan.lanes_of(block, repeat)});
          }
        }
        finish(buffers, piece);
      }
    });
  }

  static void forward(const DwConv2d& args, int threads) {
    const P plan(args.shape, false);
    Carver carver{reinterpret_cast<std::uintptr_t>(args.workspace)};
    Shared shared;
    shared.carve(carver, plan);
    shared.tables.fill(plan, static_cast<const T*>(args.weight), static_cast<const T*>(args.bias));
    for_each_band(
        plan, shared.tables, carver, threads,
        [&](const Block<T, Last>& block) {
          block.pack_input(static_cast<const T*>(args.x));
          block.forward(static_cast<T*>(args.y));
        },
        [](const Buffers<Scalar>&, std::int64_t) {});
  }

  static void backward(const DwConv2dBackward& args, int threads) {
    const P plan(args.shape, true);
    Carver carver{reinterpret_cast<std::uintptr_t>(args.workspace)};
    Shared shared;
    shared.carve(carver, plan);
    shared.tables.fill(plan, static_cast<const T*>(args.weight), static_cast<const T*>(nullptr));
    const std::int64_t size = (plan.taps + 1) * plan.lanes;
    const bool of_weight = args.grad_weight != nullptr, of_bias = args.grad_bias != nullptr;
    for_each_band(
        plan, shared.tables, carver, threads,
        [&](const Block<T, Last>& block) {
          block.pack_gradient(static_cast<const T*>(args.grad));
          if (of_weight || (args.grad_x != nullptr && args.shape.pre_relu)) {
            block.pack_input(static_cast<const T*>(args.x));
          }
          if (args.grad_x != nullptr) block.input_gradient(static_cast<T*>(args.grad_x));
          block.add_gradients(of_weight, of_bias);
        },
        [&](const Buffers<Scalar>& buffers, std::int64_t piece) {
          for (std::int64_t i = 0; i < size; ++i) {
            shared.partials[piece * size + i] = buffers.sums[i];
            buffers.sums[i] = 0;
          }
        });
    if (of_weight || of_bias) add_pieces(args, plan, shared);
  }

  // The sums over the pieces, always in the same order.
  static void add_pieces(const DwConv2dBackward& args, const P& plan, const Shared& shared) {
    for (std::int64_t channel = 0; channel < args.shape.channels; ++channel) {
      for (std::int64_t tap = 0; tap <= plan.taps; ++tap) {
        const bool is_bias = tap == plan.taps;
        T* to = static_cast<T*>(is_bias ? args.grad_bias : args.grad_weight);
        if (to == nullptr) continue;
        double total = 0;
        // Where the channels come first, a channel comes back after so many planes.
        const std::int64_t lanes = plan.blocks * plan.lanes;
        for (std::int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
          for (std::int64_t lane = channel; lane < lanes; lane += Last ? lanes : args.shape.channels) {
            const std::int64_t piece = chunk * plan.blocks + lane / plan.lanes;
            total += shared.partials[(piece * (plan.taps + 1) + tap) * plan.lanes + lane % plan.lanes];
          }
        }
        const std::int64_t at = channel * args.shape.full_kernel.count();
        E::put(to + (is_bias ? channel : at + shared.tables.index[tap]), static_cast<Scalar>(total));
      }
    }
  }
};

// Calls work(...) for the element type and layout of a shape.
template <class Work>
auto dispatch(const DwConv2dShape& shape, const Work& work) {
  switch (shape.dtype) {
    case DType::f32: return shape.channels_last ? work(Whole<float, true>{}) : work(Whole<float, false>{});
    case DType::bf16: return shape.channels_last ? work(Whole<bf16, true>{}) : work(Whole<bf16, false>{});
    default: return shape.channels_last ? work(Whole<double, true>{}) : work(Whole<double, false>{});
  }
}

}  // namespace

std::int64_t dwconv2d_workspace(const DwConv2dShape& shape, int threads) {
  return dispatch(shape, [&](auto run) { return run.workspace(shape, false, threads); });
}

std::int64_t dwconv2d_backward_workspace(const DwConv2dShape& shape, int threads) {
  return dispatch(shape, [&](auto run) { return run.workspace(shape, true, threads); });
}

void dwconv2d(const DwConv2d& args, int threads) {
  dispatch(args.shape, [&](auto run) { run.forward(args, threads); });
}

void dwconv2d_backward(const DwConv2dBackward& args, int threads) {
  dispatch(args.shape, [&](auto run) { run.backward(args, threads); });
}

}  // namespace hwnas::cpu::HWNAS_ISA
