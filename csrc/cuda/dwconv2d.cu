// One thread computes one value of the output, or of the gradient of the input: neighbours in memory read neighbours,
// and what they share comes from the first-level cache. The gradients of weight and bias take two stages without
// atomics, so that they are the same from run to run: sums over chunks of images, then the chunks in order.

#include "hwnas/dwconv2d.h"

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "hwnas/cuda_element.h"

namespace hwnas::cuda::of_dwconv2d {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr std::int64_t kMaxImages = 65535;    // blocks in the second dimension of a grid
constexpr std::int64_t kReduceBlocks = 2048;  // to aim at, so that a large device is busy
constexpr std::int64_t kPositions = 16;       // at least so many for each thread, so that adding up its sums pays

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// A DwConv2dShape in numbers that a device computes with quickly: an image has fewer than 2^31 values.
struct Plan {
  int channels, height, width, out_height, out_width;
  int kernel_height, kernel_width, full_width, full_count, kernel_start;
  int stride_height, stride_width, top, left, dilation_height, dilation_width;
  std::int64_t batch;
  bool pre_relu;

  explicit Plan(const DwConv2dShape& s)
      : channels(static_cast<int>(s.channels)),
        height(static_cast<int>(s.in.height)),
        width(static_cast<int>(s.in.width)),
        out_height(static_cast<int>(s.out.height)),
        out_width(static_cast<int>(s.out.width)),
        kernel_height(static_cast<int>(s.kernel.height)),
        kernel_width(static_cast<int>(s.kernel.width)),
        full_width(static_cast<int>(s.full_kernel.width)),
        full_count(static_cast<int>(s.full_kernel.count())),
        kernel_start(static_cast<int>(s.kernel_start.height * s.full_kernel.width + s.kernel_start.width)),
        stride_height(static_cast<int>(s.stride.height)),
        stride_width(static_cast<int>(s.stride.width)),
        top(static_cast<int>(s.padding.height)),
        left(static_cast<int>(s.padding.width)),
        dilation_height(static_cast<int>(s.dilation.height)),
        dilation_width(static_cast<int>(s.dilation.width)),
        batch(s.batch),
        pre_relu(s.pre_relu) {}

  __host__ __device__ int taps() const { return kernel_height * kernel_width; }
  __device__ int weight_at(int channel, int i, int j) const {
    return channel * full_count + kernel_start + i * full_width + j;
  }
};

struct Place {
  int channel, row, column;
};

// Where the value with this index in an image is.
template <bool Last>
__device__ Place place_of(int index, int channels, int height, int width) {
  if (Last) return {index % channels, index / channels / width, index / channels % width};
  return {index / width / height, index / width % height, index % width};
}

template <bool Last>
__device__ int index_of(int channel, int row, int column, int channels, int height, int width) {
  return Last ? (row * width + column) * channels + channel : (channel * height + row) * width + column;
}

__device__ bool inside(int position, int size) { return static_cast<unsigned>(position) < static_cast<unsigned>(size); }

// A comparison of which NaN passes, as it does through PyTorch's ReLU.
template <class A>
__device__ A rectified(A value, bool rectify) {
  return rectify && value <= 0 ? A(0) : value;
}

// How many rows of a kernel are unrolled. All 25 taps at once would double the time that it takes to compile this.
template <int K>
constexpr int kRows = K == 3 ? 3 : 1;

// K is the size of a square kernel that is known when this is compiled, else 0.
template <class T, bool Last, int K>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ Plan plan, const T* __restrict__ x, const T* __restrict__ weight,
                   const T* __restrict__ bias, T* __restrict__ y) {
  const int size = plan.channels * plan.height * plan.width;
  const int out_size = plan.channels * plan.out_height * plan.out_width;
  const int index = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (index >= out_size) return;
  const Place to = place_of<Last>(index, plan.channels, plan.out_height, plan.out_width);
  const int kernel_height = K ? K : plan.kernel_height, kernel_width = K ? K : plan.kernel_width;
  for (std::int64_t image = blockIdx.y; image < plan.batch; image += gridDim.y) {
    const T* from = x + image * size;
    Acc<T> sum = bias == nullptr ? Acc<T>(0) : widen(bias[to.channel]);
#pragma unroll kRows<K>
    for (int i = 0; i < kernel_height; ++i) {
      const int row = to.row * plan.stride_height + i * plan.dilation_height - plan.top;
      if (!inside(row, plan.height)) continue;
#pragma unroll
      for (int j = 0; j < kernel_width; ++j) {
        const int column = to.column * plan.stride_width + j * plan.dilation_width - plan.left;
        if (!inside(column, plan.width)) continue;
        const int at = index_of<Last>(to.channel, row, column, plan.channels, plan.height, plan.width);
        sum += widen(weight[plan.weight_at(to.channel, i, j)]) * rectified(widen(from[at]), plan.pre_relu);
      }
    }
    y[image * out_size + index] = narrow<T>(sum);
  }
}

