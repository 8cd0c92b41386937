#pragma once

// Vectors of the instruction set that this translation unit is compiled for. Everything is in an anonymous namespace and
// uses no standard-library template: a weak symbol compiled for AVX-512 could replace the one that an old processor runs.

#include <cstdint>
#include <cstring>

// Of a lambda, behind its parameters. Not inlined, a step of a loop keeps in memory what could stay in registers.
#define HWNAS_INLINE __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float f32v __attribute__((vector_size(kVectorBytes)));
typedef double f64v __attribute__((vector_size(kVectorBytes)));
typedef std::uint32_t u32v __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t u16v __attribute__((vector_size(kVectorBytes / 2)));

struct bf16 {
  std::uint16_t bits;
};

// How far ahead a loop that walks through memory in order fetches what it comes to.
template <class T>
constexpr std::int64_t kAhead = 1024 / sizeof(T);

// Brings the cache line `ahead` elements behind p, which a loop is about to reach, into the first-level cache. Processors
// do so by themselves where they read in order, but begin anew at every page and every row, and hardly for what they
// write, which waits for its line, too. There need not be memory at that place.
template <class T>
void fetch_to_read(const T* p, std::int64_t ahead) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(p) + ahead * sizeof(T)), 0);
}

template <class T>
void fetch_to_write(const T* p, std::int64_t ahead) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(p) + ahead * sizeof(T)), 1);
}

// How an element type is read into its accumulator type and written back, one by one and by the vector.
template <class T>
struct Element;

template <class T, class V>
struct PlainElement {
  using Scalar = T;
  using Vector = V;
  static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));
  static Scalar get(const T* p) { return *p; }
  static void put(T* p, Scalar value) { *p = value; }
  static Vector load(const T* p) {
    Vector value;
    std::memcpy(&value, p, sizeof(value));
    return value;
  }
  static void store(T* p, Vector value) { std::memcpy(p, &value, sizeof(value)); }
};

template <>
struct Element<float> : PlainElement<float, f32v> {};
template <>
struct Element<double> : PlainElement<double, f64v> {};

template <>
struct Element<bf16> {
  using Scalar = float;
  using Vector = f32v;
  static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(float));

  static float get(const bf16* p) {
    const std::uint32_t bits = static_cast<std::uint32_t>(p->bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  // Rounds to nearest, ties to even. A NaN keeps its sign and becomes quiet: rounding could turn it into infinity.
  static void put(bf16* p, float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    p->bits = static_cast<std::uint16_t>(value == value ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16
                                                        : (bits >> 16) | 0x40u);
  }
  static Vector load(const bf16* p) {
    u16v half;
    std::memcpy(&half, p, sizeof(half));
    return (f32v)(__builtin_convertvector(half, u32v) << 16);
  }
  static void store(bf16* p, Vector value) {
    const u32v bits = (u32v)value;
    const u32v rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const u32v quiet = (bits >> 16) | 0x40u;
    const u32v ordered = (u32v)(value == value);
    const u16v half = __builtin_convertvector((rounded & ordered) | (quiet & ~ordered), u16v);
    std::memcpy(p, &half, sizeof(half));
  }
};

}  // namespace
