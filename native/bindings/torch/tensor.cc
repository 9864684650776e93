#include "tensor.h"

#include <algorithm>

namespace layernorm::torch {

int32_t scalar_type(DataType type) {
  switch (type) {
    case DataType::float16: return c_api.aoti_torch_dtype_float16();
    case DataType::bfloat16: return c_api.aoti_torch_dtype_bfloat16();
    case DataType::float64: return c_api.aoti_torch_dtype_float64();
    case DataType::float32: break;
  }
  return c_api.aoti_torch_dtype_float32();
}

void contiguous_strides(int64_t axes, const int64_t* sizes, int64_t* strides) {
  int64_t stride = 1;
  for (int64_t axis = axes - 1; axis >= 0; --axis) {
    strides[axis] = stride;
    stride *= std::max(int64_t{1}, sizes[axis]);
  }
}

void check(bool condition, const char* message) {
  if (!condition)
    c_api.aoti_torch_check(false, "check", "layernorm/native/bindings/torch/tensor.cc", __LINE__,
                           message);
}

int64_t Tensor::axes() const {
  int64_t count = 0;
  check(c_api.aoti_torch_get_dim(handle(), &count));
  return count;
}

const int64_t* Tensor::sizes() const {
  int64_t* sizes = nullptr;
  check(c_api.aoti_torch_get_sizes(handle(), &sizes));
  return sizes;
}

const int64_t* Tensor::strides() const {
  int64_t* strides = nullptr;
  check(c_api.aoti_torch_get_strides(handle(), &strides));
  return strides;
}

int64_t Tensor::elements() const {
  const int64_t count = axes(), *size = sizes();
  int64_t product = 1;
  for (int64_t axis = 0; axis < count; ++axis) product *= size[axis];
  return product;
}

bool Tensor::is_contiguous() const {
  const int64_t *size = sizes(), *stride = strides();
  int64_t expected = 1;
  for (int64_t axis = axes() - 1; axis >= 0; --axis) {
    if (size[axis] != 1 && stride[axis] != expected) return false;
    expected *= size[axis];
  }
  return true;
}

bool Tensor::has_sizes_of(const Tensor& other) const {
  const int64_t count = axes();
  return count == other.axes() && std::equal(sizes(), sizes() + count, other.sizes());
}

bool Tensor::data_type(DataType* type) const {
  int32_t given = 0;
  check(c_api.aoti_torch_get_dtype(handle(), &given));
  for (const DataType each :
       {DataType::float32, DataType::float64, DataType::bfloat16, DataType::float16})
    if (scalar_type(each) == given) return *type = each, true;
  return false;
}

bool Tensor::is_plain() const {
  int32_t device = 0, layout = 0;
  check(c_api.aoti_torch_get_device_type(handle(), &device));
  check(c_api.aoti_torch_get_layout(handle(), &layout));
  return device == c_api.aoti_torch_device_type_cpu() &&
         layout == c_api.aoti_torch_layout_strided();
}

const void* Tensor::read() const {
  const void* data = nullptr;
  check(c_api.torch_get_const_data_ptr(handle(), &data));
  return data;
}

void* Tensor::write() const {
  void* data = nullptr;
  check(c_api.torch_get_mutable_data_ptr(handle(), &data));
  return data;
}

Tensor Tensor::in_order(const Order& order) const {
  int64_t ordered_sizes[kMostAxes], ordered_strides[kMostAxes];
  const int64_t *size = sizes(), *stride = strides();
  for (int64_t at = 0; at < order.count; ++at) {
    ordered_sizes[at] = size[order.axis[at]];
    ordered_strides[at] = stride[order.axis[at]];
  }
  TensorHandle view = nullptr;
  check(c_api.aoti_torch_as_strided(handle(), ordered_sizes, ordered_strides, &view));
  return Tensor(view);
}

void Tensor::copy_from(const Tensor& other) const {
  check(c_api.aoti_torch_copy_(handle(), other.handle(), 0));
}

Tensor empty(int64_t axes, const int64_t* sizes, const int64_t* strides, DataType type) {
  TensorHandle handle = nullptr;
  check(c_api.aoti_torch_empty_strided(axes, sizes, strides, scalar_type(type),
                                       c_api.aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor empty_contiguous(int64_t axes, const int64_t* sizes, DataType type) {
  check(axes <= kMostAxes, "layernorm: a tensor has more than 64 axes");
  int64_t strides[kMostAxes];
  contiguous_strides(axes, sizes, strides);
  return empty(axes, sizes, strides, type);
}

Tensor undefined() {
  TensorHandle handle = nullptr;
  check(c_api.aoti_torch_new_uninitialized_tensor(&handle));
  return Tensor(handle);
}

Tensor contiguous(Tensor given, DataType type) {
  if (!given) return given;
  DataType found;
  if (given.data_type(&found) && found == type && given.is_contiguous()) return given;
  Tensor copy = empty_contiguous(given.axes(), given.sizes(), type);
  copy.copy_from(given);
  return copy;
}

bool Walked::walk_in_place(const Tensor& tensor, const Order& order, void* data) {
  array_.data = data;
  return order.collapse(tensor.sizes(), tensor.strides(), &array_);
}

void Walked::walk_copy(const Tensor& tensor, const Order& order, DataType type) {
  int64_t sizes[kMostAxes], strides[kMostAxes];
  order.contiguous(tensor.sizes(), sizes, strides);
  copy_ = empty(order.count, sizes, strides, type);
  array_ = {copy_.write(), order.shape.cols * order.shape.inner, order.shape.inner};
}

Walked Walked::to_read(const Tensor& tensor, const Order& order, DataType type) {
  Walked result;
  // The kernels only read what is given as x and dy.
  if (result.walk_in_place(tensor, order, const_cast<void*>(tensor.read()))) return result;
  result.walk_copy(tensor, order, type);
  result.copy_.copy_from(tensor.in_order(order));
  return result;
}

Walked Walked::to_write(const Tensor& tensor, const Order& order, DataType type) {
  Walked result;
  if (result.walk_in_place(tensor, order, tensor.write())) return result;
  result.walk_copy(tensor, order, type);
  result.target_ = tensor.in_order(order);
  return result;
}

}  // namespace layernorm::torch
