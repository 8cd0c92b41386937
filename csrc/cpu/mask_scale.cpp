// Compiled once for each instruction set; HWNAS_ISA names the namespace.

#include "hwnas/mask_scale.h"

#include "parallel.h"
#include "vector.h"

namespace hwnas::cpu::HWNAS_ISA {
namespace {

constexpr int kUnroll = 4;

// Rows of depthwise weights are shorter than a vector or two, so the rest of a row is worked on as a vector as well.
// Where memory goes on behind the row it is read and written over its end: what is written there belongs to the next
// row of the same piece and is written again.
template <class T>
typename Element<T>::Vector load_rest(const T* p, int count, bool goes_on) {
  using E = Element<T>;
  if (goes_on) return E::load(p);
  typename E::Vector value = {};
  for (int lane = 0; lane < count; ++lane) value[lane] = E::get(p + lane);
  return value;
}

template <class T>
void store_rest(T* p, typename Element<T>::Vector value, int count, bool goes_on) {
  using E = Element<T>;
  if (goes_on) return E::store(p, value);
  for (int lane = 0; lane < count; ++lane) E::put(p + lane, value[lane]);
}

// Zero from lane `count` on: what was read over the end of a row may be infinite.
template <class T>
typename Element<T>::Vector first_lanes(typename Element<T>::Vector value, int count) {
  typename Element<T>::Vector number = {}, zero = {};
  for (int lane = 0; lane < Element<T>::lanes; ++lane) number[lane] = static_cast<typename Element<T>::Scalar>(lane);
  return number < static_cast<typename Element<T>::Scalar>(count) ? value : zero;
}

// By halves: one lane after the other would take longer than a short row.
template <class T>
typename Element<T>::Scalar sum_of_lanes(typename Element<T>::Vector value) {
  typename Element<T>::Scalar lane[Element<T>::lanes];
  std::memcpy(lane, &value, sizeof(value));
  for (int half = Element<T>::lanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

template <class Scalar>
Scalar entry(const void* mask, std::int64_t index) {
  return mask == nullptr ? Scalar{1} : static_cast<const Scalar*>(mask)[index];
}

// The product of the masks of the columns, and zeros up to a whole vector.
template <class Scalar>
void fill_columns(const Masks& masks, const MaskScaleShape& shape, Scalar* columns) {
  const auto* inner = static_cast<const Scalar*>(masks.inner);
  for (std::int64_t m = 0; m < shape.middle; ++m) {
    const Scalar middle = entry<Scalar>(masks.middle, m);
    Scalar* at = columns + m * shape.inner;
    if (inner == nullptr) {
      for (std::int64_t i = 0; i < shape.inner; ++i) at[i] = middle;
    } else {
      for (std::int64_t i = 0; i < shape.inner; ++i) at[i] = middle * inner[i];
    }
  }
  for (std::int64_t i = shape.columns(); i < mask_scale_padded(shape.columns()); ++i) columns[i] = 0;
}

template <class Scalar>
Scalar* at_double(void* workspace, std::int64_t offset) {
  return reinterpret_cast<Scalar*>(static_cast<double*>(workspace) + offset);
}

// Some rows and columns of the weight.
struct Piece {
  std::int64_t row, rows, column, columns;
  std::int64_t row_index, column_index;  // among the pieces
};

// Calls work(piece) for every piece. The pieces depend on the shape alone, and every one is worked on by one thread.
template <class Work>
void for_each_piece(const MaskScaleShape& shape, int threads, const Work& work) {
  const std::int64_t rows = mask_scale_rows(shape), columns = shape.columns();
  const std::int64_t across = (columns + kMaskScaleColumns - 1) / kMaskScaleColumns;
  const std::int64_t down = (shape.rows + rows - 1) / rows;
  for_each(across * down, shape.rows * columns < kSerialBelow ? 1 : threads, [&](std::int64_t index) {
    Piece piece;
    piece.row_index = index / across;
    piece.column_index = index % across;
    piece.row = piece.row_index * rows;
    piece.column = piece.column_index * kMaskScaleColumns;
    piece.rows = shape.rows - piece.row < rows ? shape.rows - piece.row : rows;
    piece.columns = columns - piece.column < kMaskScaleColumns ? columns - piece.column : kMaskScaleColumns;
    work(piece);
  });
}

template <class T>
void forward_piece(const MaskScale& args, const typename Element<T>::Scalar* column_mask, const Piece& piece) {
  using E = Element<T>;
  using Scalar = typename E::Scalar;
  const std::int64_t stride = args.shape.columns();
  // Only pieces that are as wide as the weight may go over the end of a row: else another thread has what follows.
  const std::int64_t end = piece.columns == stride ? piece.rows * stride : 0;
  for (std::int64_t r = 0; r < piece.rows; ++r) {
    const std::int64_t first = (piece.row + r) * stride + piece.column;
    const T* w = static_cast<const T*>(args.weight) + first;
    T* out = static_cast<T*>(args.out) + first;
    const auto scale = entry<Scalar>(args.masks.row, piece.row + r);
    const Scalar* mask = column_mask + piece.column;
    std::int64_t c = 0;
    const auto step = [&](std::int64_t at) HWNAS_INLINE {
      fetch_to_write(out + at, kAhead<T>);
      E::store(out + at, scale * Element<Scalar>::load(mask + at) * E::load(w + at));
    };
    for (; c + kUnroll * E::lanes <= piece.columns; c += kUnroll * E::lanes) {
      for (int u = 0; u < kUnroll; ++u) step(c + u * E::lanes);
    }
    for (; c + E::lanes <= piece.columns; c += E::lanes) step(c);
    if (c < piece.columns) {
      const int rest = static_cast<int>(piece.columns - c);
      const bool goes_on = r * stride + c + E::lanes <= end;
      store_rest(out + c, scale * Element<Scalar>::load(mask + c) * load_rest(w + c, rest, goes_on), rest, goes_on);
    }
  }
}

// The sums of grad * weight * masks over the columns of each row and over the rows of each column, where wanted.
// row_sums has an entry for each row of the weight, column_sums one for each of its columns, filled up to a vector.
template <class T, bool Row, bool Column>
void sum_piece(const MaskScaleBackward& args, const typename Element<T>::Scalar* column_mask, const Piece& piece,
               double* row_sums, typename Element<T>::Scalar* column_sums) {
  using E = Element<T>;
  using Scalar = typename E::Scalar;
  using S = Element<Scalar>;
  using Vector = typename E::Vector;
  const std::int64_t stride = args.shape.columns();
  const std::int64_t end = piece.columns == stride ? piece.rows * stride : 0;
  const Scalar* mask = column_mask + piece.column;
  Scalar* sums = column_sums + piece.column;
  if (Column) {
    for (std::int64_t c = 0; c < piece.columns; c += E::lanes) S::store(sums + c, Vector{});
  }
  for (std::int64_t r = 0; r < piece.rows; ++r) {
    const std::int64_t first = (piece.row + r) * stride + piece.column;
    const T* g = static_cast<const T*>(args.grad) + first;
    const T* w = static_cast<const T*>(args.weight) + first;
    const auto scale = entry<Scalar>(args.masks.row, piece.row + r);
    Vector sum[kUnroll] = {};
    const auto add = [&](std::int64_t at, Vector& total, Vector product) HWNAS_INLINE {
      if (Row) total += product * S::load(mask + at);
      if (Column) S::store(sums + at, S::load(sums + at) + scale * product);
    };
    std::int64_t c = 0;
    for (; c + kUnroll * E::lanes <= piece.columns; c += kUnroll * E::lanes) {
      for (int u = 0; u < kUnroll; ++u) {
        const std::int64_t at = c + u * E::lanes;
        add(at, sum[u], E::load(g + at) * E::load(w + at));
      }
    }
    for (; c + E::lanes <= piece.columns; c += E::lanes) add(c, sum[0], E::load(g + c) * E::load(w + c));
    if (c < piece.columns) {
      const int rest = static_cast<int>(piece.columns - c);
      const bool goes_on = r * stride + c + E::lanes <= end;
      add(c, sum[0], first_lanes<T>(load_rest(g + c, rest, goes_on) * load_rest(w + c, rest, goes_on), rest));
    }
    if (Row) {
      for (int u = 1; u < kUnroll; ++u) sum[0] += sum[u];
      row_sums[piece.row + r] = sum_of_lanes<T>(sum[0]);
    }
  }
}

template <class T>
void forward(const MaskScale& args, int threads) {
  using Scalar = typename Element<T>::Scalar;
  auto* column_mask = at_double<Scalar>(args.workspace, 0);
  fill_columns(args.masks, args.shape, column_mask);
  for_each_piece(args.shape, threads, [&](const Piece& piece) { forward_piece<T>(args, column_mask, piece); });
}

// grad_middle and grad_inner out of the sums of the columns, which are added up over the pieces into `totals` first.
template <class Scalar>
void reduce_columns(const MaskScaleBackward& args, const Scalar* column_sums, std::int64_t pieces, double* totals) {
  const std::int64_t padded = mask_scale_padded(args.shape.columns()), inner_size = args.shape.inner;
  for (std::int64_t c = 0; c < padded; ++c) totals[c] = column_sums[c];
  for (std::int64_t p = 1; p < pieces; ++p) {
    const Scalar* sums = column_sums + p * padded;
    for (std::int64_t c = 0; c < padded; ++c) totals[c] += sums[c];
  }
  auto* grad_middle = static_cast<Scalar*>(args.grad_middle);
  if (grad_middle != nullptr) {
    for (std::int64_t m = 0; m < args.shape.middle; ++m) {
      double sum = 0;
      for (std::int64_t i = 0; i < inner_size; ++i) {
        sum += totals[m * inner_size + i] * entry<Scalar>(args.masks.inner, i);
      }
      grad_middle[m] = static_cast<Scalar>(sum);
    }
  }
  auto* grad_inner = static_cast<Scalar*>(args.grad_inner);
  if (grad_inner != nullptr) {
    // The first row of `totals` becomes the sum over all of them.
    for (std::int64_t m = 0; m < args.shape.middle; ++m) {
      const double mask = entry<Scalar>(args.masks.middle, m);
      const double* row = totals + m * inner_size;
      for (std::int64_t i = 0; i < inner_size; ++i) totals[i] = m == 0 ? mask * row[i] : totals[i] + mask * row[i];
    }
    for (std::int64_t i = 0; i < inner_size; ++i) grad_inner[i] = static_cast<Scalar>(totals[i]);
  }
}

template <class T, bool Row, bool Column>
void backward_as(const MaskScaleBackward& args, int threads) {
  using Scalar = typename Element<T>::Scalar;
  const MaskScaleShape& shape = args.shape;
  const std::int64_t padded = mask_scale_padded(shape.columns());
  const std::int64_t row_pieces = (shape.rows + mask_scale_rows(shape) - 1) / mask_scale_rows(shape);
  const std::int64_t column_pieces = (shape.columns() + kMaskScaleColumns - 1) / kMaskScaleColumns;
  auto* column_mask = at_double<Scalar>(args.workspace, 0);
  auto* totals = at_double<double>(args.workspace, padded);
  auto* column_sums = at_double<Scalar>(args.workspace, 2 * padded);
  auto* row_sums = at_double<double>(args.workspace, (2 + row_pieces) * padded);
  fill_columns(args.masks, shape, column_mask);
  // The gradient of the weight is the gradient of the output, scaled.
  const MaskScale scaled{args.dtype, args.grad, args.masks, args.grad_weight, nullptr, shape};
  for_each_piece(shape, threads, [&](const Piece& piece) {
    // Not in one loop: on some processors stores to the cache and stores past it, by turns, take twice as long.
    if (args.grad_weight != nullptr) forward_piece<T>(scaled, column_mask, piece);
    if (Row || Column) {
      sum_piece<T, Row, Column>(args, column_mask, piece, row_sums + piece.column_index * shape.rows,
                                column_sums + piece.row_index * padded);
    }
  });
  if (Row) {
    for (std::int64_t r = 0; r < shape.rows; ++r) {
      double total = 0;
      for (std::int64_t p = 0; p < column_pieces; ++p) total += row_sums[p * shape.rows + r];
      static_cast<Scalar*>(args.grad_row)[r] = static_cast<Scalar>(total);
    }
  }
  if (Column) reduce_columns(args, column_sums, row_pieces, totals);
}

template <class T>
void backward(const MaskScaleBackward& args, int threads) {
  const bool column = args.grad_middle != nullptr || args.grad_inner != nullptr;
  if (args.grad_row != nullptr) {
    column ? backward_as<T, true, true>(args, threads) : backward_as<T, true, false>(args, threads);
  } else {
    column ? backward_as<T, false, true>(args, threads) : backward_as<T, false, false>(args, threads);
  }
}

}  // namespace

void mask_scale(const MaskScale& args, int threads) {
  switch (args.dtype) {
    case DType::f32: return forward<float>(args, threads);
    case DType::bf16: return forward<bf16>(args, threads);
    case DType::f64: return forward<double>(args, threads);
  }
}

void mask_scale_backward(const MaskScaleBackward& args, int threads) {
  switch (args.dtype) {
    case DType::f32: return backward<float>(args, threads);
    case DType::bf16: return backward<bf16>(args, threads);
    case DType::f64: return backward<double>(args, threads);
  }
}

}  // namespace hwnas::cpu::HWNAS_ISA
