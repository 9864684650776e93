#include "layout.h"

#include <algorithm>

namespace layernorm::torch {
namespace {

// Axes that follow each other in an order: whether one stride walks them all, and which.
struct Section {
  int64_t size = 1;
  int64_t stride = 0;  // of the last axis
  bool merges = true;

  void take(int64_t axis_size, int64_t axis_stride) {
    merges = merges && (size == 1 || stride == axis_stride * axis_size);
    size *= axis_size;
    stride = axis_stride;
  }
};

enum Part { kOuter, kCols, kInner };

bool find_shape(const Axes& axes, const int64_t* sizes, Order& order) {
  int64_t size[3] = {1, 1, 1};
  Part part = kOuter;
  bool any_normalized = false;
  for (int64_t at = 0; at < order.count; ++at)
    any_normalized |= sizes[order.axis[at]] != 1 && axes.normalized[order.axis[at]];
  for (int64_t at = 0; at < order.count; ++at) {
    const int64_t axis = order.axis[at];
    // Where all normalized sizes are 1, the first of these axes parts outer from inner.
    if (!any_normalized && part == kOuter && axes.normalized[axis]) part = kInner;
    if (sizes[axis] == 1) continue;
    if (axes.normalized[axis]) {
      if (part == kInner) return false;
      part = kCols;
    } else if (part == kCols) {
      part = kInner;
    }
    size[part] *= sizes[axis];
  }
  order.shape = {size[kOuter], size[kCols], size[kInner]};
  return true;
}

Order as_they_are(const Axes& axes) {
  Order order;
  for (int64_t axis = 0; axis < axes.count; ++axis) order.axis[order.count++] = axis;
  return order;
}

Order normalized_last(const Axes& axes) {
  Order order;
  for (const bool normalized : {false, true})
    for (int64_t axis = 0; axis < axes.count; ++axis)
      if (axes.normalized[axis] == normalized) order.axis[order.count++] = axis;
  return order;
}

}  // namespace

int64_t Axes::cols(const int64_t* sizes) const {
  int64_t product = 1;
  for (int64_t axis = 0; axis < count; ++axis)
    if (normalized[axis]) product *= sizes[axis];
  return product;
}

int64_t Axes::rows(const int64_t* sizes) const {
  int64_t product = 1;
  for (int64_t axis = 0; axis < count; ++axis)
    if (!normalized[axis]) product *= sizes[axis];
  return product;
}

bool Order::collapse(const int64_t* sizes, const int64_t* strides, Array* array) const {
  Section outer, cols, inner;
  int64_t taken = 1;
  Section* section = &outer;
  for (int64_t at = 0; at < count; ++at) {
    const int64_t size = sizes[axis[at]];
    if (size == 1) continue;
    // The shape says where each section ends: the sizes are all larger than 1.
    if (section == &outer && taken == shape.outer) section = &cols, taken = 1;
    if (section == &cols && taken == shape.cols) section = &inner, taken = 1;
    section->take(size, strides[axis[at]]);
    taken *= size;
  }
  if (!outer.merges || !cols.merges || !inner.merges) return false;
  if (shape.outer > 1 && outer.stride <= 0) return false;
  if (shape.cols > 1 && cols.stride <= 0) return false;
  if (shape.inner > 1 ? inner.stride != 1 : shape.cols > 1 && cols.stride != 1) return false;
  array->outer_stride = shape.outer > 1 ? outer.stride : shape.cols * shape.inner;
  array->col_stride = shape.cols > 1 ? cols.stride : shape.inner;
  return true;
}

void Order::contiguous(const int64_t* sizes, int64_t* ordered_sizes,
                       int64_t* ordered_strides) const {
  int64_t stride = 1;
  for (int64_t at = count - 1; at >= 0; --at) {
    ordered_sizes[at] = sizes[axis[at]];
    ordered_strides[at] = stride;
    stride *= std::max(int64_t{1}, sizes[axis[at]]);
  }
}

Order choose_order(const Axes& axes, const int64_t* sizes, const int64_t* strides) {
  Order plain = as_they_are(axes), last = normalized_last(axes);
  find_shape(axes, sizes, last);
  Array array;
  const bool parted = !find_shape(axes, sizes, plain);
  if (!parted && plain.collapse(sizes, strides, &array)) return plain;
  if (parted || last.collapse(sizes, strides, &array)) return last;
  return plain;
}

bool is_dense(int64_t count, const int64_t* sizes, const int64_t* strides) {
  int64_t axes[kMostAxes], used = 0;
  for (int64_t axis = 0; axis < count; ++axis)
    if (sizes[axis] != 1) axes[used++] = axis;
  std::sort(axes, axes + used, [strides](int64_t a, int64_t b) { return strides[a] < strides[b]; });
  int64_t expected = 1;
  for (int64_t at = 0; at < used; ++at) {
    if (strides[axes[at]] != expected) return false;
    expected *= sizes[axes[at]];
  }
  return true;
}

}  // namespace layernorm::torch
