// Compiled once for each instruction set; HWNAS_ISA names the namespace.
//
// A plane of an image is copied into a padded buffer whose rows lie `pitch` positions apart. There a convolution is
// flat: position p of the output is the sum over the taps of weight * buffer[p + offset of the tap], one offset for all
// p. A vector holds neighbouring positions of one channel where the channels come first, and the channels of one
// position where they come last; the arithmetic is the same. A stride deals the rows and columns of the input out to as
// many phases, each with a buffer of its own, so that the positions stay neighbours. Large images are worked on in
// bands of rows.

#include "hwnas/dwconv2d.h"

#include "parallel.h"
#include "vector.h"

namespace hwnas::cpu::HWNAS_ISA {
namespace {

constexpr int kTile = 8;         // vectors of output worked on together, to hide the latency of a multiply-add
constexpr int kTapGroup = 9;     // taps whose gradients are summed together
constexpr int kGroup = 4;        // vectors of channels at one position, so that memory is read in longer pieces
constexpr int kPieces = 32;      // pieces of work to aim at: few keep the weights longer, many serve more threads
constexpr std::int64_t kBandBytes = 512 * 1024;

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return a <= 0 ? 0 : (a + b - 1) / b; }
constexpr std::int64_t at_least(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
constexpr std::int64_t at_most(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// What all threads know. Lengths are in positions, each of `values` numbers: one, or where the channels come last those
// of up to kGroup vectors.
template <class T, bool Last>
struct Geometry {
  using E = Element<T>;
  using Scalar = typename E::Scalar;
  static constexpr std::int64_t kSlack = Last ? 0 : E::lanes;  // a vector may end behind the last position

  const DwConv2dShape& s;
  std::int64_t taps, phases, values, blocks;
  std::int64_t step;    // numbers from one vector to the next
  std::int64_t halo;    // rows that a band reads behind its last one
  std::int64_t reach;   // the same for columns
  std::int64_t pitch;   // from one row to the next; the gap is the padding right of the one and left of the other
  std::int64_t rows, band, bands;
  std::int64_t plane;     // size of the buffer of one phase of the input
  std::int64_t origin;    // where the first row of a band is in the buffer of the gradient
  std::int64_t gradient;  // size of that buffer
  std::int64_t chunk, chunks;

  Geometry(const DwConv2dShape& shape, bool backward) : s(shape) {
    taps = s.kernel.count();
    phases = s.stride.count();
    const std::int64_t vectors = divide_up(s.channels, E::lanes);
    values = Last ? divide_up(vectors, divide_up(vectors, kGroup)) * E::lanes : 1;
    blocks = divide_up(s.channels, values);
    step = Last ? values : E::lanes;
    halo = (s.kernel.height - 1) * s.dilation.height / s.stride.height;
    reach = (s.kernel.width - 1) * s.dilation.width / s.stride.width;
    pitch = at_least(s.out.width, divide_up(s.in.width + s.padding.width, s.stride.width));
    pitch = at_least(pitch, s.out.width + reach - s.padding.width / s.stride.width);
    rows = s.out.height;
    if (backward) rows = at_least(rows, divide_up(s.in.height + s.padding.height, s.stride.height));
    const std::int64_t row_bytes =
        pitch * values * static_cast<std::int64_t>(sizeof(Scalar)) * (phases + (backward ? 1 : 0));
    band = at_most(rows, at_least(kBandBytes / row_bytes, 1 + halo));
    bands = divide_up(rows, band);
    plane = (band + halo) * pitch + reach + kSlack;
    origin = divide_up(reach + halo * pitch, E::lanes) * E::lanes;
    gradient = origin + band * pitch + kSlack;
    chunk = divide_up(s.batch, divide_up(kPieces, blocks));
    chunks = divide_up(s.batch, chunk);
  }
};

constexpr std::int64_t aligned(std::int64_t bytes) {
  return divide_up(bytes, kDwConv2dAlignment) * kDwConv2dAlignment;
}

// Cuts the workspace into aligned pieces. From address 0 it only finds out how large the workspace has to be.
struct Carver {
  std::uintptr_t next;

  template <class P>
  void take(P*& pointer, std::int64_t count) {
    pointer = reinterpret_cast<P*>(next);
    next += static_cast<std::uintptr_t>(aligned(count * static_cast<std::int64_t>(sizeof(P))));
  }
};

// The taps, those of one phase after each other, and the columns.
struct Taps {
  std::int64_t* x;      // offset in the buffers of the input, in values
  std::int64_t* g;      // offset in the buffer of the gradient
  std::int64_t* index;  // in the full kernel
  std::int64_t* phase;  // where those of each phase begin
  std::int64_t* first;  // for each phase of the columns the first one inside the image
  std::int64_t* last;   // and the one behind the last

  template <class G>
  void carve(Carver& carver, const G& geometry) {
    carver.take(x, geometry.taps);
    carver.take(g, geometry.taps);
    carver.take(index, geometry.taps);
    carver.take(phase, geometry.phases + 1);
    carver.take(first, geometry.s.stride.width);
    carver.take(last, geometry.s.stride.width);
  }

  template <class G>
  void fill(const G& geometry) {
    const DwConv2dShape& s = geometry.s;
    std::int64_t tap = 0;
    for (std::int64_t row = 0; row < s.stride.height; ++row) {
      for (std::int64_t column = 0; column < s.stride.width; ++column) {
        const std::int64_t plane = row * s.stride.width + column;
        phase[plane] = tap;
        for (std::int64_t i = 0; i < s.kernel.height; ++i) {
          for (std::int64_t j = 0; j < s.kernel.width; ++j) {
            const std::int64_t down = i * s.dilation.height, right = j * s.dilation.width;
            if (down % s.stride.height != row || right % s.stride.width != column) continue;
            const std::int64_t offset = down / s.stride.height * geometry.pitch + right / s.stride.width;
            x[tap] = (plane * geometry.plane + offset) * geometry.values;
            g[tap] = -offset * geometry.values;
            index[tap] = (s.kernel_start.height + i) * s.full_kernel.width + s.kernel_start.width + j;
            ++tap;
          }
        }
      }
    }
    phase[geometry.phases] = tap;
    for (std::int64_t column = 0; column < s.stride.width; ++column) {
      first[column] = divide_up(s.padding.width - column, s.stride.width);
      last[column] = at_least(first[column], divide_up(s.in.width + s.padding.width - column, s.stride.width));
    }
  }
};

// What a thread has for itself.
template <class Scalar>
struct Buffers {
  Scalar* x;        // the padded input, all phases
  Scalar* g;        // the padded gradient
  Scalar* flat;     // results whose rows still lie `pitch` apart
  Scalar* weights;  // for each tap a vector, or those of one position
  Scalar* sums;     // the same for the gradients of the weight, and of the bias behind them
  std::uintptr_t begin;
  std::uintptr_t end;

  template <class G>
  void carve(Carver& carver, const G& geometry, bool backward) {
    begin = carver.next;
    carver.take(x, geometry.phases * geometry.plane * geometry.values);
    carver.take(g, backward ? geometry.gradient * geometry.values : 0);
    carver.take(flat, geometry.values == 1 ? geometry.band * geometry.pitch + G::kSlack : 0);
    carver.take(weights, geometry.taps * geometry.step);
    carver.take(sums, backward ? (geometry.taps + 1) * geometry.step : 0);
    end = carver.next;
  }
};

// --- between tensors and buffers ----------------------------------------------------------------------------

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

// A comparison of which NaN passes, as it does through PyTorch's ReLU.
template <class V>
V rectified(V value) {
  return value <= 0 ? V{} : value;
}

// The whole vector that `count` < lanes values are the beginning of, zeros behind them.
template <class V>
V beginning(V value, std::int64_t count) {
  using Scalar = decltype(value[0] + value[0]);
  V lane;
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(Scalar)); ++i) lane[i] = static_cast<Scalar>(i);
  return lane < static_cast<Scalar>(count) ? value : V{};
}

// Copies a row into a buffer, zeros behind it up to a whole vector: rows are copied from first to last, and behind each
// is its gap. Nothing is read from `end` on.
template <class T>
void copy_row(typename Element<T>::Scalar* to, const T* from, std::int64_t count, const T* end, bool rectify) {
  using E = Element<T>;
  using S = typename E::Scalar;
  using B = Element<S>;
  std::int64_t i = 0;
  for (; i < count && end - from - i >= E::lanes; i += E::lanes) {
    auto value = E::load(from + i);
    if (rectify) value = rectified(value);
    B::store(to + i, i + E::lanes <= count ? value : beginning(value, count - i));
  }
  for (; i < count; ++i) {
    const S value = E::get(from + i);
    to[i] = rectify && value <= 0 ? 0 : value;
  }
}

// The other way. What is between the row and `end` may be written to, because it is written later.
template <class T>
void copy_row_back(T* to, const typename Element<T>::Scalar* from, std::int64_t count, const T* end) {
  using E = Element<T>;
  using B = Element<typename E::Scalar>;
  std::int64_t i = 0;
  for (; i < count && end - to - i >= E::lanes; i += E::lanes) E::store(to + i, B::load(from + i));
  for (; i < count; ++i) E::put(to + i, from[i]);
}

template <class Scalar>
void clear(Scalar* to, std::int64_t count) {
  std::memset(static_cast<void*>(to), 0, static_cast<std::size_t>(count) * sizeof(Scalar));
}

// --- arithmetic on buffers ----------------------------------------------------------------------------------

// `Size` vectors of output, the first of them number `first`.
template <int Size, class Scalar, class Store>
void correlate(const Scalar* at, const std::int64_t* offsets, const Scalar* weights, std::int64_t taps,
               std::int64_t step, typename Element<Scalar>::Vector start, std::int64_t first, const Store& store) {
  using B = Element<Scalar>;
  typename B::Vector sum[Size];
  for (int u = 0; u < Size; ++u) sum[u] = start;
  for (std::int64_t tap = 0; tap < taps; ++tap) {
    const Scalar* p = at + offsets[tap];
    const auto weight = B::load(weights + tap * step);
    for (int u = 0; u < Size; ++u) sum[u] += weight * B::load(p + u * step);
  }
  for (int u = 0; u < Size; ++u) store(first + u, sum[u]);
}

template <int Size, class Scalar, class Store>
void correlate_rest(std::int64_t size, const Scalar* at, const std::int64_t* offsets, const Scalar* weights,
                    std::int64_t taps, std::int64_t step, typename Element<Scalar>::Vector start, std::int64_t first,
                    const Store& store) {
  if (size == Size) return correlate<Size>(at, offsets, weights, taps, step, start, first, store);
  if constexpr (Size > 1) correlate_rest<Size - 1>(size, at, offsets, weights, taps, step, start, first, store);
}

// Calls store(i, vector i of the output) for i < count. From one vector to the next it is `step`, for the weights too.
template <class Scalar, class Store>
void correlate_run(const Scalar* at, const std::int64_t* offsets, const Scalar* weights, std::int64_t taps,
                   std::int64_t step, typename Element<Scalar>::Vector start, std::int64_t count, const Store& store) {
  std::int64_t i = 0;
  for (; i + kTile <= count; i += kTile) {
    correlate<kTile>(at + i * step, offsets, weights, taps, step, start, i, store);
  }
  correlate_rest<kTile - 1>(count - i, at + i * step, offsets, weights, taps, step, start, i, store);
}

// sums[tap] += sum over the rows of g * x, for `Size` taps.
template <int Size, class Scalar>
void tap_sums(const Scalar* g, const Scalar* x, const std::int64_t* offsets, std::int64_t rows, std::int64_t pitch,
              std::int64_t count, std::int64_t step, Scalar* sums) {
  using B = Element<Scalar>;
  typename B::Vector sum[Size] = {};
  for (std::int64_t row = 0; row < rows; ++row) {
    const Scalar* p = x + row * pitch;
    const Scalar* q = g + row * pitch;
    for (std::int64_t i = 0; i < count; ++i, p += step, q += step) {
      const auto grad = B::load(q);
      for (int tap = 0; tap < Size; ++tap) sum[tap] += grad * B::load(p + offsets[tap]);
    }
  }
  for (int tap = 0; tap < Size; ++tap) B::store(sums + tap * step, B::load(sums + tap * step) + sum[tap]);
}

template <int Size = kTapGroup, class Scalar>
void some_tap_sums(std::int64_t size, const Scalar* g, const Scalar* x, const std::int64_t* offsets, std::int64_t rows,
                   std::int64_t pitch, std::int64_t count, std::int64_t step, Scalar* sums) {
  if (size == Size) return tap_sums<Size>(g, x, offsets, rows, pitch, count, step, sums);
  if constexpr (Size > 1) some_tap_sums<Size - 1>(size, g, x, offsets, rows, pitch, count, step, sums);
}

// --- one block of channels ----------------------------------------------------------------------------------

template <class T, bool Last>
struct Block {
  using G = Geometry<T, Last>;
  using E = Element<T>;
  using Scalar = typename E::Scalar;
  using Vector = typename E::Vector;
  using B = Element<Scalar>;

