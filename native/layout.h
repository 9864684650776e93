// Tensors of any number of axes collapsed to (outer, cols, inner), for the bindings, as
// layernorm.spec's `collapse` does it for NumPy.
#pragma once

#include <cstdint>

#include "layer_norm.h"

namespace layernorm {

constexpr int64_t kMostAxes = 64;

// An empty x may have any number of rows: beyond this, the bytes of their statistics overflow.
constexpr int64_t kMostRows = int64_t{1} << 58;

int64_t count_elements(int64_t axes, const int64_t* sizes);
void contiguous_strides(int64_t axes, const int64_t* sizes, int64_t* strides);
bool is_contiguous(int64_t axes, const int64_t* sizes, const int64_t* strides);
// No two elements in one place, no gaps: contiguous in some order of the axes.
bool is_dense(int64_t axes, const int64_t* sizes, const int64_t* strides);

// A contiguous array of this shape.
inline Array contiguous_array(void* data, const Shape& shape) {
  return {data, shape.cols * shape.inner, shape.inner};
}

// Statistics in one block of memory: mean, rstd and residual, or without centering rstd alone.
constexpr int64_t statistics_count(bool centered) { return centered ? 3 : 1; }
inline Statistics statistics_in(void* block, int64_t rows, DataType type, bool centered) {
  char* first = static_cast<char*>(block);
  if (!centered) return {nullptr, first, nullptr};
  const int64_t bytes = rows * size_of(type);
  return {first, first + bytes, first + 2 * bytes};
}

// Which axes of a tensor are normalized.
struct Axes {
  int64_t count = 0;  // of the tensor
  bool normalized[kMostAxes] = {};

  enum class Mistake { none, too_many, out_of_range, repeated };
  // Negative ones count from the end.
  Mistake take(int64_t axes, const int64_t* given, int64_t given_count);
  int64_t rows(const int64_t* sizes) const;  // kMostRows + 1 for any more
  // The sizes of the normalized axes, the shape of weight and bias; returns how many there are.
  int64_t normalized_sizes(const int64_t* sizes, int64_t* normalized_sizes) const;
};

// An order of the axes in which the normalized ones that are larger than 1 are neighbors.
struct Order {
  int64_t count = 0;
  int64_t axis[kMostAxes];
  bool moves_axes = false;  // false: the axes are in the tensor's own order
  Shape shape;

  // Finds the strides of outer and cols: false where a tensor of these strides must be copied.
  bool collapse(const int64_t* sizes, const int64_t* strides, Array* array) const;
  // Sizes or strides in this order.
  void apply(const int64_t* values, int64_t* ordered) const;
};

// The order in which the kernels read x: one that takes no copy, if there is one; else the tensor's
// own, or the normalized axes last: where a kept axis separates them, or they are contiguous. Rows
// of one element keep the tensor's own.
Order choose_order(const Axes& axes, const int64_t* sizes, const int64_t* strides);

}  // namespace layernorm
