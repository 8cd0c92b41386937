#pragma once

// Loops over tensors of which every channel has parameters and sums of its own. In an anonymous namespace for the same
// reason as vector.h.
//
// A tensor is walked in blocks of rows in which the channel of an element depends only on its column, so every inner
// loop runs over columns, each with parameters of its own, whatever the layout and however small the images are:
// - images (outer, channels, inner): a row is a channel of one image, or several whole channels where they are small. A
//   block has all rows of its channels. One thread does everything for it, and finds in its cache what it reads again.
// - channels last (inner = 1): a row is one or more pixels. Blocks cut through the pixels, and their sums are added up.
// Neither the blocks nor the order of the sums depends on the number of threads.

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "vector.h"

namespace {

constexpr std::int64_t kColumns = 1024;   // worked on at a time: parameters and sums of so many stay in the L1 cache
constexpr std::int64_t kImageRow = 512;    // small channels are joined into rows of about this length
constexpr std::int64_t kPixelRow = 256;    // the same for pixels
constexpr std::int64_t kRows = 64;         // added up in the accumulator type; their sums are in double
constexpr int kUnroll = 4;                 // rows far apart in memory that share the loads of the parameters

// Like kAhead, for rows that follow each other: at 1 KB the forward pass was a fifth slower on an AMD EPYC.
template <class T>
constexpr std::int64_t kRowsAhead = 2048 / sizeof(T);

constexpr std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Memory for trivial types; zeros.
template <class T>
struct Buffer {
  explicit Buffer(std::int64_t size) : data(static_cast<T*>(std::calloc(static_cast<std::size_t>(size), sizeof(T)))) {
    if (data == nullptr) std::abort();
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* const data;
};

// Rows of a tensor in which column j belongs to channel first + j / inner, or to channel j % channels where inner is 1.
struct Block {
  std::int64_t offset;  // of the first element in the tensor
  std::int64_t rows, stride, length;
  std::int64_t first, channels, inner;

  // Whether the rows follow each other in memory.
  bool in_order() const { return inner == 1; }
  // Elements between what for_each_vector works on and what it should fetch.
  template <class T>
  std::int64_t ahead() const {
    return in_order() ? kRowsAhead<T> : kUnroll * stride;
  }
};

struct Blocks {
  Blocks(std::int64_t outer_size, std::int64_t channel_count, std::int64_t inner_size)
      : outer(outer_size), channels(channel_count), inner(inner_size), last(inner_size == 1) {
    joined = (last ? kPixelRow / channels : kImageRow / inner);
    joined = joined < 1 ? 1 : joined;
    if (last) {
      whole = (outer / joined + kRows - 1) / kRows;
      count = whole + (outer % joined > 0);
    } else {
      joined = least(joined, channels);
      count = (channels + joined - 1) / joined;
    }
  }

  Block operator[](std::int64_t i) const {
    if (!last) {
      const std::int64_t first = i * joined;
      const std::int64_t some = least(joined, channels - first);
      return {first * inner, outer, channels * inner, some * inner, first, some, inner};
    }
    const std::int64_t row = joined * channels;
    if (i == whole) return {outer / joined * row, 1, row, outer % joined * channels, 0, channels, 1};
    return {i * kRows * row, least(kRows, outer / joined - i * kRows), row, row, 0, channels, 1};
  }

