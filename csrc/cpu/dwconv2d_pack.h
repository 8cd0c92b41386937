#pragma once

// Between tensors and the padded buffers, for dwconv2d.

#include <utility>

#include "dwconv2d_plan.h"

namespace hwnas::cpu::HWNAS_ISA {
namespace {

// A comparison of which NaN passes, as it does through PyTorch's ReLU.
template <class V>
V rectified(V value) {
  return value <= 0 ? V{} : value;
}

template <class V, class Mask>
V shuffled(V a, V b, Mask mask) {
#ifdef __clang__
  V out;
  constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(a[0]));
  for (int i = 0; i < lanes; ++i) out[i] = mask[i] < lanes ? a[mask[i]] : b[mask[i] - lanes];
  return out;
#else
  return __builtin_shuffle(a, b, mask);
#endif
}

// Exchanges the upper right with the lower left in each square of 2 x 2 blocks of Half rows and columns.
template <int Half, class V, int... I>
void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
  using Mask = decltype(a < b);
  constexpr int lanes = sizeof...(I);
  const V above = shuffled(a, b, Mask{((I & Half) != 0 ? lanes + I - Half : I)...});
  b = shuffled(a, b, Mask{((I & Half) != 0 ? lanes + I : I + Half)...});
  a = above;
}

template <int Half = 1, class V, std::size_t Lanes>
[[gnu::always_inline]] inline void transpose(V (&rows)[Lanes]) {
  constexpr int lanes = static_cast<int>(Lanes);
  if constexpr (Half < lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      if ((i & Half) == 0) exchange<Half>(rows[i], rows[i + Half], std::make_integer_sequence<int, lanes>{});
    }
    transpose<2 * Half>(rows);
  }
}

// As many values of a vector as there are channels left.
template <class T>
typename Element<T>::Vector load_some(const T* from, std::int64_t count) {
  using E = Element<T>;
  if (count >= E::lanes) return E::load(from);
  typename E::Vector value = {};
  for (std::int64_t lane = 0; lane < count; ++lane) value[lane] = E::get(from + lane);
  return value;
}

template <class T>
void store_some(T* to, typename Element<T>::Vector value, std::int64_t count) {
  using E = Element<T>;
  if (count >= E::lanes) return E::store(to, value);
  for (std::int64_t lane = 0; lane < count; ++lane) E::put(to + lane, value[lane]);
}

// Copies positions of `count` channels, which are `next` apart in the tensor, to their places. The channels of `others`
// vectors at the same position are asked for early: all of them are wanted soon, and this way memory is read in order.
template <class T, class Scalar>
void pack_pixels(Scalar* to, const std::int32_t* places, const T* from, std::int64_t next, std::int64_t positions,
                 std::int64_t count, bool rectify, std::int64_t others) {
  using E = Element<T>;
  using B = Element<Scalar>;
  for (std::int64_t p = 0; p < positions; ++p, from += next) {
    for (std::int64_t other = 1; other < others; ++other) __builtin_prefetch(from + other * E::lanes, 0, 2);
    const auto value = load_some(from, count);
    B::store(to + places[p] * E::lanes, rectify ? rectified(value) : value);
  }
}

// The same for `count` planes that are `next` apart. Lanes without a plane become zero. What comes `ahead` is asked for
// early: a processor does not see by itself where so many streams go on.
template <class T, class Scalar>
void pack_planes(Scalar* to, const std::int32_t* places, const T* from, std::int64_t next, std::int64_t positions,
                 std::int64_t count, bool rectify, std::int64_t ahead) {
  using E = Element<T>;
  using B = Element<Scalar>;
  using Vector = typename E::Vector;
  if (positions < E::lanes) {
    for (std::int64_t p = 0; p < positions; ++p) {
      Vector value = {};
      for (std::int64_t lane = 0; lane < count; ++lane) value[lane] = E::get(from + lane * next + p);
      B::store(to + places[p] * E::lanes, rectify ? rectified(value) : value);
    }
    return;
  }
  for (std::int64_t p = 0; p < positions; p += E::lanes) {
    p = at_most(p, positions - E::lanes);  // the last ones may be copied twice
    Vector rows[E::lanes];
    for (int lane = 0; lane < count; ++lane) __builtin_prefetch(from + lane * next + p + ahead, 0, 2);
#pragma GCC unroll 16
    for (int lane = 0; lane < E::lanes; ++lane) rows[lane] = lane < count ? E::load(from + lane * next + p) : Vector{};
    transpose(rows);
#pragma GCC unroll 16
    for (int i = 0; i < E::lanes; ++i) {
      B::store(to + places[p + i] * E::lanes, rectify ? rectified(rows[i]) : rows[i]);
    }
  }
}

// The other way, from positions that follow each other.
template <class T, class Scalar>
void unpack_planes(T* to, const Scalar* from, std::int64_t next, std::int64_t positions, std::int64_t count) {
  using E = Element<T>;
  using B = Element<Scalar>;
  if (positions < E::lanes) {
    for (std::int64_t p = 0; p < positions; ++p) {
      for (std::int64_t lane = 0; lane < count; ++lane) E::put(to + lane * next + p, from[p * E::lanes + lane]);
    }
    return;
  }
  for (std::int64_t p = 0; p < positions; p += E::lanes) {
    p = at_most(p, positions - E::lanes);
    typename E::Vector rows[E::lanes];
#pragma GCC unroll 16
    for (int i = 0; i < E::lanes; ++i) rows[i] = B::load(from + (p + i) * E::lanes);
    transpose(rows);
#pragma GCC unroll 16
    for (int lane = 0; lane < E::lanes; ++lane) {
      if (lane < count) E::store(to + lane * next + p, rows[lane]);
    }
  }
}

}  // namespace
}  // namespace hwnas::cpu::HWNAS_ISA