  const G& geometry;
  const Taps& taps;
  const Buffers<Scalar>& buffers;
  std::int64_t channel;   // the first one
  std::int64_t channels;  // how many

  Block(const G& all, const Taps& table, const Buffers<Scalar>& own, std::int64_t block)
      : geometry(all), taps(table), buffers(own), channel(block * all.values) {
    channels = at_most(all.values, all.s.channels - channel);
  }

  // Where a row of a tensor begins, of images of this size.
  template <class P>
  P* row_of(P* tensor, const Size2d& size, std::int64_t image, std::int64_t row) const {
    const std::int64_t all = geometry.s.channels;
    return Last ? tensor + ((image * size.height + row) * size.width) * all + channel
                : tensor + ((image * all + channel) * size.height + row) * size.width;
  }

  const T* end_of(const T* tensor, const Size2d& size) const {
    return tensor + geometry.s.batch * geometry.s.channels * size.count();
  }

  // Something that there is for each channel, for those from `lane` on.
  Vector values_of(const T* tensor, std::int64_t stride, std::int64_t lane) const {
    Vector values = {};
    if (!Last) return values + E::get(tensor + channel * stride);
    for (int i = 0; i < E::lanes && lane + i < channels; ++i) {
      values[i] = E::get(tensor + (channel + lane + i) * stride);
    }
    return values;
  }

