#pragma once

#include <string>

namespace hwnas::cuda {

// Makes `device` the current one and puts the previous one back at the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

// Why the kernels cannot run on `device`; empty when they can. Needs no driver to be called.
std::string unusable_reason(int device);

}  // namespace hwnas::cuda
