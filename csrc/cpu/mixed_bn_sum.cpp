// Compiled once for each instruction set; HWNAS_ISA names the namespace.
// See channel_blocks.h for how a tensor is walked.

#include "hwnas/mixed_bn_sum.h"

#include "channel_blocks.h"
#include "parallel.h"
#include "vector.h"

namespace hwnas::cpu::HWNAS_ISA {
namespace {

constexpr std::int64_t kSumColumns = 256;  // worked on at a time where every tensor has parameters
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
    // All tensors of a block before the next block: the gradient is read once from memory.
    const std::int64_t size = 2 * in.channels;
    const Buffer<double> parts(size * in.count * blocks.count);
    for_each(blocks.count, threads(number), [&](std::int64_t i) {
      for (std::int64_t k = 0; k < in.count; ++k) {
        double* first = parts.data + (i * in.count + k) * size;
        if (wanted(k)) sums(blocks[i], k, first, first + in.channels);
      }
    });
    for (std::int64_t k = 0; k < in.count; ++k) {
      for (std::int64_t c = 0; c < in.channels; ++c) {
        double first = 0;
        double second = 0;
        for (std::int64_t i = 0; i < blocks.count; ++i) {
          const double* part = parts.data + (i * in.count + k) * size;
          first += part[c];
          second += part[in.channels + c];
        }
        finish(k, c, first, second);
      }
    }
    for_each(blocks.count, threads(number), [&](std::int64_t i) {
      for (std::int64_t k = 0; k < in.count; ++k) use(blocks[i], k);
      use_all(blocks[i]);
    });
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
                   [&](const auto& access, std::int64_t i, const auto& parameters, auto& a, auto& b) {
                     fetch_to_read(y + i, block.ahead());
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
  const bool clamped = args.in.clamped();
  const Clamp<S> clamp(args.in);
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
                             if (clamped) total[u] = clamp(total[u]);
                             T* out = static_cast<T*>(args.out) + i + u * block.stride;
                             fetch_to_write(out, block.ahead());
                             access.store(out, total[u]);
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
                     [&](const auto& access, std::int64_t i, const auto& parameters, auto& a, auto& b) {
                       fetch_to_read(y + i, block.ahead());
                       const auto d = access.load(y + i) - parameters[0];
                       const auto grad = clamp.gradient(parameters[2] + parameters[1] * d, access.load(g + i));
                       a += grad;
                       b += grad * d;
                     });
      return;
    }
    const S* const tables[] = {centres.data + table};
    add_sums<S, T>(block, tables, first, second,
                   [&](const auto& access, std::int64_t i, const auto& parameters, auto& a, auto& b) {
                     fetch_to_read(y + i, block.ahead());
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
  const auto use = [&](const Block& block, std::int64_t k) {
    T* gy = static_cast<T*>(args.grad_tensors[k]);
    if (gy == nullptr) return;
    const bool normalised = args.in.normalised[k] != 0;
    const T* y = normalised ? pass.tensor(k) : nullptr;
    Columns<S> scale, centre, slope, shift, forward_shift;
    for (std::int64_t begin = 0; begin < block.length; begin += kColumns) {
      const std::int64_t columns = least(kColumns, block.length - begin);
      expand(block, begin, columns, scales.data + k * channels, scale.values);
      expand(block, begin, columns, centres.data + k * channels, centre.values);
      expand(block, begin, columns, slopes.data + k * channels, slope.values);
      expand(block, begin, columns, shifts.data + k * channels, shift.values);
      if (clamped) expand(block, begin, columns, forward_shifts.data + k * channels, forward_shift.values);
      for_each_vector<T>(block.rows, columns,
                         [&](auto together, const auto& access, std::int64_t row, std::int64_t column) {
                           const std::int64_t first = block.offset + row * block.stride + begin + column;
                           const auto a = scale.load(column);
                           if (!normalised) {
                             for (int u = 0; u < together.value; ++u) {
                               const std::int64_t i = first + u * block.stride;
                               fetch_to_write(gy + i, block.ahead());
                               access.store(gy + i, a * access.load(g + i));
                             }
                             return;
                           }
                           const auto b = slope.load(column);
                           const auto m = centre.load(column);
                           const auto c = shift.load(column);
                           const auto d = clamped ? forward_shift.load(column) : c;
                           for (int u = 0; u < together.value; ++u) {
                             const std::int64_t i = first + u * block.stride;
                             fetch_to_write(gy + i, block.ahead());
                             const auto centred = access.load(y + i) - m;
                             auto grad = access.load(g + i);
                             if (clamped) grad = clamp.gradient(d + a * centred, grad);
                             access.store(gy + i, a * grad + (b * centred + c));
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