  void read_weights(const T* weight) const {
    const std::int64_t stride = geometry.s.full_kernel.count();
    for (std::int64_t tap = 0; tap < geometry.taps; ++tap) {
      for (std::int64_t lane = 0; lane < geometry.step; lane += E::lanes) {
        B::store(buffers.weights + tap * geometry.step + lane, values_of(weight + taps.index[tap], stride, lane));
      }
    }
  }

  // Rows from `top` on of the input, with those that the last one of the band reads.
  void pack_input(const T* x, std::int64_t image, std::int64_t top) const {
    const DwConv2dShape& s = geometry.s;
    const T* end = end_of(x, s.in);
    for (std::int64_t row_phase = 0; row_phase < s.stride.height; ++row_phase) {
      for (std::int64_t r = 0; r < geometry.band + geometry.halo; ++r) {
        const std::int64_t row = (top + r) * s.stride.height + row_phase - s.padding.height;
        const bool inside = row >= 0 && row < s.in.height;
        for (std::int64_t phase = 0; phase < s.stride.width; ++phase) {
          const std::int64_t plane = (row_phase * s.stride.width + phase) * geometry.plane;
          Scalar* to = buffers.x + (plane + r * geometry.pitch) * geometry.values;
          if (inside) {
            const std::int64_t first = taps.first[phase], last = taps.last[phase];
            const std::int64_t column = first * s.stride.width + phase - s.padding.width;
            const T* from = row_of(x, s.in, image, row) + column * (Last ? s.channels : 1);
            pack_row(to + first * geometry.values, from, last - first, s.stride.width, end, s.pre_relu);
          } else if (geometry.bands > 1) {
            clear(to, geometry.pitch * geometry.values);
          }
        }
      }
    }
  }

