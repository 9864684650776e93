// The parts of DLPack's C exchange interface that the fast path uses, declared from its
// specification (https://dmlc.github.io/dlpack, version 1): a tensor's memory without a Python
// call.
#pragma once

#include <cstdint>

#include "layer_norm.h"

namespace layernorm::dlpack {

constexpr char kCapsule[] = "dlpack_exchange_api";
constexpr uint32_t kMajor = 1;

enum DeviceType : int32_t { kCpu = 1 };
enum TypeCode : uint8_t { kFloat = 2, kBfloat = 4 };

struct Version {
  uint32_t major, minor;
};

struct Device {
  int32_t type, id;
};

struct Type {
  uint8_t code, bits;
  uint16_t lanes;
};

constexpr Type type_of(DataType type) {
  return {type == DataType::bfloat16 ? kBfloat : kFloat, static_cast<uint8_t>(8 * size_of(type)),
          1};
}

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  Type dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct ManagedTensor {
  Version version;
  void* context;
  void (*deleter)(ManagedTensor*);
  uint64_t flags;
  Tensor tensor;
};

struct ExchangeHeader {
  Version version;
  ExchangeHeader* previous;
};

struct Exchange {
  ExchangeHeader header;
  int (*allocate)(Tensor* prototype, ManagedTensor** out, void* context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*managed_from_object)(void* object, ManagedTensor** out);
  int (*managed_to_object)(ManagedTensor* tensor, void** out);
  int (*tensor_from_object)(void* object, Tensor* out);
  int (*current_stream)(int32_t device_type, int32_t device_id, void** out);
};

}  // namespace layernorm::dlpack