// Finds the position of the output in which `position`, counted from the padding, has the first tap; false if in none.
__device__ bool output_of(int position, int stride, int size, int& out) {
  out = stride == 1 ? position : position / stride;
  return position >= 0 && out < size && out * stride == position;
}

template <class T, bool Last, int K>
__global__ void __launch_bounds__(kThreads)
    input_gradient_kernel(const __grid_constant__ Plan plan, const T* __restrict__ grad, const T* __restrict__ x,
                          const T* __restrict__ weight, T* __restrict__ grad_x) {
  const int size = plan.channels * plan.height * plan.width;
  const int out_size = plan.channels * plan.out_height * plan.out_width;
  const int index = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (index >= size) return;
  const Place to = place_of<Last>(index, plan.channels, plan.height, plan.width);
  const int kernel_height = K ? K : plan.kernel_height, kernel_width = K ? K : plan.kernel_width;
  for (std::int64_t image = blockIdx.y; image < plan.batch; image += gridDim.y) {
    const T* from = grad + image * out_size;
    Acc<T> sum = 0;
#pragma unroll kRows<K>
    for (int i = 0; i < kernel_height; ++i) {
      int row;
      if (!output_of(to.row + plan.top - i * plan.dilation_height, plan.stride_height, plan.out_height, row)) continue;
#pragma unroll
      for (int j = 0; j < kernel_width; ++j) {
        int column;
        const int position = to.column + plan.left - j * plan.dilation_width;
        if (!output_of(position, plan.stride_width, plan.out_width, column)) continue;
        const int at = index_of<Last>(to.channel, row, column, plan.channels, plan.out_height, plan.out_width);
        sum += widen(weight[plan.weight_at(to.channel, i, j)]) * widen(from[at]);
      }
    }
    if (plan.pre_relu && widen(x[image * size + index]) <= 0) sum = 0;
    grad_x[image * size + index] = narrow<T>(sum);
  }
}

// Threads of a block share a channel, or where channels come last, 32 of them: thread t has position t / kChannels.
template <bool Last>
constexpr int kChannels = Last ? kWarp : 1;

// Sums of `Count` taps over the positions of a block, for each of its channels: one thread calls put(k, channel, sum).
template <bool Last, int Count, class A, class Put>
__device__ void add_over_block(const A (&sums)[Count], const Put& put) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  if (Last) {
    // A warp holds one position of 32 channels. kWarps taps at a time, so that each thread then adds up one of them.
    __shared__ A values[kWarps][kWarps][kWarp];
#pragma unroll
    for (int first = 0; first < Count; first += kWarps) {
#pragma unroll
      for (int k = 0; k < kWarps; ++k) {
        if (first + k < Count) values[k][warp][lane] = sums[first + k < Count ? first + k : 0];
      }
      __syncthreads();
      if (first + warp < Count) {
        A total = 0;
        for (int position = 0; position < kWarps; ++position) total += values[warp][position][lane];
        put(first + warp, lane, total);
      }
      __syncthreads();
    }
  } else {
    __shared__ A values[Count][kWarps];
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      A sum = sums[k];
#pragma unroll
      for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
      if (lane == 0) values[k][warp] = sum;
    }
    __syncthreads();
    if (thread < Count) {
      A total = 0;
      for (int w = 0; w < kWarps; ++w) total += values[thread][w];
      put(thread, 0, total);
    }
    __syncthreads();
  }
}

