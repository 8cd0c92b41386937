#pragma once

// mask_scale: out = weight * (row x middle x inner), a weight times the outer product of a mask for each axis, and its
// gradients. The weight is seen as (rows, middle, inner) in the order of its memory: of an (O, I, *K) weight these are
// the sizes of (O, I, K), of one that is channels-last those of (O, K, I). Masks and their gradients are accumulators
// (float, or double for float64 data); a null mask stands for ones, a null gradient is not wanted. On CUDA everything
// lives on the device.

#include <cstdint>

#include "hwnas/dtype.h"
#include "hwnas/isa.h"

namespace hwnas {

struct MaskScaleShape {
  std::int64_t rows, middle, inner;
  constexpr std::int64_t columns() const { return middle * inner; }
};

struct Masks {
  const void *row, *middle, *inner;
};

struct MaskScale {
  DType dtype;
  const void* weight;
  Masks masks;
  void* out;
  void* workspace;  // read by the CPU kernel only, see mask_scale_workspace below
  MaskScaleShape shape;
};

struct MaskScaleBackward {
  DType dtype;
  const void* grad;
  const void* weight;  // read only when the gradient of a mask is wanted
  Masks masks;
  void* grad_weight;
  void *grad_row, *grad_middle, *grad_inner;
  void* workspace;
  MaskScaleShape shape;
};

namespace cpu {

// The work is cut into pieces of at most kMaskScaleColumns columns, and in the backward pass of a number of rows that
// depends on the shape alone: each sums the gradients of the masks for itself, and the sums are added in order.
constexpr std::int64_t kMaskScaleColumns = 1024;

constexpr std::int64_t mask_scale_rows(const MaskScaleShape& shape) {
  const std::int64_t enough = (16384 + shape.columns() - 1) / shape.columns();
  const std::int64_t sixteenth = (shape.rows + 15) / 16;
  const std::int64_t rows = enough > sixteenth ? enough : sixteenth;
  return rows > 32 ? rows : 32;
}

// Doubles in the workspace: the product of the masks of the columns, sums of columns for each number of rows, sums of
// rows for each number of columns, and their totals. Each row of it is filled up to a whole vector of 64 bytes.
constexpr std::int64_t mask_scale_padded(std::int64_t columns) { return (columns + 15) / 16 * 16; }

constexpr std::int64_t mask_scale_workspace(const MaskScaleShape& shape, bool backward) {
  const std::int64_t columns = mask_scale_padded(shape.columns());
  if (!backward) return columns;
  const std::int64_t row_pieces = (shape.rows + mask_scale_rows(shape) - 1) / mask_scale_rows(shape);
  const std::int64_t column_pieces = (shape.columns() + kMaskScaleColumns - 1) / kMaskScaleColumns;
  return columns * (row_pieces + 2) + column_pieces * shape.rows;
}

HWNAS_FOR_EACH_ISA(void mask_scale(const MaskScale& args, int threads);
                   void mask_scale_backward(const MaskScaleBackward& args, int threads);)

}  // namespace cpu

namespace cuda {

// Number of accumulators in the workspace of the backward pass.
std::int64_t mask_scale_workspace(const MaskScaleShape& shape);

void mask_scale(const MaskScale& args, void* stream);
void mask_scale_backward(const MaskScaleBackward& args, void* stream);

}  // namespace cuda

}  // namespace hwnas
