// Compiled once for each instruction set; HWNAS_ISA names the namespace.

#include "hwnas/dwconv2d.h"

#include "dwconv2d_block.h"
#include "dwconv2d_plan.h"
#include "parallel.h"
#include "vector.h"

namespace hwnas::cpu::HWNAS_ISA {
namespace {

// The tables, and sums for each piece of the backward pass, those of the taps and that of the bias; chunk by chunk.
template <class Scalar>
struct Shared {
  Tables<Scalar> tables;
  Scalar* partials;
  double* totals;

  [[gnu::noinline]] void carve(Carver& carver, const Plan& plan) {
    tables.carve(carver, plan);
    const std::int64_t sums = plan.backward ? plan.blocks * (plan.taps + 1) * plan.lanes : 0;
    carver.take(partials, plan.chunks * sums);
    carver.take(totals, sums);
  }
};

template <class Scalar>
[[gnu::noinline]] std::int64_t workspace(const Plan& plan, int threads) {
  Carver carver{0};
  Shared<Scalar>{}.carve(carver, plan);
  for (int thread = 0; thread < plan.threads(threads); ++thread) Buffers<Scalar>{}.carve(carver, plan);
  return static_cast<std::int64_t>(carver.next);
}

// The sums over the pieces, always in the same order.
template <class T>
[[gnu::noinline]] void add_pieces(const DwConv2dBackward& args, const Plan& plan, const Shared<typename Element<T>::Scalar>& shared) {
  const std::int64_t lanes = plan.blocks * plan.lanes, sums = lanes * (plan.taps + 1);
  // Where the channels come first, a channel comes back after so many planes.
  const std::int64_t next = args.shape.channels_last ? lanes : args.shape.channels;
  for (std::int64_t i = 0; i < sums; ++i) shared.totals[i] = 0;
  for (std::int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
    for (std::int64_t i = 0; i < sums; ++i) {
      shared.totals[i] += static_cast<double>(shared.partials[chunk * sums + i]);
    }
  }
  for (std::int64_t channel = 0; channel < args.shape.channels; ++channel) {
    for (std::int64_t tap = 0; tap <= plan.taps; ++tap) {
      const bool is_bias = tap == plan.taps;
      T* to = static_cast<T*>(is_bias ? args.grad_bias : args.grad_weight);
      if (to == nullptr) continue;
      double total = 0;
      for (std::int64_t lane = channel; lane < lanes; lane += next) {
        total += shared.totals[(lane / plan.lanes * (plan.taps + 1) + tap) * plan.lanes + lane % plan.lanes];
      }
      const std::int64_t at = channel * args.shape.full_kernel.count();
      Element<T>::put(to + (is_bias ? channel : at + shared.tables.index[tap]),
                      static_cast<typename Element<T>::Scalar>(total));
    }
  }
}

template <class T, bool Last>
struct Whole {
  using Scalar = typename Element<T>::Scalar;

  static Plan plan_of(const DwConv2dShape& shape, bool backward) {
    return {shape, Element<T>::lanes, sizeof(T), backward, Last, 0};
  }

  static std::int64_t workspace_of(const DwConv2dShape& shape, bool backward, int threads) {
    return workspace<Scalar>(plan_of(shape, backward), threads);
  }

  // Calls work(block, piece) for each band of each piece, a range of pieces on each thread.
  template <class Work, class Finish>
  static void for_each_band(const Plan& plan, const Tables<Scalar>& tables, Carver carver, int threads, const Work& work,
                            const Finish& finish) {
    const std::int64_t pieces = plan.pieces(), ranges = plan.threads(threads);
    Buffers<Scalar> first;
    first.carve(carver, plan);
    for_each(ranges, static_cast<int>(ranges), [&](std::int64_t range) {
      Carver own{first.begin + static_cast<std::uintptr_t>(range) * (first.end - first.begin)};
      Buffers<Scalar> buffers;
      buffers.carve(own, plan);
      buffers.clear();
      for (std::int64_t piece = pieces * range / ranges; piece < pieces * (range + 1) / ranges; ++piece) {
        const std::int64_t block = piece % plan.blocks, begin = piece / plan.blocks * plan.chunk;
        for (std::int64_t repeat = begin; repeat < at_most(begin + plan.chunk, plan.repeats); ++repeat) {
          for (std::int64_t top = 0; top < plan.rows; top += plan.band) {
            work(Block<T, Last>{plan, tables, buffers, block, repeat, top, plan.lanes_of(block, repeat)});
          }
        }
        finish(buffers, piece);
      }
    });
  }