  void pack_gradient(const T* grad, std::int64_t image, std::int64_t top) const {
    const DwConv2dShape& s = geometry.s;
    const T* end = end_of(grad, s.out);
    for (std::int64_t r = -geometry.halo; r < geometry.band; ++r) {
      Scalar* to = buffers.g + (geometry.origin + r * geometry.pitch) * geometry.values;
      const std::int64_t row = top + r;
      if (row >= 0 && row < s.out.height) {
        pack_row(to, row_of(grad, s.out, image, row), s.out.width, 1, end, false);
      } else if (geometry.bands > 1) {
        clear(to, geometry.pitch * geometry.values);
      }
    }
  }

  void pack_row(Scalar* to, const T* from, std::int64_t count, std::int64_t stride, const T* end, bool rectify) const {
    if (Last) {
      const std::int64_t next = stride * geometry.s.channels;
      for (std::int64_t c = 0; c < count; ++c, from += next, to += geometry.values) {
        for (std::int64_t lane = 0; lane < channels; lane += E::lanes) {
          const Vector value = load_some(from + lane, channels - lane);
          B::store(to + lane, rectify ? rectified(value) : value);
        }
      }
    } else if (stride == 1) {
      copy_row(to, from, count, end, rectify);
    } else {
      for (std::int64_t c = 0; c < count; ++c, from += stride) {
        const Scalar value = E::get(from);
        to[c] = rectify && value <= 0 ? 0 : value;
      }
    }
  }

