#pragma once

// What dwconv2d does with a block of channels of an image, or with a band of its rows.

#include "dwconv2d_pack.h"
#include "dwconv2d_plan.h"
#include "dwconv2d_sums.h"

namespace hwnas::cpu::HWNAS_ISA {
namespace {

// One block of channels, one image after the other, band by band.
template <class T, bool Last>
struct Block {
  using E = Element<T>;
  using Scalar = typename E::Scalar;
  using Vector = typename E::Vector;
  using B = Element<Scalar>;
  static constexpr std::int64_t lanes = E::lanes;  // as in the plan, where it is no constant

  const Plan& plan;
  const Tables<Scalar>& tables;
  const Buffers<Scalar>& buffers;
  std::int64_t block;
  std::int64_t repeat;
  std::int64_t top;   // first row of the band
  std::int64_t used;  // lanes

  // Where the channels of the block begin in a tensor of images of `size`.
  template <class P>
  P* part_of(P* tensor, const Size2d& size) const {
    return Last ? tensor + repeat * size.count() * plan.s.channels + block * lanes
                : tensor + plan.first_plane(block, repeat) * size.count();
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
      const std::int64_t ahead = (plan.by_image ? 1 : plan.blocks) * lanes * size.count();
      pack_planes(to, places, from, size.count(), positions, used, rectify, ahead);
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
                         const Scalar* open, std::int64_t columns, std::int64_t number) const {
    const std::int64_t channels = plan.s.channels;
    const Scalar* weights = tables.weights + block * plan.taps * lanes;
    const Vector start = B::load(tables.bias + block * lanes);
    if constexpr (Last && sizeof(T) == sizeof(Scalar)) {
      if (used == lanes) {
        const Row<Scalar> row{at, weights, open, to, next * channels, number};
        return correlate_row(row, runs, columns, plan.spacing, start);
      }
    }
    const Row<Scalar> row{at, weights, open, result, next * lanes, number};
    correlate_row(row, runs, columns, plan.spacing, start);
    for (std::int64_t c = 0; c < columns && Last; ++c) {
      store_some(to + c * next * channels, B::load(result + c * next * lanes), used);
    }
  }

  void forward(T* y) const {
    const DwConv2dShape& s = plan.s;
    const std::int64_t rows = at_most(plan.band, s.out.height - top);
    T* to = part_of(y, s.out) + top * s.out.width * (Last ? s.channels : 1);
    for (std::int64_t r = 0; r < rows; ++r) {
      correlate_columns(Last ? to + r * s.out.width * s.channels : nullptr, 1,
                        Last ? buffers.result : buffers.result + r * s.out.width * lanes,
                        buffers.x + r * plan.pitch * lanes, tables.all, nullptr, s.out.width, top + r);
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
    std::int64_t r = (begin - start) / s.stride.height, row_phase = (begin - start) % s.stride.height;
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t column_phase = 0; column_phase < s.stride.width; ++column_phase) {
        const std::int64_t phase = row_phase * s.stride.width + column_phase;
        const std::int64_t first = tables.first[column_phase], columns = tables.last[column_phase] - first;
        const Runs runs{tables.of_g + tables.phase[phase], tables.phase[phase + 1] - tables.phase[phase]};
        const std::int64_t at = r * plan.pitch + first;
        const std::int64_t column = first * s.stride.width + column_phase - s.padding.width;
        const std::int64_t place = (row - begin) * s.in.width + column;
        correlate_columns(Last ? to + place * s.channels : nullptr, s.stride.width,
                          Last ? buffers.result : buffers.result + place * lanes,
                          buffers.g + (plan.origin + at) * lanes, runs,
                          s.pre_relu ? buffers.x + (phase * plan.plane + at) * lanes : nullptr, columns, top + r);
      }
      if (++row_phase == s.stride.height) row_phase = 0, ++r;
    }
    if (!Last) unpack_planes(to, buffers.result, s.in.count(), (end - begin) * s.in.width, used);
  }

  void add_gradients(bool of_weight, bool of_bias) const {
    const DwConv2dShape& s = plan.s;
    const std::int64_t bottom = at_most(top + plan.band, s.out.height);
    const Scalar* g = buffers.g + plan.origin * lanes;
    const Run* end = tables.all.begin + tables.all.count;
    for (const Run* run = tables.all.begin; run != end && of_weight; ++run) {
      const std::int64_t first = at_least(top, run->begin), last = at_most(bottom, run->end);
      const std::int64_t at = (first - top) * plan.pitch * lanes;
      some_run_sums(run->count, Area{last - first, s.out.width, plan.pitch, plan.spacing}, g + at,
                    buffers.x + run->offset + at, buffers.sums + run->first * lanes);
    }
    if (of_bias) {
      add_up(Area{bottom - top, s.out.width, plan.pitch, plan.spacing}, g, buffers.sums + plan.taps * lanes);
    }
  }
};

}  // namespace
}  // namespace hwnas::cpu::HWNAS_ISA
