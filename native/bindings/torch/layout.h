// How the kernels can walk a tensor: layernorm.spec's `collapse`, for the order of the axes as they
// are and for the normalized ones last (channels last in memory, normalized as axis 1).
#pragma once

#include <cstdint>

#include "layer_norm.h"

namespace layernorm::torch {

constexpr int64_t kMostAxes = 64;

struct Axes {
  int64_t count = 0;
  bool normalized[kMostAxes] = {};

  int64_t cols(const int64_t* sizes) const;
  int64_t rows(const int64_t* sizes) const;
};

// An order of the axes in which those that are normalized, if larger than 1, stand together.
struct Order {
  int64_t count = 0;
  int64_t axis[kMostAxes];
  Shape shape;

  // The strides of outer and cols, or false where the kernels cannot walk a tensor with these.
  bool collapse(const int64_t* sizes, const int64_t* strides, Array* array) const;
  // Sizes in this order, and the strides of a fresh tensor that is contiguous in it.
  void contiguous(const int64_t* sizes, int64_t* ordered_sizes, int64_t* ordered_strides) const;
};

// The order to walk x in. Without a copy where that is possible; where it is not, as NumPy's front
// end does it: as they are, or the normalized axes last.
Order choose_order(const Axes& axes, const int64_t* sizes, const int64_t* strides);

// No element twice, no gaps: a fresh tensor may have these strides.
bool is_dense(int64_t count, const int64_t* sizes, const int64_t* strides);

}  // namespace layernorm::torch
