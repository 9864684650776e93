// A tensor as it lies in memory, read through DLPack by the fast path and through PyTorch's C API by
// the operators.
#pragma once

#include <algorithm>

#include "layer_norm.h"
#include "layout.h"

namespace layernorm::torch {

// Sizes and strides belong to the tensor.
struct View {
  int64_t axes = 0;
  const int64_t* sizes = nullptr;
  bool is_served = false;  // strided, on the CPU, and of a type that the kernels know
  DataType type = DataType::float32;
  // Of all that are strided and on the CPU.
  const int64_t* strides = nullptr;
  void* data = nullptr;

  int64_t elements() const { return count_elements(axes, sizes); }
  int64_t bytes() const { return elements() * size_of(type); }
  bool is_contiguous() const { return layernorm::is_contiguous(axes, sizes, strides); }
  bool has_sizes(int64_t count, const int64_t* others) const {
    return axes == count && std::equal(sizes, sizes + count, others);
  }
  bool has_sizes_of(const View& other) const { return has_sizes(other.axes, other.sizes); }
  // Whether memory between the elements belongs to others, or elements share some.
  bool has_gaps() const { return !is_dense(axes, sizes, strides); }
  // Whether two contiguous tensors share memory.
  bool overlaps(const View& other) const {
    const char *begin = static_cast<const char*>(data),
               *others = static_cast<const char*>(other.data);
    return data && other.data && begin < others + other.bytes() && others < begin + bytes();
  }
};

}  // namespace layernorm::torch