  void forward(T* y, const T* bias, std::int64_t image, std::int64_t top) const {
    const DwConv2dShape& s = geometry.s;
    const std::int64_t rows = at_most(geometry.band, s.out.height - top);
    const auto start = [&](std::int64_t lane) { return bias == nullptr ? Vector{} : values_of(bias, 1, lane); };
    if (Last) {
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t lane = 0; lane < channels; lane += E::lanes) {
          T* to = row_of(y, s.out, image, top + r) + lane;
          correlate_run(buffers.x + r * geometry.pitch * geometry.values + lane, taps.x, buffers.weights + lane,
                        geometry.taps, geometry.step, start(lane), s.out.width, [&](std::int64_t c, Vector value) {
                          store_some(to + c * s.channels, value, channels - lane);
                        });
        }
      }
      return;
    }
    const std::int64_t length = (rows - 1) * geometry.pitch + s.out.width;
    correlate_run(buffers.x, taps.x, buffers.weights, geometry.taps, geometry.step, start(0),
                  divide_up(length, E::lanes),
                  [&](std::int64_t i, Vector value) { B::store(buffers.flat + i * E::lanes, value); });
    for (std::int64_t r = 0; r < rows; ++r) {
      copy_row_back(row_of(y, s.out, image, top + r), buffers.flat + r * geometry.pitch, s.out.width,
                    row_of(y, s.out, image, s.out.height));
    }
  }

  // The gradient of the input, masked where the ReLU was closed: there the buffer of the input holds zeros.
  void input_gradient(T* grad_x, std::int64_t image, std::int64_t top) const {
    const DwConv2dShape& s = geometry.s;
    const Scalar* g = buffers.g + geometry.origin * geometry.values;
    const auto masked = [&](Vector value, const Scalar* at) {
      return s.pre_relu && B::load(at) == 0 ? Vector{} : value;
    };
    for (std::int64_t row_phase = 0; row_phase < s.stride.height; ++row_phase) {
      for (std::int64_t column_phase = 0; column_phase < s.stride.width; ++column_phase) {
        const std::int64_t phase = row_phase * s.stride.width + column_phase;
        const std::int64_t begin = taps.phase[phase], count = taps.phase[phase + 1] - begin;
        const std::int64_t first = taps.first[column_phase], columns = taps.last[column_phase] - first;
        const Scalar* x = buffers.x + phase * geometry.plane * geometry.values;
        const Scalar* weights = buffers.weights + begin * geometry.step;
        if (!Last) {
          correlate_run(g, taps.g + begin, weights, count, geometry.step, Vector{},
                        divide_up(geometry.band * geometry.pitch, E::lanes), [&](std::int64_t i, Vector value) {
                          B::store(buffers.flat + i * E::lanes, masked(value, x + i * E::lanes));
                        });
        }
        const std::int64_t column = first * s.stride.width + column_phase - s.padding.width;
        const std::int64_t next = s.stride.width * (Last ? s.channels : 1);
        for (std::int64_t r = 0; r < geometry.band; ++r) {
          const std::int64_t row = (top + r) * s.stride.height + row_phase - s.padding.height;
          if (row < 0 || row >= s.in.height) continue;
          T* to = row_of(grad_x, s.in, image, row) + column * (Last ? s.channels : 1);
          const std::int64_t from = (r * geometry.pitch + first) * geometry.values;
          for (std::int64_t lane = 0; Last && lane < channels; lane += E::lanes) {
            const Scalar* open = x + from + lane;
            correlate_run(g + from + lane, taps.g + begin, weights + lane, count, geometry.step, Vector{}, columns,
                          [&](std::int64_t c, Vector value) {
                            const Vector kept = masked(value, open + c * geometry.values);
                            store_some(to + lane + c * next, kept, channels - lane);
                          });
          }
          if (!Last && s.stride.count() == 1) {
            copy_row_back(to, buffers.flat + from, columns, row_of(grad_x, s.in, image, s.in.height));
          } else if (!Last) {
            for (std::int64_t c = 0; c < columns; ++c) E::put(to + c * next, buffers.flat[from + c]);
          }
        }
      }
    }
  }

  void add_weight_gradient(std::int64_t top) const {
    const DwConv2dShape& s = geometry.s;
    const Scalar* g = buffers.g + geometry.origin * geometry.values;
    const std::int64_t rows = at_most(geometry.band, s.out.height - top);
    if (rows <= 0) return;
    const std::int64_t length = (rows - 1) * geometry.pitch + s.out.width;
    for (std::int64_t tap = 0; tap < geometry.taps;) {
      const std::int64_t left = geometry.taps - tap;
      const std::int64_t size = divide_up(left, divide_up(left, kTapGroup));
      for (std::int64_t lane = 0; lane < channels; lane += E::lanes) {
        some_tap_sums(size, g + lane, buffers.x + lane, taps.x + tap, Last ? rows : 1, geometry.pitch * geometry.values,
                      Last ? s.out.width : divide_up(length, E::lanes), geometry.step,
                      buffers.sums + tap * geometry.step + lane);
      }
      tap += size;
    }
  }

  void add_bias_gradient(std::int64_t top) const {
    const Scalar* g = buffers.g + geometry.origin * geometry.values;
    const std::int64_t rows = at_most(geometry.band, geometry.s.out.height - top);
    const std::int64_t length = at_least(rows, 0) * geometry.pitch;
    for (std::int64_t lane = 0; lane < channels; lane += E::lanes) {
      Vector sum = {};
      for (std::int64_t i = 0; i < (Last ? length : divide_up(length, E::lanes)); ++i) {
        sum += B::load(g + lane + i * geometry.step);
      }
      Scalar* total = buffers.sums + geometry.taps * geometry.step + lane;
      B::store(total, B::load(total) + sum);
    }
  }
};

