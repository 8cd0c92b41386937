#pragma once

// The CPU kernels are compiled once for each instruction set, each time in a namespace of its own, and one of them is
// chosen at run time. HWNAS_FOR_EACH_ISA declares a kernel in all of them, HWNAS_PICK calls the chosen one.

#include <string>
#include <vector>

namespace hwnas::cpu {

enum class Isa { base, avx2, avx512 };

// What this processor can run, slowest first.
std::vector<std::string> supported_isas();

// The one in use: the fastest, unless select_isa chose another. select_isa throws std::invalid_argument for a name that
// is unknown or that this processor (or this build) does not support.
Isa current_isa();
std::string current_isa_name();
void select_isa(const std::string& name);

}  // namespace hwnas::cpu

#ifdef HWNAS_X86
#define HWNAS_FOR_EACH_ISA(declaration) \
  namespace base {                      \
  declaration                           \
  }                                     \
  namespace avx2 {                      \
  declaration                           \
  }                                     \
  namespace avx512 {                    \
  declaration                           \
  }
#define HWNAS_PICK(kernel)                                                              \
  (::hwnas::cpu::current_isa() == ::hwnas::cpu::Isa::avx512 ? ::hwnas::cpu::avx512::kernel \
   : ::hwnas::cpu::current_isa() == ::hwnas::cpu::Isa::avx2 ? ::hwnas::cpu::avx2::kernel   \
                                                            : ::hwnas::cpu::base::kernel)
#else
#define HWNAS_FOR_EACH_ISA(declaration) \
  namespace base {                      \
  declaration                           \
  }
#define HWNAS_PICK(kernel) (::hwnas::cpu::base::kernel)
#endif
