# The CUDA kernels, in a module of their own. nvcc is called directly: to look at the compiler in its own way takes CMake
# seven seconds. Sets nothing that the CPU module needs: where nvcc is missing, broken or incomplete, AUTO goes on without.

# One pass of the compiler for all processors from sm_80 on: no kernel uses what came later. Machine code for sm_80 and
# sm_90, and the intermediate code, from which drivers make that of newer ones.
set(nvcc_options -std=c++17 -gencode arch=compute_80,code=[compute_80,sm_80,sm_90]
                 -Xcompiler=-fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden,-O1,-Wall)

if(DEFINED ENV{CUDACXX} AND NOT DEFINED CUDAToolkit_ROOT)
  get_filename_component(CUDAToolkit_ROOT "$ENV{CUDACXX}/../.." ABSOLUTE)
endif()
find_package(CUDAToolkit 11.8 QUIET)
if(TARGET CUDA::cudart_static)
  set(trial "${CMAKE_CURRENT_BINARY_DIR}/trial.cu")
  file(WRITE "${trial}" "
    #include <cuda_bf16.h>
    #include <cuda_runtime.h>
    __global__ void kernel(float* x) { *x = __bfloat162float(__float2bfloat16_rn(*x)); }
    void launch() { kernel<<<1, 1>>>(nullptr); }
  ")
  execute_process(COMMAND "${CUDAToolkit_NVCC_EXECUTABLE}" ${nvcc_options} -c "${trial}" -o "${trial}.o"
                  RESULT_VARIABLE failed OUTPUT_VARIABLE said ERROR_VARIABLE said)
else()
  set(failed TRUE)
  set(said "nvcc or the static CUDA runtime was not found.")
endif()

if(NOT failed)
  message(STATUS "hwnas: building the CUDA kernels with ${CUDAToolkit_NVCC_EXECUTABLE}")
  # All kernels as one file, for the same reason as the bindings.
  set(source "${CMAKE_CURRENT_BINARY_DIR}/kernels.cu")
  set(object "${source}.o")
  list(TRANSFORM cuda_kernels REPLACE "(.+)" "#include \"\\1\"\n" OUTPUT_VARIABLE includes)
  list(JOIN includes "" includes)
  file(CONFIGURE OUTPUT "${source}" CONTENT "${includes}")
  add_custom_command(
    OUTPUT "${object}"
    COMMAND "${CUDAToolkit_NVCC_EXECUTABLE}" ${nvcc_options} "-I${CMAKE_CURRENT_SOURCE_DIR}/csrc/include"
            -MD -MF "${object}.d" -c "${source}" -o "${object}"
    DEPENDS "${source}" DEPFILE "${object}.d" COMMENT "Building the CUDA kernels" VERBATIM)
  pybind11_add_module(_cuda MODULE NO_EXTRAS $<TARGET_OBJECTS:module> ${bindings} "${object}")
  target_include_directories(_cuda PRIVATE csrc/include)
  target_compile_definitions(_cuda PRIVATE HWNAS_WITH_CUDA)
  target_compile_options(_cuda PRIVATE ${binding_options} -Wall -Wextra)
  target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
  set_target_properties(_cuda PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
  install(TARGETS _cuda LIBRARY DESTINATION hwnas)
elseif(HWNAS_CUDA STREQUAL ON)
  message(FATAL_ERROR "hwnas: HWNAS_CUDA is ON, but no CUDA compiler works here. Put nvcc on the PATH or set CUDACXX; "
                      "HWNAS_CUDA=AUTO builds without. ${said}")
else()
  message(STATUS "hwnas: no working CUDA compiler, building without the CUDA kernels (HWNAS_CUDA=ON makes this an error)")
endif()
