// Tensors behind the C API's handles: ownership, and what the kernels read and write.
#pragma once

#include <memory>

#include "c_api.h"
#include "view.h"

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

  View view() const;  // its data only to be read
  void* data() const;

  // A tensor of the same memory with the axes in this order.
  Tensor in_order(const Order& order) const;
  void copy_from(const Tensor& other) const;

 private:
  std::unique_ptr<TensorOpaque, DeleteTensor> handle_;
};

int32_t scalar_type(DataType type);  // PyTorch's number for it

Tensor empty(int64_t axes, const int64_t* sizes, const int64_t* strides, DataType type);
Tensor empty_contiguous(int64_t axes, const int64_t* sizes, DataType type);
Tensor empty_bytes(int64_t axes, const int64_t* sizes);  // int8, contiguous
Tensor undefined();
// The tensor itself if it is contiguous and of this type, else a copy that is.
Tensor contiguous(Tensor given, DataType type);

// A tensor as the kernels read or write it in this order: in place if they can, else through a
// copy. One that is read is copied at once, one that is written by flush(). Tensor and order must
// outlive it.
class InOrder {
 public:
  enum Use { read, write };
  InOrder(const Tensor& tensor, const Order& order, Use use);
  const Ordered& ordered() const { return ordered_; }
  // Takes a copy, unless the tensor is contiguous.
  void make_contiguous();
  void flush() const {
    if (use_ == write && copy_) tensor_.in_order(order_).copy_from(copy_);
  }

 private:
  const Tensor& tensor_;
  const Order& order_;
  Use use_;
  Ordered ordered_;
  Tensor copy_;
};

}  // namespace layernorm::torch