// --- the whole ----------------------------------------------------------------------------------------------

template <class G>
int threads_for(const G& geometry, std::int64_t pieces, int threads) {
  const std::int64_t size = geometry.s.batch * geometry.s.channels * geometry.s.in.count();
  return size < kSerialBelow ? 1 : static_cast<int>(at_most(pieces, threads));
}

// Cuts the pieces into a range for each thread, with buffers of its own that are filled with zeros, and calls
// work(buffers, piece).
template <class G, class Work>
void for_each_piece(const G& geometry, Carver carver, bool backward, std::int64_t pieces, int threads,
                    const Work& work) {
  const std::int64_t ranges = threads_for(geometry, pieces, threads);
  Buffers<typename G::Scalar> first;
  first.carve(carver, geometry, backward);
  for_each(ranges, static_cast<int>(ranges), [&](std::int64_t range) {
    Carver own{first.begin + range * (first.end - first.begin)};
    Buffers<typename G::Scalar> buffers;
    buffers.carve(own, geometry, backward);
    clear(reinterpret_cast<char*>(buffers.begin), static_cast<std::int64_t>(buffers.end - buffers.begin));
    for (std::int64_t piece = pieces * range / ranges; piece < pieces * (range + 1) / ranges; ++piece) {
      work(buffers, piece);
    }
  });
}

