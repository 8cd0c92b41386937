#include "hwnas/device.h"

#include <cuda_runtime.h>

#include <stdexcept>

namespace hwnas::cuda {

DeviceGuard::DeviceGuard(int device) {
  cudaError_t status = cudaGetDevice(&previous_);
  if (status == cudaSuccess && device != previous_) status = cudaSetDevice(device);
  if (status != cudaSuccess) {
    throw std::runtime_error("CUDA device " + std::to_string(device) + ": " + cudaGetErrorString(status));
  }
}

DeviceGuard::~DeviceGuard() { cudaSetDevice(previous_); }

std::string unusable_reason(int device) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();  // a failed call must not be found by somebody else's next check
    return cudaGetErrorString(status);
  }
  if (device < 0 || device >= count) {
    return "there is no device " + std::to_string(device) + " among " + std::to_string(count);
  }
  int major = 0;
  int minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (major < 8) {
    return "compute capability " + std::to_string(major) + "." + std::to_string(minor) + " is below 8.0";
  }
  return "";
}

}  // namespace hwnas::cuda
