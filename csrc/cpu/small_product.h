#pragma once

// Products of matrices of which one has few columns: what a pointwise convolution of some pixels is. Sums stay in
// registers; everything that is read more than once is expected in the caches. Rows of vectors are padded, and each sum
// is taken in one order, whatever the number of rows worked on together.

#include "vector.h"

namespace {

#if defined(__AVX512F__)
constexpr int kProductRows = 8;     // with kProductVectors vectors of sums each
constexpr int kProductVectors = 3;
constexpr int kOuterRows = 16;
#else
constexpr int kProductRows = 6;
constexpr int kProductVectors = 2;
constexpr int kOuterRows = 8;
#endif

// to[r][v] = sum over k of a[r][k] * weights[k][v], v in vectors.
struct Product {
  const float* a;
  std::int64_t a_next;  // numbers from one row to the next
  std::int64_t depth;
  const float* weights;
  std::int64_t weights_next;
  float* to;
  std::int64_t to_next;  // from one row to the next
  std::int64_t to_step;  // from one vector to the next
};

template <int Rows, int Vectors>
void product_tile(const Product& p) {
  using E = Element<float>;
  f32v sum[Rows][Vectors] = {};
  for (std::int64_t k = 0; k < p.depth; ++k) {
    f32v weight[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) weight[v] = E::load(p.weights + k * p.weights_next + v * E::lanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] += p.a[r * p.a_next + k] * weight[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) E::store(p.to + r * p.to_next + v * p.to_step, sum[r][v]);
  }
}

template <int Vectors, int Rows = kProductRows>
void product_rows(std::int64_t rows, const Product& p) {
  if (rows == Rows) return product_tile<Rows, Vectors>(p);
  if constexpr (Rows > 1) product_rows<Vectors, Rows - 1>(rows, p);
}

template <int Vectors>
void product_columns(std::int64_t rows, const Product& p) {
  const std::int64_t tiles = (rows + kProductRows - 1) / kProductRows;
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    const std::int64_t begin = rows * tile / tiles;
    Product part = p;
    part.a += begin * p.a_next;
    part.to += begin * p.to_next;
    product_rows<Vectors>(rows * (tile + 1) / tiles - begin, part);
  }
}

inline void product(std::int64_t rows, std::int64_t vectors, const Product& p) {
  const std::int64_t groups = (vectors + kProductVectors - 1) / kProductVectors;
  for (std::int64_t group = 0; group < groups; ++group) {
    const std::int64_t begin = vectors * group / groups;
    Product part = p;
    part.weights += begin * Element<float>::lanes;
    part.to += begin * p.to_step;
    switch (vectors * (group + 1) / groups - begin) {
      case 1: product_columns<1>(rows, part); break;
      case 2: product_columns<2>(rows, part); break;
      default: product_columns<kProductVectors>(rows, part);
    }
  }
}

// sums[r] += sum over k of a[k][r] * b[k], one vector for each r.
struct Outer {
  const float* a;
  std::int64_t a_next;
  const float* b;
  std::int64_t b_next;
  std::int64_t depth;
  float* sums;
  std::int64_t sums_next;
};

template <int Rows>
std::int64_t outer_tiles(std::int64_t begin, std::int64_t rows, const Outer& o) {
  using E = Element<float>;
  for (; begin + Rows <= rows; begin += Rows) {
    f32v sum[Rows] = {};
    for (std::int64_t k = 0; k < o.depth; ++k) {
      const f32v value = E::load(o.b + k * o.b_next);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) sum[r] += o.a[k * o.a_next + begin + r] * value;
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      float* to = o.sums + (begin + r) * o.sums_next;
      E::store(to, E::load(to) + sum[r]);
    }
  }
  return begin;
}

inline void outer_product(std::int64_t rows, const Outer& o) {
  outer_tiles<1>(outer_tiles<4>(outer_tiles<kOuterRows>(0, rows, o), rows, o), rows, o);
}

}  // namespace
