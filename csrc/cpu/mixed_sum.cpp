// Compiled once for each instruction set; HWNAS_ISA names the namespace.

#include "hwnas/mixed_sum.h"

#include "parallel.h"
#include "vector.h"

namespace hwnas::cpu::HWNAS_ISA {
namespace {

// The backward pass keeps this many elements of the gradient in the first-level cache while it visits every tensor.
constexpr std::int64_t kBlock = 2048;

// Vectors worked on together, to hide the latency of a multiply-add.
constexpr int kUnroll = 4;

template <class T>
void forward_range(const MixedSum& args, std::int64_t begin, std::int64_t end) {
  using E = Element<T>;
  using Scalar = typename E::Scalar;
  using Vector = typename E::Vector;
  const auto* w = static_cast<const Scalar*>(args.weights);
  const auto x = [&](std::int64_t k) { return static_cast<const T*>(args.tensors[k]); };
  auto* out = static_cast<T*>(args.out);
  std::int64_t i = begin;
  for (; i + kUnroll * E::lanes <= end; i += kUnroll * E::lanes) {
    Vector sum[kUnroll];
    const T* first = x(0) + i;
    for (int u = 0; u < kUnroll; ++u) sum[u] = w[0] * E::load(first + u * E::lanes);
    for (std::int64_t k = 1; k < args.count; ++k) {
      const T* p = x(k) + i;
      for (int u = 0; u < kUnroll; ++u) sum[u] += w[k] * E::load(p + u * E::lanes);
    }
    for (int u = 0; u < kUnroll; ++u) {
      fetch_to_write(out + i + u * E::lanes, kAhead<T>);
      E::store(out + i + u * E::lanes, sum[u]);
    }
  }
  for (; i < end; ++i) {
    Scalar sum = w[0] * E::get(x(0) + i);
    for (std::int64_t k = 1; k < args.count; ++k) sum += w[k] * E::get(x(k) + i);
    E::put(out + i, sum);
  }
}

// One tensor over one block: gx = w * g where `Scale`, and the sum of g * x where `Dot` (else 0).
template <class T, bool Scale, bool Dot>
double backward_block(const T* g, const T* x, T* gx, typename Element<T>::Scalar w, std::int64_t size) {
  using E = Element<T>;
  using Scalar = typename E::Scalar;
  using Vector = typename E::Vector;
  Vector sum[kUnroll] = {};
  std::int64_t i = 0;
  for (; i + kUnroll * E::lanes <= size; i += kUnroll * E::lanes) {
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t at = i + u * E::lanes;
      const Vector grad = E::load(g + at);
      if (Dot) {
        fetch_to_read(x + at, kAhead<T>);
        sum[u] += grad * E::load(x + at);
      }
      if (Scale) {
        fetch_to_write(gx + at, kAhead<T>);
        E::store(gx + at, w * grad);
      }
    }
  }
  Scalar tail = 0;
  for (; i < size; ++i) {
    const Scalar grad = E::get(g + i);
    if (Dot) tail += grad * E::get(x + i);
    if (Scale) E::put(gx + i, w * grad);
  }
  double total = tail;
  if (Dot) {
    for (int u = 1; u < kUnroll; ++u) sum[0] += sum[u];
    for (int lane = 0; lane < E::lanes; ++lane) total += sum[0][lane];
  }
  return total;
}

template <class T>
void backward_range(const MixedSumBackward& args, std::int64_t begin, std::int64_t end, double* partial) {
  const auto* w = static_cast<const typename Element<T>::Scalar*>(args.weights);
  if (partial != nullptr) {
    for (std::int64_t k = 0; k < args.count; ++k) partial[k] = 0;
  }
  for (std::int64_t at = begin; at < end; at += kBlock) {
    const std::int64_t size = end - at < kBlock ? end - at : kBlock;
    const T* g = static_cast<const T*>(args.grad) + at;
    for (std::int64_t k = 0; k < args.count; ++k) {
      T* gx = args.grad_tensors[k] == nullptr ? nullptr : static_cast<T*>(args.grad_tensors[k]) + at;
      if (partial != nullptr) {
        const T* x = static_cast<const T*>(args.tensors[k]) + at;
        partial[k] += gx == nullptr ? backward_block<T, false, true>(g, x, gx, w[k], size)
                                    : backward_block<T, true, true>(g, x, gx, w[k], size);
      } else if (gx != nullptr) {
        backward_block<T, true, false>(g, nullptr, gx, w[k], size);
      }
    }
  }
}

// Calls work(chunk, begin, end) for every chunk. Chunks have a fixed size, so every element is treated in the same way
// however many threads there are.
template <class Work>
void for_each_chunk(std::int64_t size, int threads, const Work& work) {
  const std::int64_t chunks = (size + kMixedSumChunk - 1) / kMixedSumChunk;
  for_each(chunks, size < kSerialBelow ? 1 : threads, [&](std::int64_t chunk) {
    const std::int64_t begin = chunk * kMixedSumChunk;
    work(chunk, begin, begin + kMixedSumChunk < size ? begin + kMixedSumChunk : size);
  });
}

template <class T>
void forward(const MixedSum& args, int threads) {
  for_each_chunk(args.size, threads, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    forward_range<T>(args, begin, end);
  });
}

template <class T>
void backward(const MixedSumBackward& args, int threads) {
  auto* partials = args.grad_weights == nullptr ? nullptr : static_cast<double*>(args.partials);
  for_each_chunk(args.size, threads, [&](std::int64_t chunk, std::int64_t begin, std::int64_t end) {
    backward_range<T>(args, begin, end, partials == nullptr ? nullptr : partials + chunk * args.count);
  });
  if (partials == nullptr) return;
  const std::int64_t chunks = mixed_sum_partials(args.size, 1);
  for (std::int64_t k = 0; k < args.count; ++k) {
    double total = 0;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) total += partials[chunk * args.count + k];
    using Scalar = typename Element<T>::Scalar;
    static_cast<Scalar*>(args.grad_weights)[k] = static_cast<Scalar>(total);
  }
}

}  // namespace

void mixed_sum(const MixedSum& args, int threads) {
  switch (args.dtype) {
    case DType::f32: return forward<float>(args, threads);
    case DType::bf16: return forward<bf16>(args, threads);
    case DType::f64: return forward<double>(args, threads);
  }
}

void mixed_sum_backward(const MixedSumBackward& args, int threads) {
  switch (args.dtype) {
    case DType::f32: return backward<float>(args, threads);
    case DType::bf16: return backward<bf16>(args, threads);
    case DType::f64: return backward<double>(args, threads);
  }
}

}  // namespace hwnas::cpu::HWNAS_ISA
