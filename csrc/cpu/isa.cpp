#include "hwnas/isa.h"

#include <atomic>
#include <stdexcept>

namespace hwnas::cpu {
namespace {

const char* const kNames[] = {"base", "avx2", "avx512"};

Isa fastest() {
#ifdef HWNAS_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::base;
#else
  return Isa::base;
#endif
}

std::atomic<Isa> selected{fastest()};

}  // namespace

std::vector<std::string> supported_isas() {
  return {kNames, kNames + static_cast<int>(fastest()) + 1};
}

Isa current_isa() { return selected.load(std::memory_order_relaxed); }

std::string current_isa_name() { return kNames[static_cast<int>(current_isa())]; }

void select_isa(const std::string& name) {
  std::string supported;
  for (int i = 0; i <= static_cast<int>(fastest()); ++i) {
    if (name == kNames[i]) {
      selected.store(static_cast<Isa>(i), std::memory_order_relaxed);
      return;
    }
    supported += (i == 0 ? "'" : ", '") + std::string(kNames[i]) + "'";
  }
  throw std::invalid_argument("instruction set '" + name + "' is unknown or not supported here; this processor runs " +
                              supported);
}

}  // namespace hwnas::cpu
