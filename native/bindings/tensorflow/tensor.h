// Tensors behind TensorFlow's handles: who owns them, and what they are.
#pragma once

#include <memory>

#include "c_api.h"
#include "layout.h"

namespace layernorm::tensorflow {

// The numbers that TensorFlow's types.proto gives the types. False for one that the kernels do not
// know.
bool from_code(int32_t code, DataType* type);
int32_t to_code(DataType type);

struct DeleteTensor {
  void operator()(Tensor* tensor) const { c_api.TF_DeleteTensor(tensor); }
};

// Owns one handle, or none. The memory behind it belongs to TensorFlow.
class Held {
 public:
  Held() = default;
  explicit Held(Tensor* tensor) : tensor_(tensor) {}

  explicit operator bool() const { return tensor_ != nullptr; }
  void* data() const { return c_api.TF_TensorData(tensor_.get()); }
  bool data_type(DataType* type) const {
    return from_code(c_api.TF_TensorType(tensor_.get()), type);
  }
  bool has_sizes(const Sizes& sizes) const;
  // False where there are more axes than the kernels know.
  bool sizes(Sizes* sizes) const;

 private:
  std::unique_ptr<Tensor, DeleteTensor> tensor_;
};

}  // namespace layernorm::tensorflow
