// Tensors behind TensorFlow's handles: ownership, types and sizes.
#pragma once

#include <memory>

#include "c_api.h"
#include "layout.h"

namespace layernorm::tensorflow {

// The numbers of the types in TensorFlow's types.proto. False for a type that the kernels do not
// know.
bool from_code(int32_t code, DataType* type);
int32_t to_code(DataType type);
bool from_code(int32_t code, QuantizedType* type);

struct DeleteTensor {
  void operator()(Tensor* tensor) const { c_api.TF_DeleteTensor(tensor); }
};

struct Sizes {
  int count = 0;
  int64_t size[kMostAxes];

  int64_t elements() const { return count_elements(count, size); }
};

// Owns one handle, or none. The memory behind it belongs to TensorFlow.
class OwnedTensor {
 public:
  OwnedTensor() = default;
  explicit OwnedTensor(Tensor* tensor) : tensor_(tensor) {}

  explicit operator bool() const { return tensor_ != nullptr; }
  void* data() const { return c_api.TF_TensorData(tensor_.get()); }
  int64_t bytes() const { return static_cast<int64_t>(c_api.TF_TensorByteSize(tensor_.get())); }
  bool data_type(DataType* type) const {
    return from_code(c_api.TF_TensorType(tensor_.get()), type);
  }
  bool has_sizes(const Sizes& sizes) const;
  // False for more than kMostAxes.
  bool sizes(Sizes* sizes) const;

 private:
  std::unique_ptr<Tensor, DeleteTensor> tensor_;
};

}  // namespace layernorm::tensorflow
