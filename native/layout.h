// Tensors of any number of axes as the kernels take them, (outer, cols, inner), for the bindings.
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

// A contiguous array of this shape, and contiguous statistics of its rows.
inline Array contiguous_array(void* data, const Shape& shape) {
  return {data, {shape.cols * shape.inner}, shape.inner};
}
inline Statistics contiguous_statistics(void* mean, void* rstd, void* residual,
                                        const Shape& shape) {
  return {mean, rstd, residual, {shape.inner}};
}

// Statistics in one block of memory: mean, rstd and residual, or without centering rstd alone.
// Their strides are left to be filled in.
constexpr int64_t statistics_count(bool centered) { return centered ? 3 : 1; }
inline Statistics statistics_in(void* block, int64_t rows, DataType type, bool centered) {
  char* first = static_cast<char*>(block);
  if (!centered) return {nullptr, first, nullptr, {}};
  const int64_t bytes = rows * size_of(type);
  return {first, first + bytes, first + 2 * bytes, {}};
}

// Which axes of a tensor are normalized, and along which of the others weight and bias vary.
struct Axes {
  int64_t count = 0;  // of the tensor
  bool normalized[kMostAxes] = {};
  bool varying[kMostAxes] = {};

  enum class Mistake { none, too_many, out_of_range, repeated };
  // Negative ones count from the end.
  Mistake take(int64_t axes, const int64_t* given, int64_t given_count);
  int64_t rows(const int64_t* sizes) const;  // kMostRows + 1 for any more
  // The sizes of the normalized axes; returns how many there are.
  int64_t normalized_sizes(const int64_t* sizes, int64_t* normalized_sizes) const;

  // Takes the sizes of weight or bias: the normalized ones, or as many as the tensor has, of which
  // the kept ones are 1 or the tensor's, and those that are the tensor's vary. False for others.
  bool take_parameter(const int64_t* sizes, int64_t parameter_count,
                      const int64_t* parameter_sizes);
};

// The most tensors of x's sizes that one call has.
constexpr int kMostTensors = 6;

// A tensor that the kernels read or write, its strides in the order of an Order.
struct Ordered {
  void* data = nullptr;
  int64_t strides[kMostAxes] = {};
};

// An order of the axes in which the normalized ones that are larger than 1 are neighbors, and
// follow those that weight and bias vary along.
struct Order {
  enum Part : int8_t { outer, cols, inner, none };  // none: of size 1

  int64_t count = 0;
  int64_t axis[kMostAxes];
  int64_t sizes[kMostAxes];  // as are the others, in this order
  Part part[kMostAxes];
  bool varies[kMostAxes];
  bool moves_axes = false;  // false: the axes are in the tensor's own order

  bool is_contiguous(const int64_t* strides) const;
  // False where a tensor of these strides must be copied, however its outer axes merge;
  // `with_outer` false: where each part of it with one outer must be.
  bool fits(const int64_t* strides, bool with_outer = true) const;
  // Strides, or other values, of the tensor's axes in this order.
  void apply(const int64_t* values, int64_t* ordered) const;

  struct Placed {
    const Ordered* tensor;
    Array* array;
  };
  // Fills in the arrays and the problem's shape, members and strides of statistics, which are
  // contiguous. False where too many outer axes do not merge for all tensors.
  bool place(const Placed* tensors, int tensor_count, Problem& problem) const;
};

// The tensor's own order. False if it is none: normalized axes are apart, or parameters vary along
// one behind them.
bool keep_order(const Axes& axes, const int64_t* sizes, Order* order);

// The order in which the kernels read x: one that takes no copy, if there is one; else the tensor's
// own, or the normalized axes last: where a kept axis separates them, or where they are contiguous
// and the tensor's own order would need a copy of each part too.
Order choose_order(const Axes& axes, const int64_t* sizes, const int64_t* strides);

}  // namespace layernorm
