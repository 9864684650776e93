#include "tensor.h"

namespace layernorm::tensorflow {

bool from_code(int32_t code, DataType* type) {
  switch (code) {
    case 1: *type = DataType::float32; return true;
    case 2: *type = DataType::float64; return true;
    case 14: *type = DataType::bfloat16; return true;
    case 19: *type = DataType::float16; return true;
    default: return false;
  }
}

int32_t to_code(DataType type) {
  switch (type) {
    case DataType::float64: return 2;
    case DataType::bfloat16: return 14;
    case DataType::float16: return 19;
    case DataType::float32: break;
  }
  return 1;
}

bool from_code(int32_t code, QuantizedType* type) {
  switch (code) {
    case 6: *type = QuantizedType::int8; return true;
    case 24: *type = QuantizedType::float8_e5m2; return true;
    case 25: *type = QuantizedType::float8_e4m3fn; return true;
    default: return false;
  }
}

bool OwnedTensor::has_sizes(const Sizes& sizes) const {
  if (c_api.TF_NumDims(tensor_.get()) != sizes.count) return false;
  for (int axis = 0; axis < sizes.count; ++axis)
    if (c_api.TF_Dim(tensor_.get(), axis) != sizes.size[axis]) return false;
  return true;
}

bool OwnedTensor::sizes(Sizes* sizes) const {
  sizes->count = c_api.TF_NumDims(tensor_.get());
  if (sizes->count > kMostAxes) return false;
  for (int axis = 0; axis < sizes->count; ++axis)
    sizes->size[axis] = c_api.TF_Dim(tensor_.get(), axis);
  return true;
}

}  // namespace layernorm::tensorflow