// Sums over the images of a chunk: partials[chunk][channel][tap], the bias behind the taps. Without x: the bias only.
template <class T, bool Last, int K>
__global__ void __launch_bounds__(kThreads)
    weight_gradient_kernel(const __grid_constant__ Plan plan, const T* __restrict__ grad, const T* __restrict__ x,
                           std::int64_t chunk, double* __restrict__ partials) {
  constexpr int kTaps = K ? K * K : 8;
  constexpr int kStep = kThreads / kChannels<Last>;
  const int size = plan.channels * plan.height * plan.width;
  const int out_size = plan.channels * plan.out_height * plan.out_width;
  const int first_channel = static_cast<int>(blockIdx.x) * kChannels<Last>;
  const int channel = first_channel + static_cast<int>(threadIdx.x) % kChannels<Last>;
  const int start = static_cast<int>(threadIdx.x) / kChannels<Last>;
  const int positions = channel < plan.channels ? plan.out_height * plan.out_width : 0;
  const int kernel_width = K ? K : plan.kernel_width;
  const int taps = plan.taps();
  const std::int64_t begin = blockIdx.y * chunk;
  const std::int64_t end = begin + chunk < plan.batch ? begin + chunk : plan.batch;
  double* out = partials + (std::int64_t{blockIdx.y} * plan.channels + first_channel) * (taps + 1);
  for (int first = 0; first < taps; first += kTaps) {
    Acc<T> sums[kTaps + 1] = {};
    for (std::int64_t image = begin; image < end; ++image) {
      for (int position = start; position < positions; position += kStep) {
        const int out_row = position / plan.out_width, out_column = position % plan.out_width;
        const int at = index_of<Last>(channel, out_row, out_column, plan.channels, plan.out_height, plan.out_width);
        const Acc<T> g = widen(grad[image * out_size + at]);
        sums[kTaps] += g;
        if (x == nullptr) continue;
#pragma unroll
        for (int k = 0; k < kTaps; ++k) {
          if (first + k >= taps) break;
          const int i = (first + k) / kernel_width, j = (first + k) % kernel_width;
          const int row = out_row * plan.stride_height + i * plan.dilation_height - plan.top;
          const int column = out_column * plan.stride_width + j * plan.dilation_width - plan.left;
          if (!inside(row, plan.height) || !inside(column, plan.width)) continue;
          const int from = index_of<Last>(channel, row, column, plan.channels, plan.height, plan.width);
          sums[k] += g * rectified(widen(x[image * size + from]), plan.pre_relu);
        }
      }
    }
    add_over_block<Last, kTaps + 1>(sums, [&](int k, int lane, Acc<T> total) {
      const int tap = k == kTaps ? taps : first + k;
      if (first_channel + lane < plan.channels && tap <= taps && (k == kTaps || tap < taps)) {
        out[lane * (taps + 1) + tap] = total;
      }
    });
  }
}

// One thread for each tap of each channel: the sum over the chunks, in order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_chunks_kernel(const __grid_constant__ Plan plan, const double* __restrict__ partials, std::int64_t chunks,
                      T* __restrict__ grad_weight, T* __restrict__ grad_bias) {
  const int taps = plan.taps();
  const std::int64_t count = std::int64_t{plan.channels} * (taps + 1);
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= count) return;
  double total = 0;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) total += partials[chunk * count + index];
  const int channel = static_cast<int>(index / (taps + 1)), tap = static_cast<int>(index % (taps + 1));
  const T value = narrow<T>(static_cast<Acc<T>>(total));
  if (tap == taps) {
    if (grad_bias != nullptr) grad_bias[channel] = value;
  } else if (grad_weight != nullptr) {
    grad_weight[plan.weight_at(channel, tap / plan.kernel_width, tap % plan.kernel_width)] = value;
  }
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("dwconv2d: ") + what + ": " + cudaGetErrorString(status));
}

dim3 grid_of(std::int64_t image_size, std::int64_t batch) {
  const std::int64_t images = batch < kMaxImages ? batch : kMaxImages;
  return {static_cast<unsigned>(divide_up(image_size, kThreads)), static_cast<unsigned>(images), 1};
}

// Images in a chunk. It depends on the shape alone, so that the order of additions does, too.
std::int64_t chunk_of(const DwConv2dShape& s) {
  const std::int64_t channels = s.channels_last ? kWarp : 1;
  const std::int64_t blocks = divide_up(s.channels, channels);
  const std::int64_t least = divide_up(kPositions * kThreads / channels, s.out.count());
  const std::int64_t busy = divide_up(s.batch * blocks, kReduceBlocks);
  const std::int64_t launchable = divide_up(s.batch, kMaxImages);
  const std::int64_t chunk = least > busy ? least : busy;
  return chunk > launchable ? chunk : launchable;
}

