// Compiled once for each instruction set; HWNAS_ISA names the namespace.
// See channel_blocks.h for how a tensor is walked.

#include "hwnas/mixed_bn_sum.h"

#include "channel_blocks.h"
#include "parallel.h"
#include "vector.h"

namespace hwnas::cpu::HWNAS_ISA {
namespace {

constexpr std::int64_t kSumColumns = 256;  // worked on at a time where every tensor has parameters; whole vectors
constexpr std::int64_t kCached = 4 << 20;  // bytes of tensors that are read twice before the next ones
constexpr int kSamples = 16;               // elements of a channel whose mean is near enough to shift it by

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

// scale * (y - centre) + shift. The centre is the mean as a Scalar; what that lacks is part of the shift.
struct Affine {
  double scale, shift;
};

template <class T>
struct Pass {
  using S = typename Element<T>::Scalar;

  explicit Pass(const MixedBnTensors& tensors)
      : in(tensors), blocks(in.outer, in.channels, in.inner), n(double(in.outer * in.inner)) {}

  const T* tensor(std::int64_t k) const { return static_cast<const T*>(in.tensors[k]); }
  double weight(std::int64_t k) const { return static_cast<double>(static_cast<const S*>(in.weights)[k]); }
  // Of an index into tables of count * channels.
  double gamma(std::int64_t i) const { return at<S>(in.gamma, i, 1); }
  double beta(std::int64_t i) const { return at<S>(in.beta, i, 0); }
  std::int64_t table_size() const { return in.count * in.channels; }

  // What normalising the entry of a table with weight and statistics amounts to.
  Affine affine(std::int64_t k, std::int64_t i, double mean, double variance) const {
    const double scale = weight(k) * gamma(i) / __builtin_sqrt(variance + in.eps[k]);
    return {scale, weight(k) * beta(i) - scale * (mean - static_cast<double>(static_cast<S>(mean)))};
  }
  int threads(int wanted) const {
    return in.count * in.outer * in.channels * in.inner < kSerialBelow ? 1 : wanted;
  }

  // Whole tensors that a cache keeps.
  std::int64_t cached() const {
    const std::int64_t bytes = in.outer * in.channels * in.inner * std::int64_t{sizeof(T)};
    return bytes * in.count <= kCached ? in.count : bytes < kCached ? kCached / bytes : 1;
  }

  // Calls sums(block, k, first, second) for every block and every tensor that `wanted` is true of, with zeros to add
  // the sums of each channel to; finish(k, channel, first, second); then use(block, begin, end) for tensors that are
  // finished: for all at the end, or `early`, while a cache still has them.
  template <class Wanted, class Sums, class Finish, class Use>
  void run(int number, bool early, const Wanted& wanted, const Sums& sums, const Finish& finish, const Use& use) const {
    if (!blocks.last) {
      const Buffer<double> totals(2 * table_size());
      for_each(blocks.count, threads(number), [&](std::int64_t i) {
        const Block block = blocks[i];
        for (std::int64_t k = 0; k < in.count; ++k) {
          double* first = totals.data + 2 * k * in.channels;
          double* second = first + in.channels;
          if (wanted(k)) sums(block, k, first, second);
          for (std::int64_t c = block.first; c < block.first + block.channels; ++c) finish(k, c, first[c], second[c]);
          if (early) use(block, k, k + 1);
        }
        if (!early) use(block, 0, in.count);
      });
      return;
    }
    // All of these tensors of a block before the next block: the gradient is read once from memory.
    const std::int64_t size = 2 * in.channels;
    const std::int64_t together = early ? cached() : in.count;
    for (std::int64_t begin = 0; begin < in.count; begin += together) {
      const std::int64_t end = least(begin + together, in.count);
      const Buffer<double> parts(size * (end - begin) * blocks.count);
      const auto part = [&](std::int64_t i, std::int64_t k) {
        return parts.data + (i * (end - begin) + k - begin) * size;
      };
      for_each(blocks.count, threads(number), [&](std::int64_t i) {
        for (std::int64_t k = begin; k < end; ++k) {
          if (wanted(k)) sums(blocks[i], k, part(i, k), part(i, k) + in.channels);
        }
      });
      for (std::int64_t k = begin; k < end; ++k) {
        for (std::int64_t c = 0; c < in.channels; ++c) {
          double first = 0;
          double second = 0;
          for (std::int64_t i = 0; i < blocks.count; ++i) {
            first += part(i, k)[c];
            second += part(i, k)[in.channels + c];
          }
          finish(k, c, first, second);
        }
      }
      for_each(blocks.count, threads(number), [&](std::int64_t i) { use(blocks[i], begin, end); });
    }
  }