  std::int64_t outer, channels, inner;
  bool last;            // the channels
  std::int64_t joined;  // channels or pixels in a row
  std::int64_t whole;   // blocks of whole rows; behind them the pixels that fill no row
  std::int64_t count;
};

// --- loops over the elements of a block ---------------------------------------------------------------------------

template <int N>
struct Int {
  static constexpr int value = N;
};

// A vector of elements, and the end of a row that fills no vector.
template <class T>
struct Whole {
  using E = Element<T>;
  typename E::Vector load(const T* p) const { return E::load(p); }
  void store(T* p, typename E::Vector value) const { E::store(p, value); }
};

template <class T>
struct Part {
  using E = Element<T>;
  std::int64_t size;
  typename E::Vector load(const T* p) const {
    T part[E::lanes] = {};
    std::memcpy(part, p, static_cast<std::size_t>(size) * sizeof(T));
    return E::load(part);
  }
  void store(T* p, typename E::Vector value) const {
    T part[E::lanes];
    E::store(part, value);
    std::memcpy(p, part, static_cast<std::size_t>(size) * sizeof(T));
  }
};

// Calls body(Int<rows together>, access, i, column) for all elements of columns `begin` to `begin + columns` in the rows
// `top` to `top + rows`: i is where the vector of the first row lies in the tensor, the others are block.stride apart,
// and column counts from `begin`.
// Rows that follow each other in memory come one by one: of long runs of addresses an AMD EPYC fetched twice as much in
// the same time as of four short ones that take turns. All is inlined: what a body captures can then stay in registers.
template <class T, class Body>
[[gnu::always_inline]] inline void for_each_vector(const Block block, std::int64_t top, std::int64_t rows,
                                                   std::int64_t begin, std::int64_t columns, const Body& body) {
  constexpr int lanes = Element<T>::lanes;
  const auto some_rows = [&](auto together, std::int64_t row) HWNAS_INLINE {
    const std::int64_t first = block.offset + (top + row) * block.stride + begin;
    std::int64_t column = 0;
    for (; column + lanes <= columns; column += lanes) body(together, Whole<T>{}, first + column, column);
    if (column < columns) body(together, Part<T>{columns - column}, first + column, column);
  };
  std::int64_t row = 0;
  if (!block.in_order()) {
    for (; row + kUnroll <= rows; row += kUnroll) some_rows(Int<kUnroll>{}, row);
  }
  for (; row < rows; ++row) some_rows(Int<1>{}, row);
}

// Values of columns, for vectors that may reach beyond the last one.
template <class S>
struct Columns {
  static constexpr int lanes = Element<S>::lanes;
  alignas(kVectorBytes) S values[kColumns + lanes];
  typename Element<S>::Vector load(std::int64_t column) const { return Element<S>::load(values + column); }
  void store(std::int64_t column, typename Element<S>::Vector value) { Element<S>::store(values + column, value); }
  void clear(std::int64_t columns) { std::memset(values, 0, static_cast<std::size_t>(columns + lanes) * sizeof(S)); }
};

// Calls use(column, size, channel) for every run of columns, counted from `begin`: columns of one channel or, where the
// channels are last, of consecutive ones.
template <class Use>
void for_each_run(const Block& block, std::int64_t begin, std::int64_t columns, const Use& use) {
  if (block.inner == 1) {
    std::int64_t channel = begin % block.channels;
    for (std::int64_t column = 0, size; column < columns; column += size, channel = 0) {
      size = least(block.channels - channel, columns - column);
      use(column, size, channel);
    }
    return;
  }
  std::int64_t channel = begin / block.inner;
  std::int64_t size = block.inner - begin % block.inner;
  for (std::int64_t column = 0; column < columns; column += size, size = block.inner) {
    size = least(size, columns - column);
    use(column, size, block.first + channel++);
  }
}

template <class From, class To>
void expand(const Block& block, std::int64_t begin, std::int64_t columns, const From* of_channel, To* values) {
  for_each_run(block, begin, columns, [&](std::int64_t column, std::int64_t size, std::int64_t channel) {
    const From* from = of_channel + channel;
    To* to = values + column;
    if (block.inner == 1) {
      for (std::int64_t i = 0; i < size; ++i) to[i] = static_cast<To>(from[i]);
    } else {
      const To value = static_cast<To>(*from);
      for (std::int64_t i = 0; i < size; ++i) to[i] = value;
    }
  });
}

template <class S>
double sum(const S* values, std::int64_t size) {
  using E = Element<S>;
  typename E::Vector vector = {};
  std::int64_t i = 0;
  for (; i + E::lanes <= size; i += E::lanes) vector += E::load(values + i);
  double total = 0;
  if (i > 0) {
    for (int lane = 0; lane < E::lanes; ++lane) total += vector[lane];
  }
  for (; i < size; ++i) total += values[i];
  return total;
}

// Adds two sums over each channel of a block to `first` and `second`. terms(access, i, parameters, a, b) adds the vector
// at i to both, given a vector of each of `tables`, which have an entry for each channel.
template <class S, class T, int N, class Terms>
void add_sums(const Block& block, const S* const (&tables)[N], double* first, double* second, const Terms& terms) {
  Columns<S> parameters[N], a, b;
  for (std::int64_t begin = 0; begin < block.length; begin += kColumns) {
    const std::int64_t columns = least(kColumns, block.length - begin);
    for (int n = 0; n < N; ++n) {
      parameters[n].clear(columns);
      expand(block, begin, columns, tables[n], parameters[n].values);
    }
    for (std::int64_t top = 0; top < block.rows; top += kRows) {
      a.clear(columns);
      b.clear(columns);
      for_each_vector<T>(block, top, least(kRows, block.rows - top), begin, columns,
                         [&](auto together, const auto& access, std::int64_t i, std::int64_t column) HWNAS_INLINE {
                           typename Element<S>::Vector of_columns[N];
                           for (int n = 0; n < N; ++n) of_columns[n] = parameters[n].load(column);
                           auto sum_a = a.load(column);
                           auto sum_b = b.load(column);
                           for (int u = 0; u < together.value; ++u) {
                             terms(access, i + u * block.stride, of_columns, sum_a, sum_b);
                           }
                           a.store(column, sum_a);
                           b.store(column, sum_b);
                         });
      for_each_run(block, begin, columns, [&](std::int64_t column, std::int64_t size, std::int64_t channel) {
        if (block.inner == 1) {
          for (std::int64_t i = 0; i < size; ++i) first[channel + i] += a.values[column + i];
          for (std::int64_t i = 0; i < size; ++i) second[channel + i] += b.values[column + i];
        } else {
          first[channel] += sum(a.values + column, size);
          second[channel] += sum(b.values + column, size);
        }
      });
    }
  }
}

}  // namespace