std::int64_t chunks_of(const DwConv2dShape& s) { return divide_up(s.batch, chunk_of(s)); }

template <class T, bool Last, int K>
struct Run {
  static void forward(const DwConv2d& args, cudaStream_t stream) {
    const DwConv2dShape& s = args.shape;
    forward_kernel<T, Last, K><<<grid_of(s.channels * s.out.count(), s.batch), kThreads, 0, stream>>>(
        Plan(s), static_cast<const T*>(args.x), static_cast<const T*>(args.weight), static_cast<const T*>(args.bias),
        static_cast<T*>(args.y));
    check(cudaGetLastError(), "forward launch");
  }

  static void backward(const DwConv2dBackward& args, cudaStream_t stream) {
    const DwConv2dShape& s = args.shape;
    const Plan plan(s);
    const auto* grad = static_cast<const T*>(args.grad);
    const auto* x = static_cast<const T*>(args.x);
    if (args.grad_x != nullptr) {
      input_gradient_kernel<T, Last, K><<<grid_of(s.channels * s.in.count(), s.batch), kThreads, 0, stream>>>(
          plan, grad, x, static_cast<const T*>(args.weight), static_cast<T*>(args.grad_x));
      check(cudaGetLastError(), "launch for the gradient of x");
    }
    if (args.grad_weight == nullptr && args.grad_bias == nullptr) return;
    auto* partials = static_cast<double*>(args.workspace);
    const dim3 grid(static_cast<unsigned>(divide_up(s.channels, kChannels<Last>)), static_cast<unsigned>(chunks_of(s)));
    weight_gradient_kernel<T, Last, K><<<grid, kThreads, 0, stream>>>(
        plan, grad, args.grad_weight == nullptr ? nullptr : x, chunk_of(s), partials);
    check(cudaGetLastError(), "launch for the gradient of the weight");
    const std::int64_t sums = s.channels * (s.kernel.count() + 1);
    add_chunks_kernel<T><<<static_cast<unsigned>(divide_up(sums, kThreads)), kThreads, 0, stream>>>(
        plan, partials, chunks_of(s), static_cast<T*>(args.grad_weight), static_cast<T*>(args.grad_bias));
    check(cudaGetLastError(), "launch for the sum of chunks");
  }
};

// Kernels of double, which are for tests of gradients, are the same for all sizes.
template <class T, bool Last, class Work>
void dispatch_kernel(const DwConv2dShape& s, const Work& work) {
  if constexpr (sizeof(T) < sizeof(double)) {
    const bool square = s.kernel.height == s.kernel.width;
    if (square && s.kernel.width == 3) return work(Run<T, Last, 3>{});
    if (square && s.kernel.width == 5) return work(Run<T, Last, 5>{});
  }
  work(Run<T, Last, 0>{});
}

template <class T, class Work>
void dispatch_layout(const DwConv2dShape& s, const Work& work) {
  s.channels_last ? dispatch_kernel<T, true>(s, work) : dispatch_kernel<T, false>(s, work);
}

// Calls work(Run<...>{}) for the element type, layout and kernel of a shape.
template <class Work>
void dispatch(const DwConv2dShape& s, const Work& work) {
  switch (s.dtype) {
    case DType::f32: return dispatch_layout<float>(s, work);
    case DType::bf16: return dispatch_layout<__nv_bfloat16>(s, work);
    case DType::f64: return dispatch_layout<double>(s, work);
  }
}

}  // namespace
}  // namespace hwnas::cuda::of_dwconv2d

namespace hwnas::cuda {

std::int64_t dwconv2d_backward_workspace(const DwConv2dShape& shape) {
  const std::int64_t sums = shape.channels * (shape.kernel.count() + 1);
  return of_dwconv2d::chunks_of(shape) * sums * static_cast<std::int64_t>(sizeof(double));
}

void dwconv2d(const DwConv2d& args, void* stream) {
  of_dwconv2d::dispatch(args.shape, [&](auto run) { run.forward(args, static_cast<cudaStream_t>(stream)); });
}

void dwconv2d_backward(const DwConv2dBackward& args, void* stream) {
  of_dwconv2d::dispatch(args.shape, [&](auto run) { run.backward(args, static_cast<cudaStream_t>(stream)); });
}

}  // namespace hwnas::cuda