  const MixedBnTensors& in;
  const Blocks blocks;
  const double n;
};

// Comparisons of which NaN passes unchanged, and so does its gradient, as in PyTorch.
template <class S>
struct Clamp {
  using V = typename Element<S>::Vector;

  explicit Clamp(const MixedBnTensors& in)
      : low(V{} + static_cast<S>(in.low)), high(V{} + static_cast<S>(in.high)) {}

  V operator()(V value) const {
    value = value < low ? low : value;
    return value > high ? high : value;
  }
  V gradient(V value, V grad) const { return (value <= low) | (value >= high) ? V{} : grad; }

  const V low, high;
};

// --- forward ------------------------------------------------------------------------------------------------------

// The tables of one block: for each tensor a scale and a centre for each column, then one shift.
template <class S>
struct SumTables {
  explicit SumTables(std::int64_t count)
      : values((2 * count + 1) * kSumColumns), shift(values.data + 2 * count * kSumColumns) {}
  S* scale(std::int64_t k) const { return values.data + 2 * k * kSumColumns; }
  S* centre(std::int64_t k) const { return scale(k) + kSumColumns; }

  Buffer<S> values;
  S* const shift;
};

// Adds N tensors to a row of sums: `from`, to `totals` or, behind the last tensor, to `out`.
template <class T, int N, bool is_last>
void add_to_row(const T* const (&tensors)[N], const typename Element<T>::Scalar* scales, std::int64_t columns,
                const typename Element<T>::Scalar* from, typename Element<T>::Scalar* totals, T* out,
                const Clamp<typename Element<T>::Scalar> clamp) {
  using E = Element<typename Element<T>::Scalar>;
  const auto step = [&](const auto& access, std::int64_t column) HWNAS_INLINE {
    auto total = E::load(from + column);
    for (int n = 0; n < N; ++n) {
      const auto* scale = scales + 2 * n * kSumColumns + column;
      fetch_to_read(tensors[n] + column, kRowsAhead<T>);
      total += E::load(scale) * (access.load(tensors[n] + column) - E::load(scale + kSumColumns));
    }
    if constexpr (is_last) {
      fetch_to_write(out + column, kRowsAhead<T>);
      access.store(out + column, clamp(total));
    } else {
      E::store(totals + column, total);
    }
  };
  std::int64_t column = 0;
  for (; column + E::lanes <= columns; column += E::lanes) step(Whole<T>{}, column);
  if (column < columns) step(Part<T>{columns - column}, column);
}

template <class T>
void forward(const MixedBnSum& args, int threads) {
  using S = typename Element<T>::Scalar;
  const Pass<T> pass(args.in);
  const std::int64_t count = args.in.count;
  const std::int64_t channels = args.in.channels;
  // out = sum_k scale * (y - centre) + shift
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
    const S* const tables[] = {near};
    add_sums<S, T>(block, tables, first, second,
                   [&](const auto& access, std::int64_t i, const auto& parameters, auto& a, auto& b) HWNAS_INLINE {
                     fetch_to_read(y + i, block.ahead<T>());
                     const auto d = access.load(y + i) - parameters[0];
                     a += d;
                     b += d * d;
                   });
  };
  const auto finish = [&](std::int64_t k, std::int64_t c, double first, double second) {
    const std::int64_t i = k * channels + c;
    double mean = 0;
    double variance = 0;
    Affine affine{pass.weight(k), 0};
    if (normalised(k)) {
      mean = static_cast<double>(centres.data[i]) + first / pass.n;
      variance = (second - first / pass.n * first) / pass.n;
      if (variance < 0) variance = 0;
      affine = pass.affine(k, i, mean, variance);
    }
    args.means[i] = mean;
    args.variances[i] = variance;
    scales.data[i] = static_cast<S>(affine.scale);
    centres.data[i] = static_cast<S>(mean);
    shifts.data[c] += affine.shift;
  };
  const Clamp<S> clamp(args.in);
  T* const out = static_cast<T*>(args.out);
  // Rows that follow each other: one by one, each tensor along the whole row.
  const auto in_order = [&](const Block& block, std::int64_t begin, std::int64_t columns, const SumTables<S>& tables) {
    Columns<S> totals;
    for (std::int64_t row = 0; row < block.rows; ++row) {
      const std::int64_t i = block.offset + row * block.stride + begin;
      const S* from = tables.shift;
      for (std::int64_t k = 0; k < count; from = totals.values) {
        const auto add = [&](auto together, auto is_last) {
          const T* rows[together.value];
          for (int n = 0; n < together.value; ++n) rows[n] = pass.tensor(k + n) + i;
          add_to_row<T, together.value, is_last.value>(rows, tables.scale(k), columns, from, totals.values, out + i,
                                                       clamp);
          k += together.value;
        };
        switch (count - k) {
          case 1: add(Int<1>{}, Int<true>{}); break;
          case 2: add(Int<2>{}, Int<true>{}); break;
          case 3: add(Int<3>{}, Int<true>{}); break;
          case 4: add(Int<4>{}, Int<true>{}); break;
          default: add(Int<4>{}, Int<false>{});
        }
      }
    }
  };
  // Others: the sums of some rows stay in registers.
  const auto apart = [&](const Block& block, std::int64_t begin, std::int64_t columns, const SumTables<S>& tables) {
    for_each_vector<T>(block, 0, block.rows, begin, columns,
                       [&](auto together, const auto& access, std::int64_t i, std::int64_t column) {
                         typename Element<S>::Vector total[together.value];
                         for (auto& part : total) part = Element<S>::load(tables.shift + column);
                         for (std::int64_t k = 0; k < count; ++k) {
                           const auto scale = Element<S>::load(tables.scale(k) + column);
                           const auto centre = Element<S>::load(tables.centre(k) + column);
                           const T* y = pass.tensor(k) + i;
                           for (int u = 0; u < together.value; ++u) {
                             total[u] += scale * (access.load(y + u * block.stride) - centre);
                           }
                         }
                         for (int u = 0; u < together.value; ++u) {
                           fetch_to_write(out + i + u * block.stride, block.ahead<T>());
                           access.store(out + i + u * block.stride, clamp(total[u]));
                         }
                       });
  };
  const auto use = [&](const Block& block, std::int64_t, std::int64_t) {
    const SumTables<S> tables(count);
    for (std::int64_t begin = 0; begin < block.length; begin += kSumColumns) {
      const std::int64_t columns = least(kSumColumns, block.length - begin);
      for (std::int64_t k = 0; k < count; ++k) {
        expand(block, begin, columns, scales.data + k * channels, tables.scale(k));
        expand(block, begin, columns, centres.data + k * channels, tables.centre(k));
      }
      expand(block, begin, columns, shifts.data, tables.shift);
      block.in_order() ? in_order(block, begin, columns, tables) : apart(block, begin, columns, tables);
    }
  };
  if (pass.blocks.last) {
    for (std::int64_t k = 0; k < count; ++k) {
      for (std::int64_t c = 0; c < channels && normalised(k); ++c) {
        centres.data[k * channels + c] = static_cast<S>(near_mean(args.in, pass.tensor(k), c));
      }
    }
  }
  pass.run(threads, false, normalised, sums, finish, use);
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
  const Buffer<S> scales(size), centres(size), slopes(size), shifts(size), forward_shifts(size);
  const Buffer<double> of_weights(size);
  for (std::int64_t i = 0; i < size; ++i) {
    centres.data[i] = static_cast<S>(args.means[i]);
    if (args.in.normalised[i / channels] == 0) continue;
    const Affine affine = pass.affine(i / channels, i, args.means[i], args.variances[i]);
    scales.data[i] = static_cast<S>(affine.scale);
    forward_shifts.data[i] = static_cast<S>(affine.shift);
  }
  const bool clamped = args.in.clamped();
  const Clamp<S> clamp(args.in);

