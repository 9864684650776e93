#include "tensor.h"

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

void check(bool condition, const char* message) {
  if (!condition)
    c_api.aoti_torch_check(false, "check", "layernorm/native/bindings/torch/tensor.cc", __LINE__,
                           message);
}

View Tensor::view() const {
  View view;
  int64_t *sizes = nullptr, *strides = nullptr;
  check(c_api.aoti_torch_get_dim(handle(), &view.axes));
  check(c_api.aoti_torch_get_sizes(handle(), &sizes));
  view.sizes = sizes;
  int32_t device = 0, layout = 0, type = 0;
  check(c_api.aoti_torch_get_device_type(handle(), &device));
  check(c_api.aoti_torch_get_layout(handle(), &layout));
  check(c_api.aoti_torch_get_dtype(handle(), &type));
  if (device != c_api.aoti_torch_device_type_cpu() || layout != c_api.aoti_torch_layout_strided())
    return view;
  for (const DataType each : kDataTypes) {
    if (scalar_type(each) != type) continue;
    view.is_served = true;
    view.type = each;
  }
  const void* data = nullptr;
  check(c_api.aoti_torch_get_strides(handle(), &strides));
  check(c_api.torch_get_const_data_ptr(handle(), &data));
  view.strides = strides;
  view.data = const_cast<void*>(data);
  return view;
}

void* Tensor::data() const {
  void* data = nullptr;
  check(c_api.torch_get_mutable_data_ptr(handle(), &data));
  return data;
}

Tensor Tensor::in_order(const Order& order) const {
  const View own = view();
  int64_t sizes[kMostAxes], strides[kMostAxes];
  order.apply(own.sizes, sizes);
  order.apply(own.strides, strides);
  TensorHandle result = nullptr;
  check(c_api.aoti_torch_as_strided(handle(), sizes, strides, &result));
  return Tensor(result);
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

Tensor empty_bytes(int64_t axes, const int64_t* sizes) {
  int64_t strides[kMostAxes];
  contiguous_strides(axes, sizes, strides);
  TensorHandle handle = nullptr;
  check(c_api.aoti_torch_empty_strided(axes, sizes, strides, c_api.aoti_torch_dtype_int8(),
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
  const View view = given.view();
  if (view.is_served && view.type == type && view.is_contiguous()) return given;
  Tensor copy = empty_contiguous(view.axes, view.sizes, type);
  copy.copy_from(given);
  return copy;
}

InOrder::InOrder(const Tensor& tensor, const Order& order, Use use)
    : tensor_(tensor), order_(order), use_(use) {
  const View view = tensor.view();
  ordered_.data = use == write ? tensor.data() : view.data;
  order.apply(view.strides, ordered_.strides);
  if (!order.fits(ordered_.strides)) make_contiguous();
}

void InOrder::make_contiguous() {
  if (copy_ || order_.is_contiguous(ordered_.strides)) return;
  copy_ = empty_contiguous(order_.count, order_.sizes, tensor_.view().type);
  if (use_ == read) copy_.copy_from(tensor_.in_order(order_));
  ordered_.data = copy_.data();
  contiguous_strides(order_.count, order_.sizes, ordered_.strides);
}

}  // namespace layernorm::torch
