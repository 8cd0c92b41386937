#pragma once

// The arithmetic of dwconv2d, on vectors in the padded buffers. What is read once serves all taps of a run: columns
// that are `spacing` apart are worked on together, and what they read is that far apart, too.

#include "dwconv2d_plan.h"

namespace hwnas::cpu::HWNAS_ISA {
namespace {

constexpr std::int64_t kTile = 8;     // vectors of output worked on together, to hide the latency of a multiply-add
constexpr std::int64_t kTapTile = 4;  // the same where the taps are the sums

// sum[u] += weights[j] * at[u + j] over the taps j.
template <int Count, int Size, class Scalar, class Vector>
inline void add_run(Vector (&sum)[Size], const Scalar* at, std::int64_t next, const Scalar* weights) {
  using B = Element<Scalar>;
  Vector weight[Count];
#pragma GCC unroll 8
  for (int j = 0; j < Count; ++j) weight[j] = B::load(weights + j * B::lanes);
#pragma GCC unroll 16
  for (int v = 0; v < Size + Count - 1; ++v) {
    const Vector value = B::load(at + v * next);
#pragma GCC unroll 8
    for (int j = 0; j < Count; ++j) {
      if (v - j >= 0 && v - j < Size) sum[v - j] += weight[j] * value;
    }
  }
}

// Where a row of results is computed from, and where it goes.
template <class Scalar>
struct Row {
  const Scalar* at;
  const Scalar* weights;
  const Scalar* open;  // results become zero where this is; null: nowhere
  Scalar* to;
  std::int64_t to_next;  // numbers from one column to the next
  std::int64_t number;
};

// Columns from `column` on. They are told apart by this number rather than by a copy of the row: reading at once what
// was written in parts a moment ago waits for all stores before, and these go to memory that is in no cache.
template <int Size, class Scalar>
void correlate(const Row<Scalar>& row, const Runs& runs, std::int64_t column, std::int64_t spacing,
               typename Element<Scalar>::Vector start) {
  using B = Element<Scalar>;
  using Vector = typename B::Vector;
  const std::int64_t next = spacing * B::lanes;
  const Scalar* from = row.at + column * B::lanes;
  Vector sum[Size];
#pragma GCC unroll 8
  for (int u = 0; u < Size; ++u) sum[u] = start;
  for (const Run* run = runs.begin; run != runs.begin + runs.count; ++run) {
    if (row.number < run->begin || row.number >= run->end) continue;
    const Scalar* at = from + run->offset;
    const Scalar* weights = row.weights + run->first * B::lanes;
    switch (run->count) {
      case 1: add_run<1>(sum, at, next, weights); break;
      case 2: add_run<2>(sum, at, next, weights); break;
      case 3: add_run<3>(sum, at, next, weights); break;
      case 4: add_run<4>(sum, at, next, weights); break;
      case 5: add_run<5>(sum, at, next, weights); break;
      case 6: add_run<6>(sum, at, next, weights); break;
      default: add_run<kRun>(sum, at, next, weights);
    }
  }
#pragma GCC unroll 8
  for (int u = 0; u < Size; ++u) {
    const std::int64_t at = column + u * spacing;
    const bool masks = row.open != nullptr;
    const Vector kept = masks ? (B::load(row.open + at * B::lanes) == 0 ? Vector{} : sum[u]) : sum[u];
    B::store(row.to + at * row.to_next, kept);
  }
}

template <int Size = kTile, class Scalar>
void correlate_some(std::int64_t size, const Row<Scalar>& row, const Runs& runs, std::int64_t column,
                    std::int64_t spacing, typename Element<Scalar>::Vector start) {
  if (size == Size) return correlate<Size>(row, runs, column, spacing, start);
  if constexpr (Size > 1) correlate_some<Size - 1>(size, row, runs, column, spacing, start);
}

template <class Scalar>
void correlate_row(const Row<Scalar>& row, const Runs& runs, std::int64_t columns, std::int64_t spacing,
                   typename Element<Scalar>::Vector start) {
  for (std::int64_t phase = 0; phase < at_most(spacing, columns); ++phase) {
    std::int64_t column = phase;
    for (std::int64_t left = divide_up(columns - phase, spacing), size; left > 0; left -= size) {
      size = left <= kTile ? left : left < 2 * kTile ? (left + 1) / 2 : kTile;
      correlate_some(size, row, runs, column, spacing, start);
      column += size * spacing;
    }
  }
}

// sum[.][j] += g[u] * x[u + j] over the columns u; those of even and odd number have sums of their own, which hides the
// latency of a multiply-add.
template <int Count, int Size, class Scalar, class Vector>
inline void add_taps(Vector (&sum)[2][Count], const Scalar* g, const Scalar* x, std::int64_t next) {
  using B = Element<Scalar>;
  Vector grad[Size];
#pragma GCC unroll 8
  for (int u = 0; u < Size; ++u) grad[u] = B::load(g + u * next);
#pragma GCC unroll 16
  for (int v = 0; v < Size + Count - 1; ++v) {
    const Vector value = B::load(x + v * next);
#pragma GCC unroll 8
    for (int j = 0; j < Count; ++j) {
      if (v - j >= 0 && v - j < Size) sum[(v - j) % 2][j] += grad[v - j] * value;
    }
  }
}

// Part of the buffers: `rows` x `columns` positions of the gradient.
struct Area {
  std::int64_t rows, columns, pitch, spacing;
};

// sums[j] += sum over an area of gradient * input, for the taps of a run.
template <int Count, class Scalar>
void run_sums(const Area& area, const Scalar* g, const Scalar* x, Scalar* sums) {
  using B = Element<Scalar>;
  typename B::Vector sum[2][Count] = {};
  const std::int64_t next = area.spacing * B::lanes;
  for (std::int64_t phase = 0; phase < at_most(area.spacing, area.columns); ++phase) {
    const std::int64_t columns = divide_up(area.columns - phase, area.spacing);
    for (std::int64_t row = 0; row < area.rows; ++row) {
      const std::int64_t at = (row * area.pitch + phase) * B::lanes;
      const Scalar* p = g + at;
      const Scalar* q = x + at;
      std::int64_t left = columns;
      for (; left >= kTapTile; left -= kTapTile, p += kTapTile * next, q += kTapTile * next) {
        add_taps<Count, kTapTile>(sum, p, q, next);
      }
      if (left == 3) add_taps<Count, 3>(sum, p, q, next);
      if (left == 2) add_taps<Count, 2>(sum, p, q, next);
      if (left == 1) add_taps<Count, 1>(sum, p, q, next);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < Count; ++j) {
    B::store(sums + j * B::lanes, B::load(sums + j * B::lanes) + (sum[0][j] + sum[1][j]));
  }
}

template <int Count = kRun, class Scalar>
void some_run_sums(std::int64_t count, const Area& area, const Scalar* g, const Scalar* x, Scalar* sums) {
  if (count == Count) return run_sums<Count>(area, g, x, sums);
  if constexpr (Count > 1) some_run_sums<Count - 1>(count, area, g, x, sums);
}

// sums += sum over an area of the gradient.
template <class Scalar>
void add_up(const Area& area, const Scalar* g, Scalar* sums) {
  using B = Element<Scalar>;
  typename B::Vector sum = {};
  for (std::int64_t row = 0; row < area.rows; ++row) {
    for (std::int64_t i = 0; i < area.columns; ++i) sum += B::load(g + (row * area.pitch + i) * B::lanes);
  }
  B::store(sums, B::load(sums) + sum);
}

}  // namespace
}  // namespace hwnas::cpu::HWNAS_ISA