  const auto wanted = [&](std::int64_t k) {
    if (args.grad_weights != nullptr) return true;
    return args.in.normalised[k] != 0 &&
           (args.grad_tensors[k] != nullptr || args.grad_gamma != nullptr || args.grad_beta != nullptr);
  };
  const auto sums = [&](const Block& block, std::int64_t k, double* first, double* second) {
    const T* y = pass.tensor(k);
    const std::int64_t table = k * channels;
    if (clamped) {
      const S* const tables[] = {centres.data + table, scales.data + table, forward_shifts.data + table};
      add_sums<S, T>(block, tables, first, second,
                     [&](const auto& access, std::int64_t i, const auto& parameters, auto& a, auto& b) HWNAS_INLINE {
                       fetch_to_read(y + i, block.ahead<T>());
                       const auto d = access.load(y + i) - parameters[0];
                       const auto grad = clamp.gradient(parameters[2] + parameters[1] * d, access.load(g + i));
                       a += grad;
                       b += grad * d;
                     });
      return;
    }
    const S* const tables[] = {centres.data + table};
    add_sums<S, T>(block, tables, first, second,
                   [&](const auto& access, std::int64_t i, const auto& parameters, auto& a, auto& b) HWNAS_INLINE {
                     fetch_to_read(y + i, block.ahead<T>());
                     const auto grad = access.load(g + i);
                     a += grad;
                     b += grad * (access.load(y + i) - parameters[0]);
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
    const double scale = pass.affine(k, i, args.means[i], args.variances[i]).scale;
    const double slope = -scale * inverse * inverse * product / pass.n;
    slopes.data[i] = static_cast<S>(slope);
    shifts.data[i] = static_cast<S>(-scale * sum_grad / pass.n - slope * missing);
    of_weights.data[i] = pass.gamma(i) * inverse * product + pass.beta(i) * sum_grad;
    put<S>(args.grad_gamma, i, weight * inverse * product);
    put<S>(args.grad_beta, i, weight * sum_grad);
  };
  const auto use_one = [&](const Block& block, std::int64_t k) {
    T* gy = static_cast<T*>(args.grad_tensors[k]);
    if (gy == nullptr) return;
    const bool normalised = args.in.normalised[k] != 0;
    const T* y = normalised ? pass.tensor(k) : nullptr;
    // Copies: what lies elsewhere would be read again behind every store.
    const std::int64_t stride = block.stride;
    const std::int64_t ahead = block.ahead<T>();
    const Clamp<S> bounds = clamp;
    Columns<S> scale, centre, slope, shift, forward_shift;
    for (std::int64_t begin = 0; begin < block.length; begin += kColumns) {
      const std::int64_t columns = least(kColumns, block.length - begin);
      expand(block, begin, columns, scales.data + k * channels, scale.values);
      const auto each = [&](const auto& of_vector) HWNAS_INLINE {
        for_each_vector<T>(block, 0, block.rows, begin, columns,
                           [&](auto together, const auto& access, std::int64_t first, std::int64_t column) HWNAS_INLINE {
                             for (int u = 0; u < together.value; ++u) {
                               const std::int64_t i = first + u * stride;
                               fetch_to_write(gy + i, ahead);
                               access.store(gy + i, of_vector(access, i, column));
                             }
                           });
      };
      if (!normalised) {
        each([&](const auto& access, std::int64_t i, std::int64_t column) HWNAS_INLINE {
          return scale.load(column) * access.load(g + i);
        });
        continue;
      }
      expand(block, begin, columns, centres.data + k * channels, centre.values);
      expand(block, begin, columns, slopes.data + k * channels, slope.values);
      expand(block, begin, columns, shifts.data + k * channels, shift.values);
      if (!clamped) {
        each([&](const auto& access, std::int64_t i, std::int64_t column) HWNAS_INLINE {
          const auto centred = access.load(y + i) - centre.load(column);
          return scale.load(column) * access.load(g + i) + (slope.load(column) * centred + shift.load(column));
        });
        continue;
      }
      expand(block, begin, columns, forward_shifts.data + k * channels, forward_shift.values);
      each([&](const auto& access, std::int64_t i, std::int64_t column) HWNAS_INLINE {
        const auto centred = access.load(y + i) - centre.load(column);
        const auto a = scale.load(column);
        const auto grad = bounds.gradient(forward_shift.load(column) + a * centred, access.load(g + i));
        return a * grad + (slope.load(column) * centred + shift.load(column));
      });
    }
  };
  const auto use = [&](const Block& block, std::int64_t first, std::int64_t end) {
    for (std::int64_t k = first; k < end; ++k) use_one(block, k);
  };
  pass.run(threads, true, wanted, sums, finish, use);
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