template <class G>
std::int64_t workspace(const G& geometry, bool backward, std::int64_t pieces, std::int64_t partials, int threads) {
  Carver carver{0};
  Taps taps;
  double* sums;
  taps.carve(carver, geometry);
  carver.take(sums, partials);
  Buffers<typename G::Scalar> buffers;
  buffers.carve(carver, geometry, backward);
  const auto one = static_cast<std::int64_t>(buffers.end - buffers.begin);
  return static_cast<std::int64_t>(buffers.begin) + threads_for(geometry, pieces, threads) * one;
}

// Sums for each piece of the backward pass: those of the taps, and that of the bias.
template <class G>
std::int64_t partial_sums(const G& geometry) {
  return geometry.chunks * geometry.blocks * (geometry.taps + 1) * geometry.values;
}

template <class T, bool Last>
struct Run {
  using G = Geometry<T, Last>;
  using E = Element<T>;
  using Scalar = typename E::Scalar;
  using Vector = typename E::Vector;

  static std::int64_t forward_workspace(const DwConv2dShape& shape, int threads) {
    const G geometry(shape, false);
    return workspace(geometry, false, geometry.chunks * geometry.blocks, 0, threads);
  }

  static std::int64_t backward_workspace(const DwConv2dShape& shape, int threads) {
    const G geometry(shape, true);
    return workspace(geometry, true, geometry.chunks * geometry.blocks, partial_sums(geometry), threads);
  }

  static void forward(const DwConv2d& args, int threads) {
    const G geometry(args.shape, false);
    Carver carver{reinterpret_cast<std::uintptr_t>(args.workspace)};
    Taps taps;
    taps.carve(carver, geometry);
    taps.fill(geometry);
    for_each_piece(geometry, carver, false, geometry.chunks * geometry.blocks, threads,
                   [&](const Buffers<Scalar>& buffers, std::int64_t piece) {
                     const Block<T, Last> block(geometry, taps, buffers, piece % geometry.blocks);
                     const std::int64_t begin = piece / geometry.blocks * geometry.chunk;
                     const std::int64_t end = at_most(begin + geometry.chunk, args.shape.batch);
                     block.read_weights(static_cast<const T*>(args.weight));
                     for (std::int64_t image = begin; image < end; ++image) {
                       for (std::int64_t top = 0; top < geometry.rows; top += geometry.band) {
                         block.pack_input(static_cast<const T*>(args.x), image, top);
                         block.forward(static_cast<T*>(args.y), static_cast<const T*>(args.bias), image, top);
                       }
                     }
                   });
  }

  static void backward(const DwConv2dBackward& args, int threads) {
    const G geometry(args.shape, true);
    Carver carver{reinterpret_cast<std::uintptr_t>(args.workspace)};
    Taps taps;
    taps.carve(carver, geometry);
    taps.fill(geometry);
    double* partials;
    carver.take(partials, partial_sums(geometry));
    const std::int64_t size = (geometry.taps + 1) * geometry.values;
    for_each_piece(geometry, carver, true, geometry.chunks * geometry.blocks, threads,
                   [&](const Buffers<Scalar>& buffers, std::int64_t piece) {
                     const Block<T, Last> block(geometry, taps, buffers, piece % geometry.blocks);
                     const std::int64_t begin = piece / geometry.blocks * geometry.chunk;
                     const std::int64_t end = at_most(begin + geometry.chunk, args.shape.batch);
                     backward_piece(args, block, begin, end, partials + piece * size);
                   });
    if (args.grad_weight != nullptr || args.grad_bias != nullptr) add_up(args, geometry, taps, partials);
  }

