// Tensors behind the C API's handles: who owns them, what they are, and what the kernels read.
#pragma once

#include <memory>

#include "c_api.h"
#include "layout.h"

namespace layernorm::torch {

// Raises PyTorch's RuntimeError (a c10::Error, thrown by the C API) unless the condition holds.
void check(bool condition, const char* message);
inline void check(Error error) { check(error == 0, "layernorm: a call of PyTorch's failed"); }

struct DeleteTensor {
  void operator()(TensorHandle handle) const { c_api.aoti_torch_delete_tensor_object(handle); }
};

// Owns one handle, or none.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(TensorHandle handle) : handle_(handle) {}

  explicit operator bool() const { return handle_ != nullptr; }
  TensorHandle handle() const { return handle_.get(); }
  TensorHandle release() { return handle_.release(); }

  int64_t axes() const;
  const int64_t* sizes() const;
  const int64_t* strides() const;
  int64_t elements() const;
  bool is_contiguous() const;
  bool has_sizes_of(const Tensor& other) const;
  // False for types that the kernels do not know.
  bool data_type(DataType* type) const;
  bool is_plain() const;  // on the CPU, with strides
  const void* read() const;
  void* write() const;

  // A view with the axes in this order.
  Tensor in_order(const Order& order) const;
  void copy_from(const Tensor& other) const;

 private:
  std::unique_ptr<TensorOpaque, DeleteTensor> handle_;
};

int32_t scalar_type(DataType type);  // PyTorch's number for it

void contiguous_strides(int64_t axes, const int64_t* sizes, int64_t* strides);

Tensor empty(int64_t axes, const int64_t* sizes, const int64_t* strides, DataType type);
Tensor empty_contiguous(int64_t axes, const int64_t* sizes, DataType type);
Tensor undefined();
// The tensor itself, or its copy: contiguous, of this type.
Tensor contiguous(Tensor given, DataType type);

// A tensor as the kernels walk it in this order. What they cannot walk goes through a copy: one
// that is read is copied at once, one that is written by flush().
class Walked {
 public:
  static Walked to_read(const Tensor& tensor, const Order& order, DataType type);
  static Walked to_write(const Tensor& tensor, const Order& order, DataType type);
  const Array& array() const { return array_; }
  void flush() const {
    if (target_) target_.copy_from(copy_);
  }

 private:
  bool walk_in_place(const Tensor& tensor, const Order& order, void* data);
  void walk_copy(const Tensor& tensor, const Order& order, DataType type);

  Array array_ = {};
  Tensor copy_, target_;
};

}  // namespace layernorm::torch
