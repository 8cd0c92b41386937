# The CUDA kernels in a module of their own. Sets nothing that the CPU module needs: where the compiler is missing, broken
# or incomplete, AUTO goes on without them.

include(CheckLanguage)
include(CheckSourceCompiles)

set(architectures "80-real;90")

check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_ARCHITECTURES "${architectures}")
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  check_source_compiles(CUDA "
    #include <cuda_bf16.h>
    #include <cuda_runtime.h>
    __global__ void kernel(float* x) { *x = __bfloat162float(__float2bfloat16_rn(*x)); }
    int main() { kernel<<<1, 1>>>(nullptr); return cudaGetLastError() == cudaSuccess ? 0 : 1; }
  " HWNAS_CUDA_WORKS)
endif()

if(HWNAS_CUDA_WORKS)
  message(STATUS "hwnas: building the CUDA kernels for ${architectures} with ${CMAKE_CUDA_COMPILER}")
  pybind11_add_module(_cuda MODULE NO_EXTRAS csrc/bindings/module_cuda.cpp ${bindings} ${cuda_kernels})
  target_include_directories(_cuda PRIVATE csrc/include)
  target_compile_definitions(_cuda PRIVATE HWNAS_WITH_CUDA)
  set_target_properties(_cuda PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
  set_source_files_properties(${cuda_kernels} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${binding_options}>)
  set_target_properties(_cuda PROPERTIES CUDA_ARCHITECTURES "${architectures}" CUDA_RUNTIME_LIBRARY Static)
  install(TARGETS _cuda LIBRARY DESTINATION hwnas)
elseif(HWNAS_CUDA STREQUAL ON)
  message(FATAL_ERROR "hwnas: HWNAS_CUDA is ON, but no CUDA compiler works here. Put nvcc on the PATH or set CUDACXX, "
                      "see the messages above; HWNAS_CUDA=AUTO builds without.")
else()
  message(STATUS "hwnas: no working CUDA compiler, building without the CUDA kernels (HWNAS_CUDA=ON makes this an error)")
endif()