  static void forward(const DwConv2d& args, int threads) {
    const Plan plan = plan_of(args.shape, false);
    Carver carver{reinterpret_cast<std::uintptr_t>(args.workspace)};
    Shared<Scalar> shared;
    shared.carve(carver, plan);
    shared.tables.fill(plan, static_cast<const T*>(args.weight), static_cast<const T*>(args.bias));
    for_each_band(
        plan, shared.tables, carver, threads,
        [&](const Block<T, Last>& block) {
          block.pack_input(static_cast<const T*>(args.x));
          block.forward(static_cast<T*>(args.y));
        },
        [](const Buffers<Scalar>&, std::int64_t) {});
  }

  static void backward(const DwConv2dBackward& args, int threads) {
    const Plan plan = plan_of(args.shape, true);
    Carver carver{reinterpret_cast<std::uintptr_t>(args.workspace)};
    Shared<Scalar> shared;
    shared.carve(carver, plan);
    shared.tables.fill(plan, static_cast<const T*>(args.weight), static_cast<const T*>(nullptr));
    const std::int64_t size = (plan.taps + 1) * plan.lanes;
    const bool of_weight = args.grad_weight != nullptr, of_bias = args.grad_bias != nullptr;
    for_each_band(
        plan, shared.tables, carver, threads,
        [&](const Block<T, Last>& block) {
          block.pack_gradient(static_cast<const T*>(args.grad));
          if (of_weight || (args.grad_x != nullptr && args.shape.pre_relu)) {
            block.pack_input(static_cast<const T*>(args.x));
          }
          if (args.grad_x != nullptr) block.input_gradient(static_cast<T*>(args.grad_x));
          block.add_gradients(of_weight, of_bias);
        },
        [&](const Buffers<Scalar>& buffers, std::int64_t piece) {
          for (std::int64_t i = 0; i < size; ++i) {
            shared.partials[piece * size + i] = buffers.sums[i];
            buffers.sums[i] = 0;
          }
        });
    if (of_weight || of_bias) add_pieces<T>(args, plan, shared);
  }
};

// Calls work(...) for the element type and layout of a shape.
template <class Work>
auto dispatch(const DwConv2dShape& shape, const Work& work) {
  switch (shape.dtype) {
    case DType::f32: return shape.channels_last ? work(Whole<float, true>{}) : work(Whole<float, false>{});
    case DType::bf16: return shape.channels_last ? work(Whole<bf16, true>{}) : work(Whole<bf16, false>{});
    default: return shape.channels_last ? work(Whole<double, true>{}) : work(Whole<double, false>{});
  }
}

}  // namespace

std::int64_t dwconv2d_workspace(const DwConv2dShape& shape, int threads) {
  return dispatch(shape, [&](auto run) { return run.workspace_of(shape, false, threads); });
}

std::int64_t dwconv2d_backward_workspace(const DwConv2dShape& shape, int threads) {
  return dispatch(shape, [&](auto run) { return run.workspace_of(shape, true, threads); });
}

void dwconv2d(const DwConv2d& args, int threads) {
  dispatch(args.shape, [&](auto run) { run.forward(args, threads); });
}

void dwconv2d_backward(const DwConv2dBackward& args, int threads) {
  dispatch(args.shape, [&](auto run) { run.backward(args, threads); });
}

}  // namespace hwnas::cpu::HWNAS_ISA
