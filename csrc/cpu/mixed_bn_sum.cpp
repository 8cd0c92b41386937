// Compiled once for each instruction set; HWNAS_ISA names the namespace.
//
// A tensor is walked in blocks of rows in which the channel of an element depends only on its column, so every inner
// loop runs over columns, each with parameters of its own, whatever the layout and however small the images are:
// - images (outer, channels, inner): a row is a channel of one image, or several whole channels where they are small. A
//   block has all rows of its channels. One thread does everything for it, and finds in its cache what it reads again.
// - channels last (inner = 1): a row is one or more pixels. Blocks cut through the pixels, and their sums are added up.
// Neither the blocks nor the order of the sums depends on the number of threads.

#include "hwnas/mixed_bn_sum.h"

#include <cstdlib>

#include "parallel.h"
#include "vector.h"

namespace hwnas::cpu::HWNAS_ISA {
namespace {

constexpr std::int64_t kColumns = 1024;   // worked on at a time: parameters and sums of so many stay in the L1 cache
constexpr std::int64_t kSumColumns = 256;  // the same, where every tensor has parameters
constexpr std::int64_t kImageRow = 512;    // small channels are joined into rows of about this length
constexpr std::int64_t kPixelRow = 256;    // the same for pixels
constexpr std::int64_t kRows = 64;         // added up in the accumulator type; their sums are in double
constexpr int kSamples = 16;               // elements of a channel whose mean is near enough to shift it by
constexpr int kUnroll = 4;                 // rows that share the loads of the parameters

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
};

struct Blocks {
  explicit Blocks(const MixedBnTensors& in)
      : outer(in.outer), channels(in.channels), inner(in.inner), last(in.inner == 1) {
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

// Calls body(Int<rows together>, access, row, column) for all elements of `rows` rows.
template <class T, class Body>
void for_each_vector(std::int64_t rows, std::int64_t columns, const Body& body) {
  constexpr int lanes = Element<T>::lanes;
  const auto some_rows = [&](auto together, std::int64_t row) {
    std::int64_t column = 0;
    for (; column + lanes <= columns; column += lanes) body(together, Whole<T>{}, row, column);
    if (column < columns) body(together, Part<T>{columns - column}, row, column);
  };
  std::int64_t row = 0;
  for (; row + kUnroll <= rows; row += kUnroll) some_rows(Int<kUnroll>{}, row);
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

// Adds two sums over each channel of a block to `first` and `second`. terms(access, i, centre, a, b) adds the vector at
// i to both, given what to subtract from its elements.
template <class S, class T, class Terms>
void add_sums(const Block& block, const S* centres, double* first, double* second, const Terms& terms) {
  Columns<S> centre, a, b;
  for (std::int64_t begin = 0; begin < block.length; begin += kColumns) {
    const std::int64_t columns = least(kColumns, block.length - begin);
    centre.clear(columns);
    expand(block, begin, columns, centres, centre.values);
    for (std::int64_t top = 0; top < block.rows; top += kRows) {
      a.clear(columns);
      b.clear(columns);
      for_each_vector<T>(least(kRows, block.rows - top), columns,
                         [&](auto together, const auto& access, std::int64_t row, std::int64_t column) {
                           const std::int64_t at = block.offset + (top + row) * block.stride + begin + column;
                           const auto shift = centre.load(column);
                           auto sum_a = a.load(column);
                           auto sum_b = b.load(column);
                           for (int u = 0; u < together.value; ++u) {
                             terms(access, at + u * block.stride, shift, sum_a, sum_b);
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

// --- what is computed of a channel of one tensor ------------------------------------------------------------------

// The sums need a value near the mean to be subtracted first: a mean far larger than the deviation would leave nothing
// of the variance.
template <class T>
double near_mean(const MixedBnTensors& in, const T* y, std::int64_t channel) {
  double total = 0;
  for (int i = 0; i < kSamples; ++i) {
    const std::int64_t outer = i * in.outer / kSamples;
    const std::int64_t inner = i * in.inner / kSamples;
    total += Element<T>::get(y + (outer * in.channels + channel) * in.inner + inner);
  }
  return __builtin_isfinite(total) ? total / kSamples : 0;
}

template <class S>
double at(const void* table, std::int64_t i, double otherwise) {
  return table == nullptr ? otherwise : static_cast<double>(static_cast<const S*>(table)[i]);
}

template <class S>
void put(void* table, std::int64_t i, double value) {
  if (table != nullptr) static_cast<S*>(table)[i] = static_cast<S>(value);
}

template <class T>
struct Pass {
  using S = typename Element<T>::Scalar;

  explicit Pass(const MixedBnTensors& tensors) : in(tensors), blocks(tensors), n(double(in.outer * in.inner)) {}

  const T* tensor(std::int64_t k) const { return static_cast<const T*>(in.tensors[k]); }
  double weight(std::int64_t k) const { return static_cast<double>(static_cast<const S*>(in.weights)[k]); }
  // Of an index into tables of count * channels.
  double gamma(std::int64_t i) const { return at<S>(in.gamma, i, 1); }
  double beta(std::int64_t i) const { return at<S>(in.beta, i, 0); }
  std::int64_t table_size() const { return in.count * in.channels; }
  int threads(int wanted) const {
    return in.count * in.outer * in.channels * in.inner < kSerialBelow ? 1 : wanted;
  }

  // Calls sums(block, k, first, second) for every block and every tensor that `wanted` is true of, with zeros to add
  // the sums of each channel to; finish(k, channel, first, second); then as soon as it can use(block, k) for every
  // tensor and use_all(block) for all of them.
  template <class Wanted, class Sums, class Finish, class Use, class UseAll>
  void run(int number, const Wanted& wanted, const Sums& sums, const Finish& finish, const Use& use,
           const UseAll& use_all) const {
    if (!blocks.last) {
      const Buffer<double> totals(2 * table_size());
      for_each(blocks.count, threads(number), [&](std::int64_t i) {
        const Block block = blocks[i];
        for (std::int64_t k = 0; k < in.count; ++k) {
          double* first = totals.data + 2 * k * in.channels;
          double* second = first + in.channels;
          if (wanted(k)) sums(block, k, first, second);
          for (std::int64_t c = block.first; c < block.first + block.channels; ++c) finish(k, c, first[c], second[c]);
          use(block, k);
        }
        use_all(block);
      });
      return;
    }
    const Buffer<double> parts(2 * in.channels * blocks.count);
    for (std::int64_t k = 0; k < in.count; ++k) {
      if (wanted(k)) {
        for_each(blocks.count, threads(number), [&](std::int64_t i) {
          double* first = parts.data + 2 * i * in.channels;
          for (std::int64_t c = 0; c < 2 * in.channels; ++c) first[c] = 0;
          sums(blocks[i], k, first, first + in.channels);
        });
      }
      for (std::int64_t c = 0; c < in.channels; ++c) {
        double first = 0;
        double second = 0;
        for (std::int64_t i = 0; i < blocks.count; ++i) {
          first += parts.data[2 * i * in.channels + c];
          second += parts.data[(2 * i + 1) * in.channels + c];
        }
        finish(k, c, first, second);
      }
      for_each(blocks.count, threads(number), [&](std::int64_t i) { use(blocks[i], k); });
    }
    for_each(blocks.count, threads(number), [&](std::int64_t i) { use_all(blocks[i]); });
  }

  const MixedBnTensors& in;
  const Blocks blocks;
  const double n;
};

// --- forward ------------------------------------------------------------------------------------------------------

template <class T>
void forward(const MixedBnSum& args, int threads) {
  using S = typename Element<T>::Scalar;
  const Pass<T> pass(args.in);
  const std::int64_t count = args.in.count;
  const std::int64_t channels = args.in.channels;
  // out = sum_k scale * (y - centre) + shift. The centre is the mean as a Scalar; what that lacks is part of the shift.
  const Buffer<S> scales(pass.table_size()), centres(pass.table_size());
  const Buffer<double> shifts(channels);

  const auto normalised = [&](std::int64_t k) { return args.in.normalised[k] != 0; };
  const auto sums = [&](const Block& block, std::int64_t k, double* first, double* second) {
    const T* y = pass.tensor(k);
    S* near = centres.data + k * channels;
    if (!pass.blocks.last) {
      for (std::int64_t c = block.first; c < block.first + block.channels; ++c) {
        near[c] = static_cast<S>(near_mean(args.in, y, c));
      }
    }
    add_sums<S, T>(block, near, first, second, [&](const auto& access, std::int64_t i, auto shift, auto& a, auto& b) {
      const auto d = access.load(y + i) - shift;
      a += d;
      b += d * d;
    });
  };
  const auto finish = [&](std::int64_t k, std::int64_t c, double first, double second) {
    const std::int64_t i = k * channels + c;
    double mean = 0;
    double variance = 0;
    double scale = pass.weight(k);
    if (normalised(k)) {
      mean = static_cast<double>(centres.data[i]) + first / pass.n;
      variance = (second - first / pass.n * first) / pass.n;
      if (variance < 0) variance = 0;
      shifts.data[c] += scale * pass.beta(i);
      scale *= pass.gamma(i) / __builtin_sqrt(variance + args.in.eps[k]);
    }
    args.means[i] = mean;
    args.variances[i] = variance;
    scales.data[i] = static_cast<S>(scale);
    centres.data[i] = static_cast<S>(mean);
    shifts.data[c] -= scale * (mean - static_cast<double>(centres.data[i]));
  };
  const auto use_all = [&](const Block& block) {
    constexpr std::int64_t lanes = Element<S>::lanes;
    constexpr std::int64_t width = kSumColumns + lanes;
    const Buffer<S> table((2 * count + 1) * width);
    S* shift = table.data + 2 * count * width;
    for (std::int64_t begin = 0; begin < block.length; begin += kSumColumns) {
      const std::int64_t columns = least(kSumColumns, block.length - begin);
      for (std::int64_t k = 0; k < count; ++k) {
        expand(block, begin, columns, scales.data + k * channels, table.data + 2 * k * width);
        expand(block, begin, columns, centres.data + k * channels, table.data + (2 * k + 1) * width);
      }
      expand(block, begin, columns, shifts.data, shift);
      for_each_vector<T>(block.rows, columns,
                         [&](auto together, const auto& access, std::int64_t row, std::int64_t column) {
                           const std::int64_t i = block.offset + row * block.stride + begin + column;
                           typename Element<S>::Vector total[together.value];
                           for (auto& part : total) part = Element<S>::load(shift + column);
                           for (std::int64_t k = 0; k < count; ++k) {
                             const S* parameters = table.data + 2 * k * width + column;
                             const auto scale = Element<S>::load(parameters);
                             const auto centre = Element<S>::load(parameters + width);
                             const T* y = pass.tensor(k) + i;
                             for (int u = 0; u < together.value; ++u) {
                               total[u] += scale * (access.load(y + u * block.stride) - centre);
                             }
                           }
                           for (int u = 0; u < together.value; ++u) {
                             access.store(static_cast<T*>(args.out) + i + u * block.stride, total[u]);
                           }
                         });
    }
  };
  if (pass.blocks.last) {
    for (std::int64_t k = 0; k < count; ++k) {
      for (std::int64_t c = 0; c < channels && normalised(k); ++c) {
        centres.data[k * channels + c] = static_cast<S>(near_mean(args.in, pass.tensor(k), c));
      }
    }
  }
  pass.run(threads, normalised, sums, finish, [](const Block&, std::int64_t) {}, use_all);
}

// --- backward -----------------------------------------------------------------------------------------------------

template <class T>
void backward(const MixedBnSumBackward& args, int threads) {
  using S = typename Element<T>::Scalar;
  const Pass<T> pass(args.in);
  const std::int64_t count = args.in.count;
  const std::int64_t channels = args.in.channels;
  const T* g = static_cast<const T*>(args.grad);
  // grad_tensor = scale * grad + slope * (y - centre) + shift
  const std::int64_t size = pass.table_size();
  const Buffer<S> scales(size), centres(size), slopes(size), shifts(size);
  const Buffer<double> of_weights(size);
  for (std::int64_t i = 0; i < size; ++i) centres.data[i] = static_cast<S>(args.means[i]);

  const auto wanted = [&](std::int64_t k) {
    if (args.grad_weights != nullptr) return true;
    return args.in.normalised[k] != 0 &&
           (args.grad_tensors[k] != nullptr || args.grad_gamma != nullptr || args.grad_beta != nullptr);
  };
  const auto sums = [&](const Block& block, std::int64_t k, double* first, double* second) {
    const T* y = pass.tensor(k);
    add_sums<S, T>(block, centres.data + k * channels, first, second,
                   [&](const auto& access, std::int64_t i, auto centre, auto& a, auto& b) {
                     const auto grad = access.load(g + i);
                     a += grad;
                     b += grad * (access.load(y + i) - centre);
                   });
  };
  const auto finish = [&](std::int64_t k, std::int64_t c, double sum_grad, double product) {
    const std::int64_t i = k * channels + c;
    const double weight = pass.weight(k);
    if (args.in.normalised[k] == 0) {
      scales.data[i] = static_cast<S>(weight);
      of_weights.data[i] = product;
      put<S>(args.grad_gamma, i, 0);
      put<S>(args.grad_beta, i, 0);
      return;
    }
    const double missing = args.means[i] - static_cast<double>(centres.data[i]);
    product -= missing * sum_grad;
    const double inverse = 1 / __builtin_sqrt(args.variances[i] + args.in.eps[k]);
    const double scale = weight * pass.gamma(i) * inverse;
    const double slope = -scale * inverse * inverse * product / pass.n;
    scales.data[i] = static_cast<S>(scale);
    slopes.data[i] = static_cast<S>(slope);
    shifts.data[i] = static_cast<S>(-scale * sum_grad / pass.n - slope * missing);
    of_weights.data[i] = pass.gamma(i) * inverse * product + pass.beta(i) * sum_grad;
    put<S>(args.grad_gamma, i, weight * inverse * product);
    put<S>(args.grad_beta, i, weight * sum_grad);
  };
  const auto use = [&](const Block& block, std::int64_t k) {
    T* gy = static_cast<T*>(args.grad_tensors[k]);
    if (gy == nullptr) return;
    const bool normalised = args.in.normalised[k] != 0;
    const T* y = normalised ? pass.tensor(k) : nullptr;
    Columns<S> scale, centre, slope, shift;
    for (std::int64_t begin = 0; begin < block.length; begin += kColumns) {
      const std::int64_t columns = least(kColumns, block.length - begin);
      expand(block, begin, columns, scales.data + k * channels, scale.values);
      expand(block, begin, columns, centres.data + k * channels, centre.values);
      expand(block, begin, columns, slopes.data + k * channels, slope.values);
      expand(block, begin, columns, shifts.data + k * channels, shift.values);
      for_each_vector<T>(block.rows, columns,
                         [&](auto together, const auto& access, std::int64_t row, std::int64_t column) {
                           const std::int64_t first = block.offset + row * block.stride + begin + column;
                           const auto a = scale.load(column);
                           if (!normalised) {
                             for (int u = 0; u < together.value; ++u) {
                               const std::int64_t i = first + u * block.stride;
                               access.store(gy + i, a * access.load(g + i));
                             }
                             return;
                           }
                           const auto b = slope.load(column);
                           const auto m = centre.load(column);
                           const auto c = shift.load(column);
                           for (int u = 0; u < together.value; ++u) {
                             const std::int64_t i = first + u * block.stride;
                             access.store(gy + i, a * access.load(g + i) + (b * (access.load(y + i) - m) + c));
                           }
                         });
    }
  };
  pass.run(threads, wanted, sums, finish, use, [](const Block&) {});
  if (args.grad_weights == nullptr) return;
  for (std::int64_t k = 0; k < count; ++k) {
    double total = 0;
    for (std::int64_t c = 0; c < channels; ++c) total += of_weights.data[k * channels + c];
    static_cast<S*>(args.grad_weights)[k] = static_cast<S>(total);
  }
}

}  // namespace

void mixed_bn_sum(const MixedBnSum& args, int threads) {
  switch (args.in.dtype) {
    case DType::f32: return forward<float>(args, threads);
    case DType::bf16: return forward<bf16>(args, threads);
    case DType::f64: return forward<double>(args, threads);
  }
}

void mixed_bn_sum_backward(const MixedBnSumBackward& args, int threads) {
  switch (args.in.dtype) {
    case DType::f32: return backward<float>(args, threads);
    case DType::bf16: return backward<bf16>(args, threads);
    case DType::f64: return backward<double>(args, threads);
  }
}

}  // namespace hwnas::cpu::HWNAS_ISA
