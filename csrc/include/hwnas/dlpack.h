#pragma once

// The part of the DLPack exchange interface that is used here: how a library of arrays hands out what it knows of one,
// by a table of C functions, without being linked against. Order and types are those of DLPack 1.
// https://dmlc.github.io/dlpack/latest/c_api.html

#include <cstdint>

namespace hwnas::dlpack {

constexpr std::uint32_t kMajorVersion = 1;
constexpr const char* kCapsule = "dlpack_exchange_api";

enum Code : std::uint8_t { kFloat = 2, kBfloat = 4 };

constexpr std::int32_t kCpu = 1;  // a type of devices

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

// Shape and strides, both in elements, belong to the array.
struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  // Fills `out` from an array. Returns 0, or -1 with a Python error set. May be null.
  int (*from_object)(void* object, Tensor* out);
  void* current_stream;
};

}  // namespace hwnas::dlpack
