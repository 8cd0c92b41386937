#include "cuda_runtime.h"

#include <ucontext.h>

#include <cstdio>
#include <memory>
#include <vector>

namespace cuda_host {
namespace {

constexpr std::size_t kStack = 64 * 1024;

enum class State { ready, waits_for_warp, waits_for_block, ended };

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state;
};

std::vector<Fibre> fibres;
ucontext_t scheduler;
const Body* running_body = nullptr;
int running = 0;
int threads = 0;
int launches = 0;
bool backwards = false;

void start() {
  (*running_body)();
  fibres[running].state = State::ended;
  swapcontext(&fibres[running].context, &scheduler);
}

void wait(State state) {
  fibres[running].state = state;
  swapcontext(&fibres[running].context, &scheduler);
}

// Lets the threads in [begin, end) go on if all that have not ended wait for the same. Returns whether any does.
bool release(int begin, int end, State state) {
  int waiting = 0;
  for (int i = begin; i < end; ++i) {
    if (fibres[i].state == state) ++waiting;
    else if (fibres[i].state != State::ended) return false;
  }
  for (int i = begin; i < end; ++i) {
    if (fibres[i].state == state) fibres[i].state = State::ready;
  }
  return waiting > 0;
}

void run_block() {
  for (int i = 0; i < threads; ++i) {
    Fibre& fibre = fibres[i];
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStack;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, start, 0);
    fibre.state = State::ready;
  }
  for (;;) {
    bool progress = false;
    for (int k = 0; k < threads; ++k) {
      running = backwards ? threads - 1 - k : k;
      if (fibres[running].state != State::ready) continue;
      const unsigned i = static_cast<unsigned>(running);
      threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
      swapcontext(&scheduler, &fibres[running].context);
      progress = true;
    }
    for (int warp = 0; warp < threads; warp += 32) {
      progress |= release(warp, warp + 32 < threads ? warp + 32 : threads, State::waits_for_warp);
    }
    progress |= release(0, threads, State::waits_for_block);
    if (progress) continue;
    for (int i = 0; i < threads; ++i) {
      if (fibres[i].state == State::ended) continue;
      std::fprintf(stderr, "cuda_host: thread %d waits for threads that wait elsewhere\n", i);
      std::abort();
    }
    return;
  }
}

}  // namespace

int thread_index() { return running; }
void wait_for_block() { wait(State::waits_for_block); }
void wait_for_warp() { wait(State::waits_for_warp); }

void launch(dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t, const Body& body) {
  if (shared_bytes != 0) std::abort();
  ++launches;
  gridDim = grid;
  blockDim = block;
  running_body = &body;
  threads = static_cast<int>(block.x * block.y * block.z);
  if (fibres.size() < static_cast<std::size_t>(threads)) fibres = std::vector<Fibre>(static_cast<std::size_t>(threads));
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        run_block();
      }
    }
  }
}

}  // namespace cuda_host

// For the tests: the order of threads, and how many kernels have been launched.
extern "C" {
void cuda_host_run_backwards(int yes) { cuda_host::backwards = yes != 0; }
int cuda_host_launches() { return cuda_host::launches; }
}