  static void backward_piece(const DwConv2dBackward& args, const Block<T, Last>& block, std::int64_t begin,
                             std::int64_t end, double* partial) {
    const G& geometry = block.geometry;
    Scalar* sums = block.buffers.sums;
    block.read_weights(static_cast<const T*>(args.weight));
    clear(sums, (geometry.taps + 1) * geometry.step);
    for (std::int64_t image = begin; image < end; ++image) {
      for (std::int64_t top = 0; top < geometry.rows; top += geometry.band) {
        block.pack_gradient(static_cast<const T*>(args.grad), image, top);
        if (args.grad_weight != nullptr || (args.grad_x != nullptr && args.shape.pre_relu)) {
          block.pack_input(static_cast<const T*>(args.x), image, top);
        }
        if (args.grad_x != nullptr) block.input_gradient(static_cast<T*>(args.grad_x), image, top);
        if (args.grad_weight != nullptr) block.add_weight_gradient(top);
        if (args.grad_bias != nullptr) block.add_bias_gradient(top);
      }
    }
    for (std::int64_t i = 0; i < (geometry.taps + 1) * geometry.values; ++i) {
      double total = sums[Last ? i : i * E::lanes];
      for (int lane = 1; lane < E::lanes && !Last; ++lane) total += sums[i * E::lanes + lane];
      partial[i] = total;
    }
  }

  // The sums over the chunks, always in the same order.
  static void add_up(const DwConv2dBackward& args, const G& geometry, const Taps& taps, const double* partials) {
    const std::int64_t size = (geometry.taps + 1) * geometry.values;
    for (std::int64_t channel = 0; channel < args.shape.channels; ++channel) {
      for (std::int64_t tap = 0; tap <= geometry.taps; ++tap) {
        const bool is_bias = tap == geometry.taps;
        T* to = static_cast<T*>(is_bias ? args.grad_bias : args.grad_weight);
        if (to == nullptr) continue;
        const std::int64_t block = channel / geometry.values, lane = channel % geometry.values;
        double total = 0;
        for (std::int64_t chunk = 0; chunk < geometry.chunks; ++chunk) {
          total += partials[(chunk * geometry.blocks + block) * size + tap * geometry.values + lane];
        }
        const std::int64_t at = is_bias ? channel : channel * args.shape.full_kernel.count() + taps.index[tap];
        E::put(to + at, static_cast<Scalar>(total));
      }
    }
  }
};

// Calls work(Run<...>{}) for the element type and layout of a shape.
template <class Work>
auto dispatch(const DwConv2dShape& shape, const Work& work) {
  switch (shape.dtype) {
    case DType::f32: return shape.channels_last ? work(Run<float, true>{}) : work(Run<float, false>{});
    case DType::bf16: return shape.channels_last ? work(Run<bf16, true>{}) : work(Run<bf16, false>{});
    default: return shape.channels_last ? work(Run<double, true>{}) : work(Run<double, false>{});
  }
}

}  // namespace

std::int64_t dwconv2d_workspace(const DwConv2dShape& shape, int threads) {
  return dispatch(shape, [&](auto run) { return run.forward_workspace(shape, threads); });
}

std::int64_t dwconv2d_backward_workspace(const DwConv2dShape& shape, int threads) {
  return dispatch(shape, [&](auto run) { return run.backward_workspace(shape, threads); });
}

void dwconv2d(const DwConv2d& args, int threads) {
  dispatch(args.shape, [&](auto run) { run.forward(args, threads); });
}

void dwconv2d_backward(const DwConv2dBackward& args, int threads) {
  dispatch(args.shape, [&](auto run) { run.backward(args, threads); });
}

}  // namespace hwnas::cpu::HWNAS_ISA
